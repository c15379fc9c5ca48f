"""Image sets of the Hugging Face hub: the commit that is read, and what to do where a set cannot be read."""

import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

from vlcp_ray.settings import ConfigError
from vlcp_ray.store.uris import public

SCHEME: Final = "hf://"
_URI: Final = re.compile(r"hf://(datasets/|spaces/|(?!datasets/|spaces/))([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")


class Place(NamedTuple):
    """Where a set is on the hub: its repository, that one's kind, the revision, and the folder in it; "" for none."""

    repository: str
    kind: str
    revision: str
    folder: str


@lru_cache(maxsize=8)
def at_commit(source: str, revision: str) -> tuple[str, str]:
    """Find the commit of a set, so that all workers read the same files.

    Args:
        source: `ingest.source`; only for `hf://` anything is asked.
        revision: a branch, a tag or a commit; empty: the one in the URI, or the newest commit of the main branch.

    Returns the URI of the set at this commit and the commit, or the source itself and "".

    Raises:
        ConfigError: there is no such set or revision, its terms were not accepted, or the hub cannot be reached.

    Where HF_HUB_OFFLINE is set, the set is read from the cache of the hub, if `vlcp-ray fetch` has brought all of it.
    """
    if not source.startswith(SCHEME):
        if revision:
            raise ConfigError(f"ingest.revision: only sets of the hub ({SCHEME}) have revisions; leave it out")
        return source, ""
    try:
        uri, commit = _find(source, revision)
    except Exception as error:  # those of the hub, of HTTP and of the network
        raise ConfigError(_explain(source, revision, error)) from error
    if revision and not commit:
        raise ConfigError(f"ingest.revision: {public(source)} is a bucket, which has no revisions; leave it out")
    return uri, commit


def _find(source: str, revision: str) -> tuple[str, str]:
    from huggingface_hub import HfApi, HfFileSystem, constants  # here, as it takes half a second
    from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

    if constants.is_offline_mode():
        return _find_cached(place_of(source, revision))
    found = HfFileSystem().resolve_path(source, revision=revision or None)
    if not isinstance(found, HfFileSystemResolvedRepositoryPath):  # a bucket
        return source, ""
    info = HfApi().repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
    if getattr(info, "gated", False):
        HfApi().auth_check(found.repo_id, repo_type=found.repo_type)
    folder = {"dataset": "datasets/", "space": "spaces/"}.get(found.repo_type, "")
    inner = f"/{found.path_in_repo}" if found.path_in_repo else ""
    return f"{SCHEME}{folder}{found.repo_id}@{info.sha}{inner}", str(info.sha)


def place_of(source: str, revision: str) -> Place:
    """Read the URI of a set. The revision in it counts where none is given."""
    found = _URI.fullmatch(source.rstrip("/"))
    if not found:
        raise ValueError("it names no repository; write hf://datasets/owner/name")
    kind = {"datasets/": "dataset", "spaces/": "space"}.get(found[1], "model")
    return Place(found[2], kind, revision or unquote(found[3] or ""), found[4] or "")


def patterns(place: Place) -> list[str] | None:
    """Return the patterns of the files of a set in its repository; None for all."""
    return [place.folder, f"{place.folder}/*"] if place.folder else None


def _find_cached(place: Place) -> tuple[str, str]:
    """Find a set in the cache of the hub: its local folder, and its commit."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        place.repository,
        repo_type=place.kind,
        revision=place.revision or None,
        local_files_only=True,
        allow_patterns=patterns(place),
    )
    return f"{folder}/{place.folder}".rstrip("/"), folder.rpartition("/")[2]


def _explain(source: str, revision: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"ingest.source: {public(source)} is not complete in the cache of the hub, and HF_HUB_OFFLINE is set; run "
            "vlcp-ray fetch with this job where there is internet, and set HF_HUB_CACHE to what it has written"
        )
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    if revision and isinstance(error, ValueError) and "Revision specified" in str(error):
        return f"ingest.revision: {public(source)} names another one than {revision!r}; leave one of them out"
    if isinstance(cause, errors.RevisionNotFoundError):
        what = repr(revision) if revision else "of that name"
        return f"ingest.revision: {public(source)} has no revision {what}; give a branch, a tag or a commit of its page"
    said = getattr(cause, "server_message", None) or str(cause).strip()
    reason = next(iter(said.splitlines()), type(cause).__name__)
    return f"ingest.source: {public(source)} cannot be opened: {reason}; {fix(source)}"


def fix(source: str) -> str:
    """Return what to do about a set of the hub that cannot be read; "" for other sources."""
    if not source.startswith(SCHEME):
        return ""
    return (
        "if it is gated or private, accept its terms on its page and log in with hf auth login, or set HF_TOKEN; "
        "without internet, run vlcp-ray fetch with this job where there is some"
    )
