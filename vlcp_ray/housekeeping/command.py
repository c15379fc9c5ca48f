"""The commands `ls` and `gc`: show what is under a root, and delete what no job needs after asking."""

import sys
from collections.abc import Mapping, Set
from pathlib import Path

from pyarrow import fs as pafs

from vlcp_ray.cost.requirements import format_gib
from vlcp_ray.housekeeping import deletion
from vlcp_ray.housekeeping.root import NAME, artifact_table, find_runs, read_root, table
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import report
from vlcp_ray.store.artifact import Store


def ls(store: Store, artifacts: bool) -> int:
    """Print the runs under a root.

    Args:
        artifacts: print every artifact, too.
    """
    _check_exists(store)
    root = read_root(store)
    if not root.folders and not root.others:
        print(f"nothing is under {store.path}")
        return 0
    for line in table(root, find_runs(root), artifacts):
        print(printable(line))
    return 0


def _check_exists(store: Store) -> None:
    """Refuse a root that is not there: a name that is mistyped."""
    if isinstance(store.filesystem, pafs.LocalFileSystem) and not Path(store.path).is_dir():
        raise ConfigError(f"ROOT {store.path}: there is no such folder; give the --root of your runs")


def is_report(name: str) -> bool:
    """Return whether a JOB of `gc` is the name of a report's folder."""
    found = NAME.fullmatch(name)
    return found is not None and found[1] == report.STAGE.name


def needs_of_report(store: Store, name: str) -> frozenset[str]:
    """Return the names of a report and of the artifacts from which it was made.

    Raises:
        ConfigError: there is no complete report of that name.
    """
    root = read_root(store)
    found = next((run.needs for run in find_runs(root) if run.report == name), None)
    if found is None:
        raise ConfigError(
            f"JOB {name}: there is no complete report of that name under {store.path}; vlcp-ray ls lists them"
        )
    return found


def gc(store: Store, needed: Mapping[str, Set[str]], yes: bool) -> int:
    """Delete the artifacts that no job needs.

    Args:
        needed: the names of the artifacts of each job that is kept.
        yes: do not ask.

    Raises:
        ConfigError: a job keeps nothing, or nobody can be asked.
        LeaseConflictError: a run has begun to make or to read one of the artifacts.
    """
    if yes and not needed:
        raise ConfigError("--yes: without a job file every artifact would be deleted; name the jobs that are kept")
    _check_exists(store)
    planned = deletion.plan(store, frozenset[str]().union(*needed.values()))
    _check_needed(planned, needed, store.path)
    for line in planned.kept:
        print(printable(f"stays: {line}"))
    if not planned.deletions:
        print(f"nothing to delete under {store.path}")
        return 0
    folders = [one.folder for one in planned.deletions]
    print(*map(printable, artifact_table(planned.root, folders, find_runs(planned.root))), sep="\n")
    size = format_gib(sum(folder.bytes for folder in folders) / 2**30)
    jobs = f", needed by none of: {', '.join(needed)}" if needed else ""
    print(printable(f"\n{len(folders)} artifacts, {size}, under {store.path}{jobs}", keep="\n"))
    if not yes and not _ask():
        print("nothing was deleted")
        return 0
    _delete(store, planned)
    return 0


def _check_needed(planned: deletion.Plan, needed: Mapping[str, Set[str]], path: str) -> None:
    for job, names in needed.items():
        if not names & planned.root.folders.keys():
            raise ConfigError(
                f"JOB {job}: none of its artifacts is under {path}, so that naming it keeps nothing: give the same "
                "--set and call from the same folder as its runs, or leave it out"
            )


def _ask() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            "--yes: gc asks before it deletes, and the input is no terminal: nothing was deleted; give --yes"
        )
    try:
        return input("Delete them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _delete(store: Store, planned: deletion.Plan) -> None:
    gone = list[deletion.Deletion]()
    for one, problem in deletion.delete(store, planned):
        if problem:
            print(printable(f"stays: {one.folder.name}: {problem}"))
        else:
            gone.append(one)
    size = format_gib(sum(one.folder.bytes for one in gone) / 2**30)
    print(f"deleted {len(gone)} artifacts, {size}")
