"""List what is under a root: runs, artifacts and other files, with sizes, states and dates; with few requests."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from vlcp_ray.cost.requirements import format_gib
from vlcp_ray.monitoring import logfiles
from vlcp_ray.stages import STAGES, report
from vlcp_ray.store import files
from vlcp_ray.store.artifact import MANIFEST, THREADS, Artifact, Manifest, Store
from vlcp_ray.store.files import DatedFile
from vlcp_ray.store.io import StoreError, retry
from vlcp_ray.store.lease import active_leases

#: The name of an artifact's folder: its stage and its fingerprint.
NAME: Final = re.compile(rf"({'|'.join(STAGES)})-([0-9a-f]{{12}})")
#: The first line of a log, and the most bytes of it that are read.
_HEADER: Final = re.compile(rb': (\{"makes": .*\})')
_HEADER_BYTES: Final = 2**18


@dataclass(frozen=True)
class Folder:
    """A folder that has the name of an artifact.

    Args:
        name: stage and fingerprint, as below the root.
        files: their paths below the folder, sizes and dates; without hidden ones.
    """

    name: str
    files: tuple[DatedFile, ...]

    @property
    def stage(self) -> str:
        return self.name.partition("-")[0]

    @property
    def fingerprint(self) -> str:
        return self.name.partition("-")[2]

    @property
    def is_complete(self) -> bool:
        return any(file.path == MANIFEST for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def modified(self) -> float:
        return max((file.modified for file in self.files), default=0.0)


@dataclass(frozen=True)
class Run:
    """A run of a job: its report with all that the report is made from, or what its logs say that it makes.

    Args:
        name: of the job.
        report: the folder of its report; "" while there is none.
        needs: names of the artifacts, that of the report included.
    """

    name: str
    report: str
    needs: frozenset[str]


@dataclass(frozen=True)
class Root:
    """What is under a root.

    Args:
        folders: by name.
        others: the other files, with paths below the root.
        running, read: the fingerprints that live runs make, and those that they need.
    """

    store: Store
    folders: Mapping[str, Folder]
    others: Sequence[DatedFile]
    running: frozenset[str]
    read: frozenset[str]

    def artifact(self, name: str) -> Artifact:
        """Return the artifact of a folder."""
        return Artifact(self.store.filesystem, f"{self.store.path}/{name}")

    def state(self, folder: Folder) -> str:
        """Return whether an artifact is complete, is being made (running), or was started only."""
        if folder.is_complete:
            return "complete"
        return "running" if folder.fingerprint in self.running else "started"

    def manifests(self, names: Sequence[str]) -> dict[str, Manifest]:
        """Read the manifests of complete artifacts at the same time; damaged ones are left out."""
        with ThreadPoolExecutor(THREADS) as threads:
            found = threads.map(self._manifest, names)
            return {name: manifest for name, manifest in zip(names, found, strict=True) if manifest}

    def _manifest(self, name: str) -> Manifest | None:
        try:
            return self.artifact(name).manifest()
        except StoreError:
            return None


def read_root(store: Store) -> Root:
    """List a root, and read the leases under it.

    Requests of an object store: one for each 1,000 files, one for the leases, and one for each of them.
    """
    path = store.path
    found = retry(lambda: files.list_dated(store.filesystem, path, recursive=True), f"list {path}")
    listed, others = defaultdict[str, list[DatedFile]](list), list[DatedFile]()
    if store.filesystem.type_name == "local":  # where an empty folder may be left
        listed |= {name: [] for name in files.list_folders(store.filesystem, path) if NAME.fullmatch(name)}
    for file in (file._replace(path=file.path[len(path) + 1 :]) for file in found):
        name, _, inner = file.path.partition("/")
        if inner and NAME.fullmatch(name):
            listed[name].append(file._replace(path=inner))
        else:
            others.append(file)
    leases = [lease for lease in active_leases(store) if lease.is_alive]
    folders = {name: Folder(name, tuple(listed[name])) for name in sorted(listed)}
    running = frozenset(one for lease in leases for one in lease.makes)
    return Root(store, folders, others, running, frozenset(one for lease in leases for one in lease.reads))


def find_runs(root: Root) -> list[Run]:
    """Find the runs under a root: one for each complete report, and those whose logs are newer than their reports.

    Requests of an object store: one for each report, and one for each newer log.
    """
    reports = [name for name, one in root.folders.items() if one.stage == report.STAGE.name and one.is_complete]
    runs = []
    for name, manifest in root.manifests(reports).items():
        inputs, settings = (manifest.get(field) for field in ("inputs", "settings"))
        if isinstance(inputs, dict) and isinstance(settings, dict):  # as every stage writes them
            runs.append(Run(str(settings.get("name")), name, frozenset([name, *map(str, inputs.values())])))
    return [*runs, *_unfinished(root, runs)]


def _unfinished(root: Root, runs: Sequence[Run]) -> Iterator[Run]:
    """Yield the runs without a report: those that logs name, with what they make and no other run of the job needs."""
    newest, logs = defaultdict[str, float](float), defaultdict[str, list[str]](list)
    for run in runs:
        newest[run.name] = max(newest[run.name], root.folders[run.report].modified)
    for file in root.others:
        folder, _, rest = file.path.partition("/")
        name = rest.partition("/")[0]
        if folder == logfiles.FOLDER and file.path.endswith(".log") and file.modified > newest[name]:
            logs[name].append(f"{root.store.path}/{file.path}")
    with ThreadPoolExecutor(THREADS) as threads:
        for name, paths in sorted(logs.items()):
            known = {one for run in runs if run.name == name for one in run.needs}
            made = {one for makes in threads.map(partial(_read_makes, root.store), paths) for one in makes}
            if needs := (made & root.folders.keys()) - known:
                yield Run(name, "", frozenset(needs))


def _read_makes(store: Store, path: str) -> list[str]:
    """Read the names of the artifacts that the first line of a log lists."""
    head = retry(lambda: files.read(store.filesystem, path, _HEADER_BYTES), f"read {path}").partition(b"\n")[0]
    found = _HEADER.search(head)
    try:
        titles = json.loads(found[1])["makes"] if found else []
        return [f"{title.split()[0]}-{title.split()[-1]}" for title in titles]
    except (ValueError, AttributeError, TypeError, IndexError):  # a line that no run has written
        return []


def table(root: Root, runs: Sequence[Run], artifacts: bool = False) -> Iterator[str]:
    """Yield the lines of `vlcp-ray ls`.

    Args:
        artifacts: list every artifact, too.
    """
    width = max([26, *(len(run.name) for run in runs)])
    yield _row(width, "run", "artifacts", "size", "state", "last written", "its report")
    for run in sorted(runs, key=lambda run: _modified(root, run)):
        own = [root.folders[name] for name in run.needs if name in root.folders]
        complete = sum(folder.is_complete for folder in own)
        count = f"{complete} of {len(run.needs)}"
        size = format_gib(sum(folder.bytes for folder in own) / 2**30)
        yield _row(width, run.name, count, size, _state(root, run, own), _date(_modified(root, run)), run.report)
    rest = [one for name, one in root.folders.items() if not any(name in run.needs for run in runs)]
    for text, found in (("in no run", rest), ("all artifacts", list(root.folders.values()))):
        if found:
            size = format_gib(sum(folder.bytes for folder in found) / 2**30)
            date = _date(max(folder.modified for folder in found))
            yield _row(width, text, f"{len(found)}", size, _count_states(root, found), date)
    if root.others:
        size = format_gib(sum(file.size for file in root.others) / 2**30)
        folders = sorted({file.path.partition("/")[0] for file in root.others})
        date = _date(max(file.modified for file in root.others))
        yield _row(width, "other files", f"{len(root.others):,}", size, "", date, ", ".join(folders[:8]))
    if artifacts and root.folders:
        yield ""
        yield from artifact_table(root, list(root.folders.values()), runs)


def artifact_table(root: Root, folders: Sequence[Folder], runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each artifact, with the runs that need it."""
    yield _row(26, "artifact", "files", "size", "state", "last written", "needed by")
    for folder in sorted(folders, key=lambda one: (list(STAGES).index(one.stage), one.modified, one.name)):
        names = ", ".join(sorted({run.name for run in runs if folder.name in run.needs}))
        size = format_gib(folder.bytes / 2**30)
        yield _row(26, folder.name, f"{len(folder.files):,}", size, root.state(folder), _date(folder.modified), names)


def _row(width: int, name: str, count: str, size: str, state: str, date: str, more: str = "") -> str:
    return f"{name:<{width}} {count:>12} {size:>12}  {state:<24} {date:<16}  {more}".rstrip()


def _modified(root: Root, run: Run) -> float:
    """Return when the last file of a run was written: of its report, where there is one."""
    names = [run.report] if run.report else [name for name in run.needs if name in root.folders]
    return max((root.folders[name].modified for name in names), default=0.0)


def _state(root: Root, run: Run, own: Sequence[Folder]) -> str:
    if any(folder.fingerprint in root.running for folder in own):
        return "running"
    if not run.report:
        return "no report yet"
    missing = len(run.needs) - sum(folder.is_complete for folder in own)
    return f"{missing} artifacts missing" if missing else "complete"


def _count_states(root: Root, folders: Sequence[Folder]) -> str:
    states = [root.state(folder) for folder in folders]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))


def _date(seconds: float) -> str:
    """Format a time, in the time zone of this machine."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
