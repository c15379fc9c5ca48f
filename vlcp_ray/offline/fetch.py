"""Fetch what a job needs: models at their revision, the image set, captions and the teacher, with sizes and hashes."""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyarrow import fs as pafs

from vlcp_ray.config import Job
from vlcp_ray.cost.requirements import format_gib
from vlcp_ray.models import families, pretrained
from vlcp_ray.models.pretrained import Use
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import LAYOUTS, hub
from vlcp_ray.sources.classes import LISTS
from vlcp_ray.sources.local_files import leaves, limit_of
from vlcp_ray.stages import STAGES, teach
from vlcp_ray.store import files, written
from vlcp_ray.store.artifact import Step
from vlcp_ray.store.files import File
from vlcp_ray.store.io import open_uri, retry
from vlcp_ray.store.uris import public, redact

SUMS: Final = "SHA256SUMS"
#: The folders of the caches of the hub and of torch within the target.
_HUB, _TORCH = "hub", "torch"
_THREADS: Final = 8
#: Weights in other formats, of models that have safetensors.
_OTHER_FORMATS: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf")


@dataclass(frozen=True)
class Fetched:
    """Something that the job needs, and that is there now.

    Args:
        field: the setting that names it.
        name: its value, without secrets.
        note: its commit, or why nothing was to do.
        files: what was fetched.
        value: the value of the setting on the other machine; "" where it stays the same.
    """

    field: str
    name: str
    note: str
    files: Sequence[Path] = ()
    value: str = ""

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def __str__(self) -> str:
        size = f"{len(self.files):>7,} files {format_gib(self.bytes / 2**30):>11}" if self.files else ""
        return f"{self.field:<17} {self.name:<44} {self.note:<20} {size}".rstrip()


def fetch(job: Job, steps: Sequence[Step], to: Path | None = None) -> Iterator[Fetched]:
    """Fetch what the stages of a job need, and yield each part when it is there.

    What comes from the hub and from torchvision goes into their caches, where a job finds it under its own name; files
    of this machine and of other stores are copied.

    Args:
        steps: its graph.
        to: a folder, in which the caches are made; by default those of this machine, and then nothing is copied.

    Raises:
        ConfigError: something cannot be fetched; the message names the setting.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE: fetch needs the network; call it without this variable")
    stages = [stage for name, stage in STAGES.items() if any(step.stage == name for step in steps)]
    uses = dict.fromkeys(use for stage in stages for use in stage.models(job))
    for use in uses:  # all names are looked up before anything large is fetched
        pretrained.check_hub(use, _cache(to))
    _check_images(job, to)
    for use in uses:
        yield _fetch_model(use, to)
    yield _fetch_images(job, to)
    if job.ingest.class_list and job.ingest.class_list not in LISTS:
        yield _copy("ingest.class_list", job.ingest.class_list, to)
    if job.caption.source:
        yield _copy("caption.source", job.caption.source, to)
    if teach.STAGE in stages and job.teach.checkpoint:
        if job.teach.checkpoint == teach.TORCHVISION:
            yield from (_fetch_teacher(network, to) for network in job.teach.network)
        else:
            yield _copy("teach.checkpoint", job.teach.checkpoint, to)


def environment(to: Path | None) -> dict[str, str]:
    """Return the variables of the environment with which a job runs from what was fetched."""
    caches = {"HF_HUB_CACHE": str(to / _HUB), "TORCH_HOME": str(to / _TORCH)} if to else {}
    return {"HF_HUB_OFFLINE": "1", **caches}


def write_sums(to: Path, fetched: Sequence[Fetched]) -> None:
    """Write the SHA-256 of all fetched files, in the form that `sha256sum --check` reads."""
    paths = sorted({file for one in fetched for file in one.files})
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        hashes = threads.map(lambda file: written.measure(files.local_blocks(file)).sha256, paths)
        lines = [f"{value}  {path.relative_to(to)}\n" for value, path in zip(hashes, paths, strict=True)]
    part = to / f".{SUMS}"
    part.write_text("".join(lines), encoding="utf-8")
    part.rename(to / SUMS)


def _fetch_model(use: Use, to: Path | None) -> Fetched:
    if use.model.startswith(pretrained.DEMO):
        return Fetched(use.field, use.model, "in the package")
    if not pretrained.hub_id(use.model):
        return _copy(use.field, use.model, to)
    download = _download_pipeline if use.kind is families.STABLE_DIFFUSION else _download_all
    with _naming(use.field, use.model):
        place = download(pretrained.hub_id(use.model), pretrained.revision(use.model), _cache(to))
    with pretrained.naming(use.field, use.model):
        kind = families.check(use.kind, place)
    if missing := pretrained.missing_files(place, kind):
        raise ConfigError(f"{use.field}: {use.model} is no {kind.name}: it lacks {', '.join(missing)}")
    return Fetched(use.field, use.model, f"commit {place.name[:12]}", _list(place))


def _cache(to: Path | None) -> Path | None:
    """Return the cache of the hub in the target; None for that of this machine."""
    return to / _HUB if to else None


def _download_pipeline(name: str, revision: str | None, cache: Path | None) -> Path:
    """Fetch the files that `load_pipeline` opens, by the rules of diffusers, and the licence."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    DiffusionPipeline.download(name, revision=revision, cache_dir=cache, **unused)
    texts = ["README.md", "LICENSE*", "model_index.json"]
    return Path(snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=texts))


def _download_all(name: str, revision: str | None, cache: Path | None) -> Path:
    """Fetch all files of a model; weights only once, as safetensors."""
    from huggingface_hub import snapshot_download

    listed = snapshot_download(name, revision=revision, cache_dir=cache, dry_run=True)
    others = _OTHER_FORMATS if any(file.filename.endswith(".safetensors") for file in listed) else ()
    return Path(snapshot_download(name, revision=revision, cache_dir=cache, ignore_patterns=list(others)))


def _is_embedded(source: str) -> bool:
    return source in LAYOUTS and LAYOUTS[source].embedded


def _check_images(job: Job, to: Path | None) -> None:
    """Refuse an image set that is not there."""
    source = job.ingest.source
    if source.startswith(hub.SCHEME):
        if not _download_images(job, to, dry_run=True):
            raise ConfigError(f"ingest.source: {public(source)} has no file; name a folder that its page shows")
    elif not _is_embedded(source):
        _find("ingest.source", source)


def _fetch_images(job: Job, to: Path | None) -> Fetched:
    settings, source = job.ingest, job.ingest.source
    if _is_embedded(source):
        return Fetched("ingest.source", source, "in the package")
    if not source.startswith(hub.SCHEME):
        return _copy("ingest.source", source, to, settings.follow_links)
    folder = Path(_download_images(job, to))
    inside = folder / hub.place_of(source, settings.revision).folder
    return Fetched("ingest.source", public(source), f"commit {folder.name[:12]}", _list(inside))


def _download_images(job: Job, to: Path | None, dry_run: bool = False) -> Any:
    """Fetch an image set of the hub, and return its folder; with `dry_run` only the list of its files."""
    from huggingface_hub import snapshot_download

    source = job.ingest.source
    with _naming("ingest.source", source, hub.fix(source)):
        place = hub.place_of(source, job.ingest.revision)
        return snapshot_download(
            place.repository,
            repo_type=place.kind,
            revision=place.revision or None,
            allow_patterns=hub.patterns(place),
            cache_dir=_cache(to),
            dry_run=dry_run,
        )


def _fetch_teacher(network: str, to: Path | None) -> Fetched:
    from vlcp_ray.stages.teach import checkpoint

    with _naming("teach.checkpoint", teach.TORCHVISION):
        file = checkpoint.fetch(network, str(to / _TORCH) if to else "")
    return Fetched("teach.checkpoint", f"torchvision {network}", f"sha256 {file.stem[-8:]}", [file])


def _copy(field: str, source: str, to: Path | None, follow_links: bool = True) -> Fetched:
    """Copy a file or folder of this machine or of a store into the target.

    Args:
        follow_links: whether files of a local folder are copied to which links from it lead.
    """
    name, (filesystem, info) = public(source), _find(field, source)
    if to is None:
        place = "read from its store" if "://" in source else "on this machine"
        return Fetched(field, name, place)
    path = info.path
    limit = limit_of(filesystem, path, follow_links)
    found = [File(path, int(info.size or 0))] if info.is_file else files.list_files(filesystem, path, recursive=True)
    found = [file for file in found if not leaves(file.path, limit)]
    target = to / field / path.rpartition("/")[2]
    places = {file: target / file.path[len(path) + 1 :] if not info.is_file else target for file in found}
    new = [file for file, place in places.items() if not place.exists() or place.stat().st_size != file.size]
    _check_space(to, sum(file.size for file in new))
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda file: _copy_file(filesystem, file, places[file]), new))
    return Fetched(field, name, "copied", sorted(places.values()), str(target))


def _find(field: str, source: str) -> tuple[pafs.FileSystem, pafs.FileInfo]:
    """Find a file or folder of this machine or of a store."""
    try:
        filesystem, path = open_uri(source, field)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise ConfigError(f"{field}: there is no {public(source)}; name a folder, a file or a URI")
    return filesystem, info


def _copy_file(filesystem: pafs.FileSystem, file: File, place: Path) -> None:
    retry(lambda: files.download(filesystem, file, place), f"read {file.path}")


def _check_space(to: Path, needed: int) -> None:
    to.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(to).free
    if needed > free:
        raise ConfigError(
            f"--to {to}: {format_gib(needed / 2**30)} are to be copied, and {format_gib(free / 2**30)} are free; name "
            "another folder"
        )


def _list(place: Path) -> list[Path]:
    """List the files of a snapshot."""
    if place.is_file():
        return [place]
    return sorted(file for file in place.rglob("*") if file.is_file())


@contextmanager
def _naming(field: str, name: str, fix: str = "") -> Iterator[None]:
    """Turn the errors of the hub, of HTTP and of the network into one that names the setting and the fix."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # each library has its own
        said = getattr(error, "server_message", None) or str(error).strip()
        reason = next(iter(said.splitlines()), type(error).__name__)
        more = fix.partition("; without internet")[0] or (
            "check its name and the network; if it is gated or private, accept its terms on its page and log in with "
            "hf auth login, or set HF_TOKEN"
        )
        raise ConfigError(redact(f"{field}: {public(name)} cannot be fetched: {reason}; {more}")) from error
