"""Tests of jobs across architectures, on real images of 32 and 64 pixels: two teachers, students of torchvision."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.image_sets import SHARED
from vlcp_ray.cli import main
from vlcp_ray.config import Job, build, load_job
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.store.artifact import Store

pytestmark = pytest.mark.filterwarnings("default")
JOB = Path(__file__).parents[1] / "jobs" / "cifar10-cross-cpu.toml"
TINY = (
    "seeds=[0]",
    "ingest.max_per_class=12",
    "ingest.max_val_per_class=6",
    "teach.epochs=8",
    "teach.batch_size=10",
    "teach.learning_rate=0.02",
    "evaluate.rded_epochs=20",
    'compare.methods=["herding"]',
)


def real(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} does not exist")
    return SHARED / name


def run(root: Path, changed: list[str]) -> list[dict[str, Any]]:
    """Run the job with changed settings; return SCORES in the order of its steps, protocols and networks."""
    assert main(["run", str(JOB), "--root", str(root), *options(changed)]) == 0
    job, store = load_job(JOB, changed), Store.at(str(root))
    tables = [store.artifact(step).table("scores", SCORES) for step in graph(job) if step.stage == "evaluate"]
    order = [(protocol, name) for protocol in job.evaluate.protocols for name in job.evaluate.networks]
    return [
        row
        for table in tables
        for row in sorted(table.to_pylist(), key=lambda row: order.index((row["protocol"], row["network"])))
    ]


def options(changed: list[str]) -> list[str]:
    return [part for text in changed for part in ("--set", text)]


@pytest.mark.usefixtures("ray_session")
def test_students_of_two_teachers_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = ["ConvNet-3", "mobilenet_v2", "swin_t"]
    changed = [
        *TINY,
        f"ingest.source={real('cifar10')}",
        'teach.network=["ConvNet-3", "ConvNet-4"]',
        f"evaluate.networks={json.dumps(networks)}",
        "evaluate.rded_learning_rates={swin_t=1e-4}",
    ]
    rows = run(tmp_path, changed)
    capsys.readouterr()
    teachers = ["ConvNet-3, 8 epochs", "ConvNet-4, 8 epochs"]
    assert [(row["teacher"], row["network"]) for row in rows] == [(one, name) for one in teachers for name in networks]
    assert [row["trial_id"] for row in rows[:3]] == [row["trial_id"] for row in rows[3:]]
    assert all((row["steps"], row["labels"]) == (20, "teacher") for row in rows)
    assert main(["report", str(JOB), "--root", str(tmp_path), "--json", *options(changed)]) == 0
    cells = json.loads(capsys.readouterr().out)["cross_architecture"]
    assert len(cells) > 1
    assert {(cell["teacher"], cell["network"], cell["top1"]) for cell in cells} == {
        (row["teacher"], row["network"], round(row["top1_last"], 6)) for row in rows if not row["outcome"]
    }


@pytest.mark.faults  # in the slow tests: two minutes
@pytest.mark.usefixtures("ray_session")
def test_networks_of_larger_images_learn_with_hard_and_stored_labels(tmp_path: Path) -> None:
    with tarfile.open(real("tiny-imagenet-20.tar")) as tar:
        tar.extractall(tmp_path / "set", filter="data")
    networks = ["ConvNet-4", "mobilenet_v2", "squeezenet1_1"]
    changed = [
        *TINY,
        f"ingest.source={tmp_path / 'set'}",
        "ingest.max_per_class=4",
        "ingest.max_val_per_class=1",
        "evaluate.rded_epochs=2",
        *(f"{name}=64" for name in ("generate.image_size", "teach.input_size", "evaluate.input_size")),
        "teach.network=resnet18",
        "teach.width=128",
        'evaluate.protocols=["minimax", "rded-stored"]',
        f"evaluate.networks={json.dumps(networks)}",
        "evaluate.epochs=2",
    ]
    rows = run(tmp_path / "runs", changed)
    protocols = {"minimax": "", "rded-stored": "resnet18, 8 epochs"}
    assert [(row["protocol"], row["teacher"], row["network"]) for row in rows] == [
        (protocol, teacher, network) for protocol, teacher in protocols.items() for network in networks
    ]


def test_another_teacher_adds_to_a_job_and_changes_nothing() -> None:
    names = '["ConvNet-3", "mobilenet_v2"]'
    one, same, both = (load_job(JOB, [f"teach.network={name}"]) for name in ("ConvNet-3", '["ConvNet-3"]', names))
    other = load_job(JOB, ["teach.network=mobilenet_v2", "teach.width=128"])
    assert graph(same) == graph(one)
    alone = {step.fingerprint for step in graph(one) if step.stage != "report"}
    steps = graph(both)
    assert alone < {step.fingerprint for step in steps}
    assert {step.stage for step in steps if step.fingerprint not in alone} == {"teach", "evaluate", "report"}
    selecting = {step.inputs["teacher"].title for step in steps if step.stage == "select" and "teacher" in step.inputs}
    assert selecting == {"teach ConvNet-3"}
    (teacher,) = [step for step in graph(other) if step.stage == "teach"]
    assert teacher.settings["network"] == "mobilenet_v2"
    titles = [step.title for step in steps]
    assert len(set(titles)) == len(titles)


REFUSED = [
    (['evaluate.networks=["googlenet"]'], "one of the 85 networks .*: googlenet is trained by the losses of auxiliary"),
    (['evaluate.networks=["mobilenetv2"]'], "one of the 85 networks .*such as .*mobilenet_v2"),
    (['evaluate.networks=["ConvNet-3", "alexnet"]'], "must be 63 or more for alexnet, not 32.*one of: ConvNet-3, "),
    (
        ['evaluate.networks=["ConvNet-3", "vit_b_16"]', "evaluate.input_size=40", "teach.input_size=40"],
        "16 or more and a multiple of 16 for vit_b_16, not 40; change",
    ),
    (
        ['evaluate.networks=["vgg11", "resnet50"]', "evaluate.input_size=64"],
        "vgg11 and resnet50 have widths of their own",
    ),
    (['evaluate.networks=["resnet50"]'], "width is for ConvNets only, and resnet50 has widths of its own.*ConvNet-6$"),
    (
        ['evaluate.protocols=["minimax", "rded"]', 'evaluate.networks=["resnet50"]', "evaluate.batch_size=1"],
        "batch_size must be 2 or more for resnet50: batch norm needs several images.*one of: ",
    ),
    (["teach.network=squeezenet1_1", "teach.width=128"], "the last layer of squeezenet1_1 is not linear.*resnet50"),
    (['teach.network=["ConvNet-3", "ConvNet-3"]'], "network must be a list of different values"),
    (["teach.checkpoint=w.pth"], "a file has the weights of one network, and network has 2"),
    (["teach.network=vit_b_16", "teach.width=128", "teach.checkpoint=torchvision"], "images of 224 pixels, not 32"),
    (["evaluate.rded_learning_rates={vgg11=1e-3}"], "vgg11 is none of networks"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_a_network_cannot_take_is_refused_in_one_sentence(changed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_job(JOB, changed)
    assert "\n" not in str(refused.value)


def test_several_teachers_without_soft_labels_are_refused() -> None:
    settings = {"name": "x", "teach": {"network": ["ResNet-18", "resnet50"]}}
    with pytest.raises(ConfigError, match=r"teach.network: 2 teachers need a protocol with soft labels; add rded or"):
        build(Job, settings, "x")
