"""A small real job as a process of its own that can be watched, disturbed and compared with an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from vlcp_ray.config import load_job
from vlcp_ray.demo import digits
from vlcp_ray.pipeline import graph
from vlcp_ray.store import MANIFEST, Step, Store

JOB = Path(__file__).parents[2] / "jobs" / "digits.toml"
#: Descriptions by the real tiny LLaVA in vLLM, and small everywhere.
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
_LIMIT = 400.0  # seconds for anything to happen


class Run:
    """The driver of a job in a process of its own, with its output in a file."""

    def __init__(self, root: Path, scale: Path, *more: str, address: str | None = None) -> None:
        self.root, self.log = root, root.with_suffix(f".{time.monotonic_ns()}.log")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        sets = [part for override in overrides(root) for part in ("--set", override)]
        command = [sys.executable, "-m", "vlcp_ray.cli", "run", str(JOB), f"--root={root}", f"--scale={scale}"]
        joins = {"RAY_ADDRESS": address} if address else {}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *sets, *more], stdout=log, stderr=subprocess.STDOUT, env=environment | joins
            )

    def until(self, happened: Callable[[], object]) -> None:
        """Wait for something that happens while the run goes on."""
        end = time.monotonic() + _LIMIT
        while not happened():
            assert self.process.poll() is None, f"the run ended too soon:\n{self.said()}"
            assert time.monotonic() < end, f"it never happened:\n{self.said()}"
            time.sleep(0.01)

    def code(self) -> int:
        """Wait for the end."""
        return self.process.wait(_LIMIT)

    def kill(self) -> None:
        """End the driver as a machine does that dies."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text()[-6000:]


def write_scale(folder: Path, workers: int = 2, cpus: int = 2) -> Path:
    """A scale file of two ranks: their number decides the sums of fine-tuning, all others nothing."""
    path = folder / f"scale-{workers}-{cpus}.toml"
    path.write_text(SCALE.format(workers=workers, cpus=cpus))
    return path


def write_images(folder: Path) -> Path:
    """Some of the digits 0, 1 and 2 as an image folder; the last one of train is broken."""
    counts: dict[tuple[str, str], int] = {}
    for row in digits.rows():
        place = (row["split"], row["class_name"])
        counts[place] = counts.get(place, 0) + 1
        if row["label"] < 3 and counts[place] <= (120 if row["split"] == "train" else 20):
            path = folder / row["split"] / row["class_name"] / f"{counts[place]:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"] if (row["split"], counts[place]) != ("train", 120) else b"broken")
    return folder


def overrides(root: Path) -> list[str]:
    """The job's images lie beside every root."""
    return [*OVERRIDES, f"ingest.source={root.parent / 'images'}"]


def steps(root: Path) -> tuple[Step, ...]:
    return graph(load_job(JOB, overrides(root)))


def begun(root: Path, stage: str, table: str) -> bool:
    """Whether a stage is in the middle: a part of a table is there, and an artifact has no seal."""
    found = [path for path in root.glob(f"{stage}-*") if any(path.glob(f"{table}/[!.]*"))]
    return bool(found) and any(not (path / MANIFEST).exists() for path in root.glob(f"{stage}-*"))


def sealed(root: Path, stage: str) -> bool:
    """Whether all artifacts of a stage are complete."""
    return all(
        (root / f"{step.stage}-{step.fingerprint}" / MANIFEST).exists() for step in steps(root) if step.stage == stage
    )


def tables(root: Path, stage: str = "") -> dict[str, pa.Table]:
    """All rows of all tables, or of one stage's, sorted; without the seconds that a trial took."""
    found = {}
    for step in steps(root):
        for name in TABLES.get(step.stage, ()) if stage in ("", step.stage) else ():
            table = pa.concat_tables(_files(Store.at(str(root)), step, name)).combine_chunks()
            found[f"{step.title} {name}"] = table.sort_by(table.column_names[0])
    return found


def _files(store: Store, step: Step, name: str) -> Iterator[pa.Table]:
    artifact = store.artifact(step)
    table = artifact.table(name, pa.schema([]))
    yield table.drop_columns([column for column in ("seconds",) if column in table.column_names])


def assert_equal(root: Path, calm: dict[str, pa.Table]) -> None:
    """Everything sealed, every row there once, every table that of the undisturbed run; rows in = out + rejected."""
    store = Store.at(str(root))
    for step in steps(root):
        manifest = store.artifact(step).manifest()
        assert manifest is not None, step.title
        assert manifest["rows_in"] == manifest["rows"] + manifest["rejected"], step.title
    made = tables(root)
    assert made.keys() == calm.keys()
    assert [name for name in calm if not made[name].equals(calm[name])] == []


def children(pid: int) -> dict[int, str]:
    """What a process has started, and they again, by their number: the title that each has given itself."""
    parents, titles = {}, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, level = {}, {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level and child not in found}
        found |= {child: titles.get(child, "") for child in level}
    return found


def resident(pid: int) -> int:
    """Pages of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def kill_one(pid: int, title: str) -> bool:
    """Kill one of a process's descendants whose title holds a word; says whether there was one."""
    for child, found in children(pid).items():
        if title in found:
            os.kill(child, signal.SIGKILL)
            return True
    return False
