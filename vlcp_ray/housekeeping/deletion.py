"""Delete the artifacts that no job needs: only files that a stage has written, and the manifest first."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pyarrow import fs as pafs

from vlcp_ray.housekeeping.root import Folder, Root, read_root
from vlcp_ray.stages import STAGES
from vlcp_ray.store.artifact import MANIFEST, Manifest, Store
from vlcp_ray.store.files import File
from vlcp_ray.store.lease import acquire_deletion

#: A file whose writing was interrupted (see `store.files.temporary`).
_TEMPORARY: Final = re.compile(r"\..*\.[0-9a-f]{32}")
#: The table of rejected rows is deleted after the others: it makes no row of them.
_LAST: Final = ("rejected",)


@dataclass(frozen=True)
class Deletion:
    """An artifact that can be deleted.

    Args:
        files: of a stage, with paths below the folder, in the order in which they are deleted.
        foreign: paths of the other files, which stay.
    """

    folder: Folder
    files: tuple[str, ...]
    foreign: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What can be deleted under a root, and a line for each artifact that no job needs and that stays all the same."""

    root: Root
    deletions: Sequence[Deletion]
    kept: Sequence[str]


def plan(store: Store, needed: Collection[str]) -> Plan:
    """Find the artifacts that no job needs.

    What a live run makes or reads stays, and so do folders with the name of an artifact that no stage has written.

    Args:
        needed: the names of the artifacts of all jobs that are kept.
    """
    root = read_root(store)
    others = [folder for name, folder in root.folders.items() if name not in needed]
    manifests = root.manifests([folder.name for folder in others if folder.is_complete])
    deletions, kept = list[Deletion](), list[str]()
    for folder in others:
        found = _find_files(root, folder, manifests.get(folder.name))
        if folder.fingerprint in root.running | root.read:
            does = "makes" if folder.fingerprint in root.running else "reads"
            kept.append(f"{folder.name}: a run that is alive {does} it")
        elif isinstance(found, str):
            kept.append(f"{folder.name}: {found}")
        else:
            deletions.append(found)
            kept += [f"{folder.name}/{path}: no stage has written it" for path in found.foreign]
    return Plan(root, deletions, kept)


def delete(store: Store, planned: Plan) -> Iterator[tuple[Deletion, str]]:
    """Delete what was planned, and yield each artifact with "" or with the reason for which it stays.

    Of an artifact the manifest is deleted first, then the files by which a stage knows what is done, then its tables:
    an artifact of which a part is left is not complete, and a run that resumes it makes what is missing.

    Raises:
        LeaseConflictError: a run has begun to make or to read one of them.
    """
    titles = {one.folder.fingerprint: one.folder.name for one in planned.deletions}
    with acquire_deletion(store, titles):
        now = read_root(store)
        for one in planned.deletions:
            folder = now.folders.get(one.folder.name)
            if folder != one.folder:
                yield one, "it has changed meanwhile"
                continue
            _delete_files(now, one)
            yield one, ""


def _find_files(root: Root, folder: Folder, manifest: Manifest | None) -> Deletion | str:
    """Return the files of an artifact that a stage has written, or why the folder is not an artifact of ours."""
    place = _real(root, folder.name)
    if problem := _problem_of(folder, manifest) or ("it is a link" if place and _is_link(root, folder.name) else ""):
        return problem
    names, listed = _names(folder.stage), (manifest or {}).get("files", {})
    own, foreign = list[str](), list[str]()
    for path in (file.path for file in folder.files):
        is_known = path in listed or path.partition("/")[0] in names
        is_linked = bool(place) and os.path.realpath(f"{place}/{path}") != f"{place}/{path}"
        (own if is_known and not is_linked else foreign).append(path)
    if foreign and not folder.is_complete:
        return f"no stage has written {foreign[0]}"
    order = {name: number for number, name in enumerate(names)}
    own.sort(key=lambda path: (order.get(path.partition("/")[0], 1), path))
    return Deletion(folder, tuple(own), tuple(foreign))


def _problem_of(folder: Folder, manifest: Manifest | None) -> str:
    """Return what is wrong with the manifest of a complete artifact, or ""."""
    if not folder.is_complete:
        return ""
    if manifest is None:
        return "its manifest cannot be read; remove the folder by hand if nobody needs it"
    is_own = (manifest.get("stage"), manifest.get("fingerprint")) == (folder.stage, folder.fingerprint)
    return "" if is_own else "its manifest is of something else"


def _names(stage: str) -> tuple[str, ...]:
    """Return the names of what a stage writes, in the order in which it is deleted."""
    written = STAGES[stage].files
    records = [name for name in written if name not in _LAST]
    return (MANIFEST, *records, *STAGES[stage].tables, *(name for name in written if name in _LAST))


def _is_link(root: Root, name: str) -> bool:
    return os.path.islink(f"{root.store.path}/{name}")


def _real(root: Root, name: str) -> str | None:
    """Return the real path of a folder on a local disk; None on other stores, which have no links."""
    is_local = isinstance(root.store.filesystem, pafs.LocalFileSystem)
    return os.path.realpath(f"{root.store.path}/{name}") if is_local else None


def _delete_files(root: Root, one: Deletion) -> None:
    artifact = root.artifact(one.folder.name)
    groups = dict[str, list[File]]()
    for path in one.files:
        groups.setdefault(path.partition("/")[0], []).append(File(f"{artifact.path}/{path}", 0))
    for group in groups.values():  # in their order: one is gone before the next is begun
        artifact.delete_files(group)
    if _real(root, one.folder.name) is not None:
        _delete_empty(artifact.path)
    elif root.store.filesystem.type_name != "s3" and not one.foreign:
        with suppress(OSError):  # where folders are no files of their own there is none left
            artifact.filesystem.delete_dir(artifact.path)


def _delete_empty(path: str) -> None:
    """Delete a local folder with its folders, as far as nothing is in them but files whose writing was interrupted."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            if _TEMPORARY.fullmatch(name):
                os.unlink(f"{folder}/{name}")
        with suppress(OSError):  # something of others is in it
            os.rmdir(folder)
