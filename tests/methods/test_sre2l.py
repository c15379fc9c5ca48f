"""Tests of SRe2L's recovery: pixels that the teacher classifies, batches that do not depend on the wanted sets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import load_job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.method import Part
from vlcp_ray.methods.sre2l import BatchNormDistance, SRe2L, list_parts, make_images, recover, view
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols.augment import normalise
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.teach import Teach
from vlcp_ray.stages.teach.train import train_teacher

JOB = load_job(
    "jobs/digits-compare.toml",
    ['compare.methods=["sre2l"]', "compare.sre2l.steps=5", "teach.input_size=16", "evaluate.input_size=16"],
)
SETTINGS = SRe2L(steps=60, shift=2, crop=False)
LABELS = [0, 1, 2, 3] * 4


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    settings = Teach(network="ConvNet-3", width=16, input_size=16, epochs=8, batch_size=32, flip=False)
    state = train_teacher(digits(0, 600), digits(1000, 1100), NAMES, settings, 0, "cpu").state
    return load_teacher(settings, state)


def rows(labels: range) -> pa.Table:
    names = [f"class {label}" for label in labels for _ in range(3)]
    return pa.table({"label": [label for label in labels for _ in range(3)], "class_name": names})


def test_recover_makes_images_of_their_classes_with_the_statistics_of_batch_norm(teacher: nn.Module) -> None:
    made = recover(teacher, LABELS, 16, SETTINGS, flip=False, seed=0, device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, made.shape).astype(np.uint8)
    distances = []
    for pixels in (made, noise):
        with torch.no_grad(), BatchNormDistance(teacher) as distance:
            logits = teacher(normalise(torch.tensor(pixels.transpose(0, 3, 1, 2))))
            distances.append(float(distance.pop()))
        if pixels is made:
            assert (logits.argmax(1).numpy() == LABELS).mean() > 0.9
    assert distances[0] < distances[1] / 2


def test_recover_depends_on_its_seed_and_not_on_global_state(teacher: nn.Module) -> None:
    short = SRe2L(steps=3, shift=2)
    one = recover(teacher, LABELS, 16, short, flip=True, seed=0, device="cpu")
    torch.manual_seed(1)
    assert np.array_equal(recover(teacher, LABELS, 16, short, flip=True, seed=0, device="cpu"), one)
    assert not np.array_equal(recover(teacher, LABELS, 16, short, flip=True, seed=1, device="cpu"), one)


def test_recover_is_adam_whose_rate_falls_to_zero_along_a_cosine(teacher: nn.Module) -> None:
    """Without crops and shifts there is nothing random but the first pixels."""
    settings = SRe2L(steps=6, learning_rate=0.4, bn_weight=0.3, shift=0, crop=False)
    made = recover(teacher, LABELS, 16, settings, flip=True, seed=5, device="cpu")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    optimizer = torch.optim.Adam([pixels], 0.4, (0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(6):
        with BatchNormDistance(teacher) as distance:
            loss = nn.functional.cross_entropy(teacher(pixels), torch.tensor(LABELS)) + 0.3 * distance.pop()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        pixels.data.clamp_(-mean / std, (1 - mean) / std)
    expected = ((pixels.detach() * std + mean) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(made - expected).max() < 0.6  # rounded to whole levels


def test_recover_that_diverges_names_the_setting(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"compare\.sre2l: the pixels diverge; lower learning_rate"):
        recover(teacher, LABELS, 16, SRe2L(steps=2, bn_weight=1e39), flip=False, seed=0, device="cpu")


def test_batch_norm_distance_is_that_of_the_published_formula(teacher: nn.Module) -> None:
    inputs: list[torch.Tensor] = []
    layers = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    with torch.no_grad(), BatchNormDistance(teacher) as distance:
        teacher(torch.randn(6, 3, 16, 16))
        total = float(distance.pop())
    for hook in hooks:
        hook.remove()
    expected = 0.0
    for weight, layer, given in zip((10.0, 1.0, 1.0), layers, inputs, strict=True):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = given.mean((0, 2, 3))
        variance = given.transpose(0, 1).reshape(given.shape[1], -1).var(1, correction=0)
        expected += weight * float((layer.running_mean - mean).norm() + (layer.running_var - variance).norm())
    assert total == pytest.approx(expected, rel=1e-5)


def test_batch_norm_distance_of_a_network_without_batch_norm_is_refused() -> None:
    network = build_classifier("ConvNet-3", num_classes=4, input_size=16, width=8, seed=0, norm="instance")
    with pytest.raises(ValueError, match="sre2l needs a teacher with batch norm"):
        BatchNormDistance(network)


def test_checkpoint_without_batch_norm_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for norm in ("instance", "batch"):
        network = build_classifier("ConvNet-3", num_classes=10, input_size=16, width=8, seed=0, norm=norm)  # type: ignore[arg-type]
        torch.save(network.state_dict(), tmp_path / f"{norm}.pth")
    job = JOB.model_copy(update={"teach": JOB.teach.model_copy(update={"checkpoint": str(tmp_path / "instance.pth")})})
    with pytest.raises(ConfigError, match=r"teach\.checkpoint: sre2l needs a teacher with batch norm"):
        STAGES["select"].check(job)
    STAGES["select"].check(
        JOB.model_copy(update={"teach": JOB.teach.model_copy(update={"checkpoint": str(tmp_path / "batch.pth")})})
    )


def test_view_is_the_same_for_all_images_and_keeps_what_is_neither_cropped_nor_shifted() -> None:
    pixels = torch.rand(1, 3, 16, 16).expand(4, -1, -1, -1)
    seen = view(pixels, SRe2L(shift=3), True, torch.Generator().manual_seed(0))
    assert all(torch.equal(seen[0], other) for other in seen)
    assert not torch.equal(seen, pixels)
    assert torch.equal(view(pixels, SRe2L(shift=0, crop=False), True, torch.Generator()), pixels)


@pytest.mark.parametrize(
    ("classes", "sizes", "each"),
    [(10, [10], 10), (100, [100], 1), (101, [50, 51], 2), (200, [100, 100], 1), (1000, [100] * 10, 1)],
)
def test_list_parts_puts_up_to_100_classes_and_about_100_images_into_a_batch(
    classes: int, sizes: list[int], each: int
) -> None:
    parts = list_parts(JOB, range(classes), [(0, 1), (0, 12), (5, 1)])
    assert [len(part.labels) for part in parts if part.seed == 5] == sizes
    assert sorted({label for part in parts for label in part.labels}) == list(range(classes))
    large = [part for part in parts if (0, 12) in part.runs and part.labels[0] == 0]
    assert [part.number for part in large] == list(range(-(-12 // (100 // sizes[0]))))
    assert [(0, 1) in part.runs for part in large] == [True] + [False] * (len(large) - 1)


def test_make_images_gives_the_first_images_of_a_larger_set(teacher: nn.Module) -> None:
    labels = tuple(range(10))
    both = make_images(rows(range(10)), Part(labels, ((0, 1), (0, 12)), 0), teacher, JOB, "cpu")
    alone = make_images(rows(range(10)), Part(labels, ((0, 1),), 0), teacher, JOB, "cpu")
    rest = make_images(rows(range(10)), Part(labels, ((0, 12),), 1), teacher, JOB, "cpu")
    assert alone[0, 1].equals(both[0, 1])
    assert both[0, 1].schema == SYNTHETIC
    assert both[0, 1]["image_id"].to_pylist() == [f"sre2l-{label:04d}-0000" for label in range(10)]
    assert set(both[0, 1]["image"].to_pylist()) <= set(both[0, 12]["image"].to_pylist())
    assert (len(both[0, 12]), len(rest[0, 12])) == (100, 20)
    assert len(set(both[0, 12]["image_id"].to_pylist()) | set(rest[0, 12]["image_id"].to_pylist())) == 120
    assert both[0, 12]["class_name"].to_pylist()[3] == "class 3"


def test_loads_are_three_passes_of_every_batch_and_step() -> None:
    job = JOB.model_copy(update={"ipc": (1, 12)})
    inputs = CostInputs.for_job(job, Expect(train=1000, val=100, classes=10, gib=1))
    steps = [step for step in graph(job) if step.stage == "select"]
    (load,) = METHODS["sre2l"].loads(inputs, steps)
    each = inputs.models.classify("ConvNet-3", 16, 32, 10, "batch")
    # Three seeds, two batches of 100 images, for 12 images of 10 classes.
    assert (load.images, load.amount, load.units, load.batches) == (390, 3 * 2 * 100 * 5 * 3 * each, 6, 30)
