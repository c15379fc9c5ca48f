"""Tests of IDC: pixels that give the gradients of real images, decoding, partitions, and its augmentation."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from tests.labelled_digits import digits
from vlcp_ray.config import load_job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.memory import ModelMemory
from vlcp_ray.demo import digits as demo
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.idc import (
    IDC,
    RealImages,
    decode,
    first_pixels,
    gradient_distance,
    list_parts,
    make_images,
    make_tiled_images,
    match_gradients,
    normalised,
)
from vlcp_ray.methods.method import Part
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.pipeline import graph
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.scale import Scale
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.ingest import Expect

OVERRIDES = [
    'compare.methods=["idc-1", "idc"]',
    "compare.idc.network=ConvNet-3",
    "compare.idc.width=8",
    "compare.idc.outer_steps=1",
    "compare.idc.inner_steps=1",
    "compare.idc.train_images=64",
    "compare.idc.batch_size=16",
    "compare.idc.learning_rate=0.01",
]
JOB = load_job("jobs/digits-compare.toml", OVERRIDES)
SETTINGS = IDC(
    network="ConvNet-3", width=16, outer_steps=3, inner_steps=6, batch_size=16, distance="mse", learning_rate=1.0,
    train_images=64,
)  # fmt: skip
TWO = (1, 7)


def two_classes() -> LabelledImages:
    split = digits(0, 400)
    rows = np.isin(split.labels, TWO)
    return LabelledImages(split.pixels[rows], split.labels[rows])


def rows_of(labels: tuple[int, ...], count: int) -> pa.Table:
    rows = [dict(row) for row in demo.rows("val") if row["label"] in labels]
    table = pa.Table.from_pylist(rows).sort_by([("label", "ascending"), ("image_id", "ascending")])
    picked = [row for label in labels for row in [r for r in table.to_pylist() if r["label"] == label][:count]]
    return pa.Table.from_pylist(picked)


def distance_of(pixels: np.ndarray, real: LabelledImages, ipc: int) -> float:
    """The distance of the gradients of new networks, without augmentation, to those of all real images."""
    total = 0.0
    for seed in range(3):
        network = build_classifier("ConvNet-3", num_classes=2, input_size=16, width=16, seed=100 + seed)
        for number, label in enumerate(TWO):
            own = torch.tensor(real.pixels[real.labels == label]).float() / 255
            made = torch.tensor(pixels[number * ipc : (number + 1) * ipc].transpose(0, 3, 1, 2)).float() / 255
            views = normalised(torch.cat([own, made]))
            total += float(gradient_distance(network, views, len(own), number, "mse").detach())
    return total


def test_match_gradients_brings_the_gradients_of_new_networks_nearer_to_those_of_real_images() -> None:
    real = two_classes()
    start = match_gradients(
        real, 2, SETTINGS.model_copy(update={"learning_rate": 1e-12}), factor=1, seed=0, device="cpu"
    )
    made = match_gradients(real, 2, SETTINGS, factor=1, seed=0, device="cpu")
    assert made.shape == (4, 16, 16, 3)
    assert distance_of(made, real, 2) < 0.9 * distance_of(start, real, 2)


def test_match_gradients_depends_on_its_seed_and_not_on_global_state() -> None:
    real, short = two_classes(), SETTINGS.model_copy(update={"outer_steps": 1, "inner_steps": 2})
    one = match_gradients(real, 2, short, factor=2, seed=0, device="cpu")
    torch.manual_seed(1)
    assert np.array_equal(match_gradients(real, 2, short, factor=2, seed=0, device="cpu"), one)
    assert not np.array_equal(match_gradients(real, 2, short, factor=2, seed=1, device="cpu"), one)


def test_match_gradients_without_a_rate_returns_real_images_of_each_class() -> None:
    real = two_classes()
    still = SETTINGS.model_copy(update={"learning_rate": 1e-12, "outer_steps": 1, "inner_steps": 1})
    made = match_gradients(real, 3, still, factor=1, seed=0, device="cpu")
    for number, image in enumerate(made):
        own = real.pixels[real.labels == TWO[number // 3]]
        assert (own == image.transpose(2, 0, 1)).all((1, 2, 3)).any()


def test_match_gradients_that_diverges_names_the_setting() -> None:
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30, "distance": "mse"})
    with pytest.raises(ValueError, match=r"compare\.idc: the pixels diverge; lower learning_rate"):
        match_gradients(two_classes(), 1, wild, factor=1, seed=0, device="cpu")


@pytest.mark.parametrize("distance", ["l1", "mse"])
def test_gradient_distance_is_that_of_the_convolutions_and_moves_synthetic_images_only(distance: str) -> None:
    network = build_classifier("ConvNet-3", num_classes=2, input_size=16, width=4, seed=0)
    views = torch.randn(5, 3, 16, 16).requires_grad_()
    result = gradient_distance(network, views, 3, 1, distance)  # type: ignore[arg-type]
    gradients = []
    for part in (views[:3], views[3:]):
        network.zero_grad()
        nn.functional.cross_entropy(network(part.detach()), torch.ones(len(part), dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad.clone() for weight in network.parameters() if weight.ndim == 4])  # type: ignore[union-attr]
    differences = torch.cat([(one - other).flatten() for one, other in zip(*gradients, strict=True)])
    expected = differences.abs().sum() if distance == "l1" else differences.square().sum()
    assert float(result.detach()) == pytest.approx(float(expected), rel=1e-4)
    result.backward()  # type: ignore[no-untyped-call]
    assert views.grad is not None
    assert not views.grad[:3].any()
    assert views.grad[3:].abs().sum() > 0


@pytest.mark.parametrize(("size", "factor"), [(16, 2), (16, 3), (32, 3)])
def test_decode_enlarges_each_tile_as_bilinear_upsampling_does(size: int, factor: int) -> None:
    pixels = torch.rand(2, 3, size, size)
    side = -(-size // factor)
    padded = nn.functional.pad(pixels, (0, side * factor - size) * 2, value=0.5)
    tiles = [
        padded[:, :, side * top : side * (top + 1), side * left : side * (left + 1)]
        for top in range(factor)
        for left in range(factor)
    ]
    expected = nn.functional.interpolate(torch.cat(tiles), size=(size, size), mode="bilinear")
    torch.testing.assert_close(decode(pixels, factor), expected, atol=1e-5, rtol=0)
    assert torch.equal(decode(pixels, 1), pixels)


def test_first_pixels_of_factor_2_are_four_real_images_at_half_their_size() -> None:
    stored = np.arange(6, dtype=np.uint8).repeat(3 * 16 * 16).reshape(6, 3, 16, 16)
    real = RealImages(stored, torch.zeros(6, dtype=torch.long), "cpu")
    (made,) = first_pixels(real, torch.arange(6), 1, 2, torch.Generator().manual_seed(0)) * 255
    corners = made[0, ::8, ::8].round().flatten().int().tolist()
    assert len(set(corners)) == 4
    assert all(made[:, y : y + 8, x : x + 8].round().unique().numel() == 1 for y in (0, 8) for x in (0, 8))


def test_list_parts_is_a_part_for_each_partition_of_classes_and_set() -> None:
    job = JOB.model_copy(update={"compare": JOB.compare.model_copy(update={"idc": IDC(classes=4)})})
    parts = list_parts(job, range(10), [(0, 1), (0, 5)])
    assert [(part.labels, part.runs) for part in parts] == [
        (labels, ((0, ipc),)) for ipc in (5, 1) for labels in ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))
    ]


def test_make_images_gives_rows_of_synthetic_and_decoded_ones_of_idc() -> None:
    part, rows = Part((2, 5), ((3, 2),)), rows_of((2, 5), 12)
    table = make_images(rows, part, None, JOB, "cpu")[3, 2]
    assert table.schema == SYNTHETIC
    assert table["image_id"].to_pylist() == ["idc-1-0002-0000", "idc-1-0002-0001", "idc-1-0005-0000", "idc-1-0005-0001"]
    assert table["label"].to_pylist() == [2, 2, 5, 5]
    assert set(table["seed"].to_pylist()) == {3}
    decoded = make_tiled_images(rows, part, None, JOB, "cpu")[3, 2]
    assert decoded["label"].to_pylist() == [2] * 8 + [5] * 8
    assert METHODS["idc"].rows_per_image(JOB) == 4


def test_make_images_of_too_small_a_class_names_it() -> None:
    rows = pa.concat_tables([rows_of((2,), 4), rows_of((5,), 3)])
    with pytest.raises(ValueError, match=r"class 'digit five': 3 images are fewer than ipc = 4"):
        make_images(rows, Part((2, 5), ((0, 4),)), None, JOB, "cpu")


def test_network_that_needs_larger_images_is_refused_before_anything_starts() -> None:
    job = load_job("jobs/digits-compare.toml", [*OVERRIDES, "compare.idc.network=ConvNet-6"])
    with pytest.raises(
        ConfigError, match=r"evaluate\.input_size must be 64 or more for ConvNet-6 .* compare\.idc\.network"
    ):
        STAGES["select"].check(job)


def test_factor_without_idc_is_refused() -> None:
    with pytest.raises(ConfigError, match="idc_factor is for idc only"):
        load_job("jobs/digits-compare.toml", [*OVERRIDES, 'compare.methods=["idc-1"]', "compare.idc_factor=3"])


def test_factor_changes_the_sets_of_idc_only() -> None:
    jobs = (JOB, load_job("jobs/digits-compare.toml", [*OVERRIDES, "compare.idc_factor=3"]))
    settings = [[METHODS[name].settings(job, "") for job in jobs] for name in ("idc-1", "idc")]
    assert settings[0][0] == settings[0][1]
    assert settings[1][0] != settings[1][1]


def test_loads_grow_with_the_steps_and_count_every_set() -> None:
    inputs = CostInputs.for_job(JOB, Expect(train=1000, val=100, classes=10, gib=1))
    steps = [step for step in graph(JOB) if step.key.get("method") == "idc-1" and step.stage == "select"]
    (load,) = METHODS["idc-1"].loads(inputs, steps)
    assert (load.images, load.units, load.batches) == (3 * 16 * 10, 9, 9 * 10)
    longer = load_job("jobs/digits-compare.toml", [*OVERRIDES, "compare.idc.outer_steps=7"])
    (other,) = METHODS["idc-1"].loads(CostInputs.for_job(longer, inputs.images), steps)
    assert other.amount == pytest.approx(7 * load.amount)


def test_loads_count_the_enlarged_tiles_of_idc_only() -> None:
    def amount(name: str, *overrides: str) -> float:
        job = load_job("jobs/digits-compare.toml", [*OVERRIDES, *overrides])
        steps = [step for step in graph(job) if step.key.get("method") == name and step.stage == "select"]
        (load,) = METHODS[name].loads(CostInputs.for_job(job, Expect(train=1000, val=100, classes=10, gib=1)), steps)
        return float(load.amount)

    whole = amount("idc-1", "ipc=[4]")
    assert amount("idc", "ipc=[1]", "compare.idc_factor=2") == whole  # one image of 2 x 2 tiles is compared as four
    assert amount("idc-1", "ipc=[4]", "compare.idc_factor=3") == whole


def test_memory_counts_the_enlarged_tiles_of_idc_only() -> None:
    def gib(name: str, *overrides: str) -> float:
        job = load_job("jobs/digits-compare.toml", [*OVERRIDES, *overrides])
        (need,) = METHODS[name].memory(job, ModelMemory.for_job(job), Scale())
        return need.gib

    whole = gib("idc-1", "ipc=[100]")
    assert gib("idc", "ipc=[25]", "compare.idc_factor=2") == whole
    assert gib("idc-1", "ipc=[100]", "compare.idc_factor=3") == whole
    assert gib("idc", "ipc=[25]", "compare.idc_factor=3") > whole


def test_loads_equal_hand_computation() -> None:
    overrides = [*OVERRIDES, 'compare.methods=["idc-1"]', "ipc=[2,500]", "seeds=[0]", "compare.idc.pretrain_epochs=2"]
    job = load_job("jobs/digits-compare.toml", overrides)
    inputs = CostInputs.for_job(job, Expect(train=3000, val=100, classes=30, gib=1))
    steps = [step for step in graph(job) if step.key.get("method") == "idc-1" and step.stage == "select"]
    (load,) = METHODS["idc-1"].loads(inputs, steps)
    each = inputs.models.classify("ConvNet-3", job.evaluate.input_size, 8, 30, "instance")
    # Two parts of 15 classes of 100 images for each set. An inner step takes three passes of 16 real images of a class,
    # nine of at most 128 synthetic ones, and three of 64 training images; before, all images are trained on twice.
    sets = [15 * (3 * 16 + 9 * made) + 3 * 64 + 2 * 3 * 1500 for made in (2, 128)]
    assert load.amount == pytest.approx(2 * sum(sets) * each)
    assert load.largest == pytest.approx(sets[1] * each)
