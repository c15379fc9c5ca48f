"""Tests of derived scales on machines with logical GPUs, whose plans move, and of seeds that are tuned side by side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import JOB
from tests.small_job import write_inputs
from vlcp_ray.config import load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.store.artifact import Store
from vlcp_ray.store.files import list_files, read

pytestmark = pytest.mark.faults
PLAN = """
import sys
from pathlib import Path

import ray

from tests.engine.member_rows import artifact, members
from tests.machines import Machines
from vlcp_ray.engine.streaming import RowWork, read, stream
from vlcp_ray.engine.writing import WriteRows
from vlcp_ray.scale import derive
from vlcp_ray.stages.prototype import MEMBERS

cpus, gpus, count, root = *map(int, sys.argv[1:4]), Path(sys.argv[4])
machine = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 2**28}
if count > 1:
    cluster = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**28})
    for _ in range(count):
        cluster.add_node(**machine)
    ray.init(cluster.address, log_to_driver=False)
else:
    ray.init("local", include_dashboard=False, log_to_driver=False, **machine)
cpus, gpus = count * cpus, count * gpus
scale, source, target = derive(cpus, gpus), artifact(root, "source"), artifact(root, "target")
rows = 400 * gpus
for part in range(4):
    source.write_table(f"members/{part}.parquet", members(rows).slice(part * rows // 4, rows // 4))
work = [
    RowWork("tests.engine.test_streaming:Square", {}, pool.model_copy(update={"batch_size": 8}), calls)
    for pool, calls in ((scale.caption, 2), (scale.encode, 1))
]
blocks = stream(read(source, "members"), work, WriteRows({"": target}, "square", "members", MEMBERS), 8, rows)
assert sum(good + bad for good, bad, _ in blocks) == rows
ray.shutdown()  # before the machines, whose end would end this process
if count > 1:
    cluster.shutdown()
"""
TUNE = """
import json, sys
from functools import partial

import ray
from ray.train.torch import TorchConfig

from vlcp_ray.config import load_job
from vlcp_ray.pipeline import run
from vlcp_ray.scale import FinetunePool, Scale
from vlcp_ray.stages.finetune import run as finetune
from vlcp_ray.store.artifact import Store

def compute_on_cpus():
    import torch
    from ray.air._internal import torch_utils

    torch_utils.get_devices = lambda: [torch.device("cpu")]

root, workers, gpus, overrides = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
options = {"num_cpus": 6, "num_gpus": gpus, "object_store_memory": 2**28, "log_to_driver": False}
if gpus:  # logical ones: the ranks compute on CPUs, and talk through gloo
    options["runtime_env"] = {"worker_process_setup_hook": compute_on_cpus}
ray.init("local", include_dashboard=False, **options)
if gpus:
    finetune.TorchTrainer = partial(finetune.TorchTrainer, torch_config=TorchConfig(backend="gloo"))
pool = FinetunePool(num_workers=workers, num_gpus=bool(gpus), gradient_checkpointing=False)
list(run(load_job("jobs/digits.toml", overrides), Store.at(root), "finetune", Scale(finetune=pool)))
"""


def python(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("cpus", "gpus", "machines"), [(4, 1, 1), (8, 1, 1), (16, 1, 1), (8, 4, 1), (16, 8, 1), (4, 1, 2), (8, 4, 2)]
)
def test_plan_of_captioning_and_encoding_moves_on_the_derived_scale(
    cpus: int, gpus: int, machines: int, tmp_path: Path
) -> None:
    python(PLAN, cpus, gpus, machines, tmp_path)


def test_seeds_that_are_tuned_side_by_side_have_the_weights_of_one_after_the_other(tmp_path: Path) -> None:
    """Three trainings of one rank at the same time, on CPUs and on logical GPUs, and one after the other."""
    inputs = write_inputs(tmp_path / "inputs")
    overrides = ["seeds=[0,1,2]", "finetune.epochs=2", f"ingest.source={inputs}/images"]
    overrides += [f"caption.source={inputs}/captions.parquet"]
    weights = {}
    for name, workers, gpus in (("beside", 3, 0), ("on GPUs", 3, 3), ("after", 1, 0)):
        python(TUNE, tmp_path / name, workers, gpus, json.dumps(overrides))
        store = Store.at(str(tmp_path / name))
        steps = [step for step in graph(load_job(JOB, overrides)) if step.stage == "finetune"]
        models = [store.artifact(step) for step in steps]
        files = [list_files(store.filesystem, f"{model.path}/model/unet") for model in models]
        paths = [next(file.path for file in some if file.name.endswith(".safetensors")) for some in files]
        weights[name] = [read(store.filesystem, path) for path in paths]
    for name in ("beside", "on GPUs"):
        logs = "".join(path.read_text() for path in (tmp_path / name / "logs").rglob("*.log"))
        assert "finetune (3 sets)" in logs
        assert weights[name] == weights["after"]
    assert len(set(weights["after"])) == 3
