"""A small real job in a process of its own, which tests watch, disturb, and compare with an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tests.s3 import BUCKET, Server
from vlcp_ray.config import load_job
from vlcp_ray.demo import digits
from vlcp_ray.pipeline import graph
from vlcp_ray.store.artifact import MANIFEST, Step, Store
from vlcp_ray.store.files import list_files
from vlcp_ray.store.verify import compare_all

JOB = Path(__file__).parents[2] / "jobs" / "digits.toml"
#: Captions are made by the tiny LLaVA in vLLM; everything else is small.
OVERRIDES = (
    "ipc=[2,4]",
    "finetune.epochs=3",
    "generate.num_inference_steps=10",
    "evaluate.width=8",
    "evaluate.epochs=20",
    "evaluate.full_epochs=2",
    "evaluate.repeats=2",
)
TABLES = {
    "ingest": ("images",),
    "pair": ("pairs",),
    "prototype": ("prototypes", "members"),
    "generate": ("synthetic",),
    "select": ("synthetic",),
    "evaluate": ("scores",),
}
SCALE = """
rows_per_block = 32
[caption]
num_cpus = {cpus}
batch_size = 32
[encode]
batch_size = 32
[finetune]
num_workers = 2
gradient_checkpointing = false
checkpoint_minutes = 0
[ingest]
num_workers = {workers}
[prototype]
num_workers = {workers}
[generate]
num_workers = {workers}
batch_size = 32
[evaluate]
num_workers = {workers}
"""
_TIMEOUT = 900.0  # seconds; a run takes some minutes on 2 cores, more where every request to the store waits


@dataclass(frozen=True)
class S3Root:
    """A root on an S3 server, with the images beside it.

    Args:
        folder: local, for the output of the drivers.
        server: as the tests read it.
        proxy: as the drivers and their workers reach it.
    """

    name: str
    folder: Path
    server: Server
    proxy: Server

    def __str__(self) -> str:
        return f"s3://{BUCKET}/{self.name}"


Root = Path | S3Root


class Run:
    """The driver of a job in a process of its own, with its output in a file."""

    def __init__(
        self,
        root: Root,
        scale: Path,
        *more: str,
        address: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        local = root if isinstance(root, Path) else root.folder / root.name
        self.root, self.log = root, local.with_suffix(f".{time.monotonic_ns()}.log")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        sets = [part for override in overrides(root) for part in ("--set", override)]
        command = [sys.executable, "-m", "vlcp_ray", "run", str(JOB), f"--root={root}", f"--scale={scale}"]
        environment |= ({"RAY_ADDRESS": address} if address else {}) | dict(variables or {})
        environment |= root.proxy.environment() if isinstance(root, S3Root) else {}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *sets, *more], stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true, which must happen before the run ends."""
        end = time.monotonic() + _TIMEOUT
        while not condition():
            assert self.process.poll() is None, f"the run ended too early:\n{self.output()}"
            assert time.monotonic() < end, f"the condition is still false:\n{self.output()}"
            time.sleep(0.01)

    def exit_code(self) -> int:
        """Wait for the end of the run."""
        return self.process.wait(_TIMEOUT)

    def kill(self) -> None:
        """Kill the driver without notice, like a machine that dies."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def output(self) -> str:
        """The end of the output."""
        return self.log.read_text()[-6000:]


def write_scale(folder: Path, workers: int = 2, cpus: int = 2) -> Path:
    """Write a scale file with two ranks: only their number changes results, by the order of sums in fine-tuning."""
    path = folder / f"scale-{workers}-{cpus}.toml"
    path.write_text(SCALE.format(workers=workers, cpus=cpus))
    return path


def write_images(folder: Path) -> Path:
    """Write some of the digits 0, 1 and 2 as an image folder; the last train image of each class is broken."""
    counts: dict[tuple[str, str], int] = {}
    for row in digits.rows():
        key = (row["split"], row["class_name"])
        counts[key] = counts.get(key, 0) + 1
        if row["label"] < 3 and counts[key] <= (120 if row["split"] == "train" else 20):
            path = folder / row["split"] / row["class_name"] / f"{counts[key]:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"] if (row["split"], counts[key]) != ("train", 120) else b"broken")
    return folder


def overrides(root: Root) -> list[str]:
    """The overrides of the job; its images are beside every root."""
    images = root.parent / "images" if isinstance(root, Path) else f"s3://{BUCKET}/images"
    return [*OVERRIDES, f"ingest.source={images}"]


def steps(root: Root) -> tuple[Step, ...]:
    return graph(load_job(JOB, overrides(root)))


def open_store(root: Root) -> Store:
    """Open the root for the test itself, without the faults that drivers meet."""
    return Store.at(str(root) if isinstance(root, Path) else root.server.uri(root.name))


def is_under_way(root: Root, stage: str, table: str) -> bool:
    """Whether a stage has written a part of a table, and one of its artifacts is not complete."""
    store = open_store(root)
    paths = [file.path[len(store.path) + 1 :] for file in list_files(store.filesystem, store.path, recursive=True)]
    mine = [path for path in paths if path.startswith(f"{stage}-")]
    complete = {path.partition("/")[0] for path in mine if path.endswith(f"/{MANIFEST}")}
    return any(f"/{table}/" in path for path in mine) and {path.partition("/")[0] for path in mine} > complete


def is_complete(root: Root, stage: str) -> bool:
    """Whether all artifacts of a stage are complete."""
    wanted = [step for step in steps(root) if step.stage == stage]
    manifests = open_store(root).manifests(wanted)
    return all(manifests.get(step.fingerprint) for step in wanted)


def read_tables(root: Root, stage: str = "") -> dict[str, pa.Table]:
    """Read all tables, or those of one stage, sorted and without the seconds of each trial."""
    tables, store = {}, open_store(root)
    for step in steps(root):
        for name in TABLES.get(step.stage, ()) if stage in ("", step.stage) else ():
            table = store.artifact(step).table(name, pa.schema([])).combine_chunks()
            table = table.drop_columns([column for column in ("seconds",) if column in table.column_names])
            tables[f"{step.title} {name}"] = table.sort_by(table.column_names[0])
    return tables


def assert_equal(root: Root, undisturbed: dict[str, pa.Table]) -> None:
    """Check that all artifacts are complete, with the files that they list, no row lost and equal tables."""
    store = open_store(root)
    manifests = store.manifests(steps(root))
    for step in steps(root):
        manifest = manifests.get(step.fingerprint)
        assert manifest, step.title
        assert manifest["rows_in"] == manifest["rows"] + manifest["rejected"], step.title
    compared = list(compare_all(store, steps(root), manifests, contents=True))
    assert [line for one in compared for line in one.lines()] == []
    tables = read_tables(root)
    assert tables.keys() == undisturbed.keys()
    assert [name for name in undisturbed if not tables[name].equals(undisturbed[name])] == []


def children(pid: int) -> dict[int, str]:
    """The titles of all descendants of a process, by process id."""
    parents, titles = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(process.name)] = (
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except (FileNotFoundError, ProcessLookupError):
                continue
    descendants: dict[int, str] = {}
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level and child not in descendants}
        descendants |= {child: titles.get(child, "") for child in level}
    return descendants


def resident(pid: int) -> int:
    """Resident memory of a process, in pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def kill_one(pid: int, title: str) -> bool:
    """Kill one descendant of a process whose title contains the given one, and return whether there was one."""
    for child, child_title in children(pid).items():
        if title in child_title:
            os.kill(child, signal.SIGKILL)
            return True
    return False
