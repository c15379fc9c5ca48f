"""Run three real image sets through ingest, pair, prototype and generate with the demo's models, and check the counts.

    python -m tests.check_data                  all three, into a temporary folder
    python -m tests.check_data imagenet         one of them
    python -m tests.check_data --keep FOLDER    and keep the artifacts

The tiny models were not trained on photographs, but counts, shapes, names and texts must be right all the same.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from tests.image_sets import SHARED
from vlcp_ray.config import Job, load_job
from vlcp_ray.images import decode
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import IMAGES, SYNTHETIC
from vlcp_ray.stages.prototype import MEMBERS, prototypes_schema
from vlcp_ray.store.artifact import Store

STAGES = ("ingest", "pair", "finetune", "prototype", "generate")
JOBS = Path(__file__).parents[1] / "jobs"
TINY = {
    "base_model": "demo/stable_diffusion",
    "caption.model": "demo/llava",
    "caption.max_tokens": 64,
    "caption.max_model_len": 512,
    "seeds": "[0]",
    "encode.train_resolution": 32,
    "finetune.epochs": 1,
    "finetune.mixed_precision": "no",
    "generate.strength": 0.2,
    "ingest.val_fraction": 0,
}


@dataclass(frozen=True)
class RealSet:
    """A set of the shared data: its job, its folder, its overrides, and the expected counts."""

    job: str
    source: str
    settings: dict[str, object]
    train: int
    val: int
    classes: int


SETS = {
    "cifar10": RealSet("cifar10", "cifar10", {"encode.resolution": 32, "ipc": "[10]"}, 8000, 2000, 10),
    "tiny": RealSet("tiny-imagenet", "tiny-imagenet-20", {"encode.resolution": 64, "ipc": "[10]"}, 10_000, 1000, 20),
    "imagenet": RealSet(
        "imagenet1k",
        "imagenet-sample",
        {"encode.resolution": 512, "ipc": "[1]", "generate.num_inference_steps": 5},
        120,
        0,
        120,
    ),
}


def main() -> int:
    """Run the chosen sets, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        for name in chosen.sets:
            run(SETS[name], folder / name)
    return 0


def run(real: RealSet, folder: Path) -> None:
    """Distil one set with a process for each stage, check its artifacts, and print time and memory of each stage."""
    arguments = arguments_for(real, folder)
    peaks = {stage: _run_to(stage, arguments) for stage in STAGES}
    job = load_job(arguments[0], [a.removeprefix("--set=") for a in arguments if a.startswith("--set=")])
    check_prototypes(job, real, Store.at(str(folder / "runs")))
    check_synthetic(job, real, Store.at(str(folder / "runs")))
    for step in graph(job):
        manifest = Store.at(str(folder / "runs")).artifact(step).manifest()
        if manifest:
            rate = manifest["rows_in"] / manifest["seconds"]
            speed = f"{manifest['rows_in']:>7,} rows {manifest['seconds']:>7.1f} s {rate:>8.1f} rows/s"
            machine, driver = peaks[step.stage]
            print(f"{step.title:<32} {speed}, peak {machine:.1f} GiB, of which the driver {driver:.2f}")


def _run_to(stage: str, arguments: list[str]) -> tuple[float, float]:
    """Run the job up to a stage, and return the peak GiB of the machine (beyond its use before) and of the driver."""
    driver = subprocess.Popen([sys.executable, "-m", "vlcp_ray", "run", *arguments, "--to", stage])
    before, machine_peak, driver_peak = _used(), 0.0, 0.0
    while driver.poll() is None:
        machine_peak = max(machine_peak, _used() - before)
        driver_peak = max(driver_peak, _resident(driver.pid))
        time.sleep(0.5)
    if driver.returncode:
        raise SystemExit(f"{stage}: the run ended with {driver.returncode}")
    return machine_peak, driver_peak


def arguments_for(real: RealSet, folder: Path) -> list[str]:
    """Return the arguments of the command line for a set."""
    settings = TINY | {"ingest.source": _source(real, folder)} | real.settings
    return [
        str(JOBS / f"{real.job}.toml"),
        *(f"--set={name}={value}" for name, value in settings.items()),
        "--root",
        str(folder / "runs"),
    ]


def check_prototypes(job: Job, real: RealSet, store: Store) -> None:
    """Compare counts, names and texts of IMAGES, PAIRS and PROTOTYPES with those of the set."""
    steps = {step.stage: store.artifact(step) for step in graph(job)}
    images = steps["ingest"].table("images", IMAGES, ["image_id", "label", "class_name", "split"])
    _check_equal("train images", pc.sum(pc.equal(images["split"], "train")).as_py(), real.train)
    _check_equal("val images", pc.sum(pc.equal(images["split"], "val")).as_py(), real.val)
    _check_equal("classes", len(pc.unique(images["class_name"])), real.classes)
    pairs = steps["pair"].table("pairs", IMAGES, ["image_id", "class_name", "caption"])
    _check_equal("pairs", len(pairs), real.train)
    _check_equal("ids of the pairs", set(pairs["image_id"].to_pylist()) <= set(images["image_id"].to_pylist()), True)
    _check_equal("empty captions", pc.sum(pc.equal(pairs["caption"], "")).as_py(), 0)
    (ipc,) = job.ipc
    prototypes = steps["prototype"].table("prototypes", prototypes_schema((1, 1, 1)), ["label", "size", "text"])
    members = steps["prototype"].table("members", MEMBERS)
    _check_equal("prototypes", len(prototypes), real.classes * ipc)
    _check_equal("members", len(members), real.train)
    inliers = pc.sum(pc.not_equal(members["cluster"], -1)).as_py()
    _check_equal("sizes of the clusters", pc.sum(prototypes["size"]).as_py(), inliers)
    _check_equal("empty texts", pc.sum(pc.equal(prototypes["text"], "")).as_py(), 0)


def check_synthetic(job: Job, real: RealSet, store: Store) -> None:
    """Compare counts, sizes and class names of the synthetic images with those of the set."""
    steps = {step.stage: store.artifact(step) for step in graph(job)}
    images = steps["ingest"].table("images", IMAGES, ["label", "class_name"])
    (ipc,) = job.ipc
    synthetic = steps["generate"].table("synthetic", SYNTHETIC)
    _check_equal("synthetic images", len(synthetic), real.classes * ipc)
    sizes = {decode(image).size for image in synthetic["image"].to_pylist()}
    _check_equal("their sizes", sizes, {(job.generate.image_size, job.generate.image_size)})
    names = {row["label"]: row["class_name"] for row in images.select(["label", "class_name"]).to_pylist()}
    synthetic_names = {row["label"]: row["class_name"] for row in synthetic.select(["label", "class_name"]).to_pylist()}
    _check_equal("their names", synthetic_names, names)


def _check_equal(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise SystemExit(f"{name}: {value}, expected {expected}")


def _source(real: RealSet, folder: Path) -> Path:
    """Return the folder of a set, unpacked into `folder` where it is an archive."""
    source = SHARED / real.source
    archive = source.with_name(f"{source.name}.tar")
    if archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder / real.source
    if not source.exists():
        raise SystemExit(f"{source} does not exist")
    return source


def _used() -> float:
    """Return the memory in use on this machine in GiB."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    values = {line[0]: int(line[1]) for line in lines}
    return (values["MemTotal:"] - values["MemAvailable:"]) / 2**20


def _resident(pid: int) -> float:
    """Return the resident memory of a process in GiB, 0 after its end."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(sizes[0]) / 2**20 if sizes else 0.0


if __name__ == "__main__":
    sys.exit(main())
