"""Whether trials follow the protocol, learn, come out the same again, and fill SCORES."""

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vlcp_ray.config import Evaluate
from vlcp_ray.images import encode_png
from vlcp_ray.schemas import SCORES, conform
from vlcp_ray.stages import evaluate
from vlcp_ray.stages.evaluate import LabelledImages, Trial, epochs_for, learning_rate_at, prepare, run_trial

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SETTINGS = Evaluate(networks=("ConvNet-3",), width=16, input_size=16, epochs=50, flip=False)
TRIAL = Trial(method="vlcp", network="ConvNet-3", ipc=5, seed=0, repeat=1)


def digits(start: int, stop: int) -> LabelledImages:
    images, labels = load_digits(return_X_y=True)
    grey = (images[start:stop].reshape(-1, 1, 8, 8) * 15.9).astype(np.uint8)
    grown = np.broadcast_to(grey.repeat(2, 2).repeat(2, 3), (stop - start, 3, 16, 16))
    return LabelledImages(np.ascontiguousarray(grown), labels[start:stop].astype(np.int64))


TRAIN, VAL = digits(0, 100), digits(1000, 1150)


def run(trial: Trial = TRIAL, settings: Evaluate = SETTINGS) -> dict[str, object]:
    return run_trial(TRAIN, VAL, NAMES, settings, trial, "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on busy cores make such small steps a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def row() -> dict[str, object]:
    return run()


def test_a_hundred_digits_teach_far_more_than_chance(row: dict[str, object]) -> None:
    assert float(row["top1_last"]) > 0.6  # type: ignore[arg-type]


def test_scores_fit_their_schema_and_each_other(row: dict[str, object]) -> None:
    assert set(row) == set(SCORES.names)
    scores = conform(pa.Table.from_pylist([row]), SCORES).to_pylist()[0]
    assert scores["trial_id"] == "vlcp-ipc5-seed0-ConvNet-3-r1"
    assert (scores["ipc"], scores["seed"], scores["repeat"], scores["epochs"]) == (5, 0, 1, 50)
    assert 0 <= scores["top1_last"] <= scores["top1_best"] <= 1
    assert scores["top1_last"] <= scores["top5_last"] <= 1
    assert scores["seconds"] > 0


def test_a_trial_comes_out_the_same_whatever_ran_before(row: dict[str, object]) -> None:
    short = SETTINGS.model_copy(update={"epochs": 4})

    def scores(trial: Trial) -> dict[str, object]:
        return {name: value for name, value in run(trial, short).items() if name != "seconds"}

    first = scores(TRIAL)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    other = scores(Trial(method="vlcp", network="ConvNet-3", ipc=5, seed=0, repeat=2))
    assert scores(TRIAL) == first
    assert {**other, "trial_id": first["trial_id"], "repeat": 1} != first


def test_global_randomness_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    run(settings=SETTINGS.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_arrays_from_a_shared_store_are_taken_and_left_alone() -> None:
    train = digits(0, 20)
    before = train.pixels.copy()
    train.pixels.flags.writeable = train.labels.flags.writeable = False
    run_trial(train, VAL, NAMES, SETTINGS.model_copy(update={"epochs": 1}), TRIAL, "cpu")
    np.testing.assert_array_equal(train.pixels, before)


def test_best_is_the_best_of_all_checks_and_last_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(0.3, 0.5), (0.9, 0.95), (0.6, 0.8)])
    monkeypatch.setattr(evaluate, "_accuracy", lambda network, val: next(told))
    row = run(settings=SETTINGS.model_copy(update={"epochs": 3}))
    assert (row["top1_best"], row["top1_last"], row["top5_last"]) == (0.9, 0.6, 0.8)


def test_accuracy_counts_the_first_and_the_first_five() -> None:
    class Given(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(7.0).expand(len(images), 7)  # the ranking is 6, 5, 4, 3, 2, 1, 0

    labels = torch.tensor([6, 6, 5, 2, 1, 0] * 20)
    top1, top5 = evaluate._accuracy(Given(), (torch.zeros(120, 3, 8, 8, dtype=torch.uint8), labels))
    assert (top1, top5) == (pytest.approx(2 / 6), pytest.approx(4 / 6))


def test_few_classes_have_no_fifth() -> None:
    two = LabelledImages(TRAIN.pixels[:40], TRAIN.labels[:40] % 2)
    row = run_trial(two, two, ("even", "odd"), SETTINGS.model_copy(update={"epochs": 1}), TRIAL, "cpu")
    assert row["top5_last"] == 1


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 16, 16)
    batches: list[list[int]] = []

    def note(network: torch.nn.Module, pixels: torch.Tensor, *rest: object) -> torch.Tensor:
        batches.append(pixels[:, 0, 0, 0].tolist())
        return torch.stack([parameter.sum() for parameter in network.parameters()]).sum()

    monkeypatch.setattr(evaluate, "_loss", note)
    settings = Evaluate(batch_size=4)
    assert list(evaluate._train(torch.nn.Linear(2, 2), (pixels, torch.arange(10)), settings, 3, 0)) == [1, 2, 3]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[image for batch in batches[i : i + 3] for image in batch] for i in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("epochs", [1, 5, 30, 300, 2000])
def test_the_learning_rate_is_that_of_torchs_schedule(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    for epoch in range(epochs):
        assert learning_rate_at(epoch, epochs, 0.01) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_the_learning_rate_reaches_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a constant gradient of 1, no momentum and no decay, a weight falls by the sum of the learning rates."""
    monkeypatch.setattr(evaluate, "MOMENTUM", 0.0)
    monkeypatch.setattr(evaluate, "WEIGHT_DECAY", 0.0)
    monkeypatch.setattr(evaluate, "_loss", lambda network, *rest: network.weight.sum())
    network = torch.nn.Linear(1, 1, bias=False)
    start = network.weight.item()
    for _ in evaluate._train(network, (torch.zeros(1, 3, 8, 8), torch.zeros(1)), Evaluate(), 6, 0):
        pass
    assert start - network.weight.item() == pytest.approx(0.01 * (4 + 0.2 + 0.04), rel=1e-4)


@pytest.mark.parametrize(
    ("ipc", "few", "many"),
    [
        (1, 3000, 2000),
        (2, 2000, 1300),
        (10, 2000, 1300),
        (20, 1500, 1000),
        (50, 1500, 1000),
        (100, 1000, 600),
        (200, 1000, 600),
        (500, 500, 300),
        (501, 300, 200),
    ],
)
def test_epochs_follow_the_protocol(ipc: int, few: int, many: int) -> None:
    assert epochs_for(Evaluate(), ipc, 10) == epochs_for(Evaluate(), ipc, 99) == few
    assert epochs_for(Evaluate(), ipc, 100) == epochs_for(Evaluate(), ipc, 1000) == many


def test_settings_overrule_the_protocol_and_the_full_split_has_its_own_number() -> None:
    settings = Evaluate(epochs=7, full_epochs=4)
    assert epochs_for(settings, 10, 100) == 7
    assert epochs_for(settings, 0, 100) == 4
    assert epochs_for(Evaluate(full_epochs=4), 0, 10) == 4


@pytest.mark.parametrize(("epochs", "checks"), [(1, 1), (60, 60), (100, 100), (300, 100), (250, 125), (2000, 100)])
def test_checks_are_about_a_hundred_and_end_with_the_last_epoch(epochs: int, checks: int) -> None:
    when = [epoch for epoch in range(1, epochs + 1) if evaluate.is_check(epoch, epochs, 100)]
    assert len(when) == checks
    assert when[-1] == epochs


def test_a_last_epoch_off_the_beat_is_checked_too() -> None:
    assert [epoch for epoch in range(1, 302) if evaluate.is_check(epoch, 301, 100)][-2:] == [300, 301]


def test_prepare_cuts_the_middle_and_keeps_the_rows_in_order() -> None:
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = (200, 100, 50)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, format="BMP")
    plain = encode_png(np.full((8, 8, 3), 7, np.uint8))
    table = pa.table({"image": [buffer.getvalue(), plain], "label": pa.array([3, 1], pa.int32())})
    prepared = prepare(pa.concat_tables([table, table]), 16)
    assert prepared.pixels.shape == (4, 3, 16, 16)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.labels.dtype == np.int64
    assert prepared.labels.tolist() == [3, 1, 3, 1]
    np.testing.assert_array_equal(prepared.pixels[0, :, 8, 8], [200, 100, 50])
    assert (prepared.pixels[0] == prepared.pixels[0, :, :1, :1]).all()
    assert (prepared.pixels[1] == 7).all()


@pytest.mark.parametrize(
    ("train", "names", "message"),
    [
        (digits(0, 0), NAMES, "the train set has no images"),
        (TRAIN, NAMES[:9], r"the train set has labels \[9\], but 9 class names"),
        (LabelledImages(TRAIN.pixels[:, :, 1:], TRAIN.labels), NAMES, r"are \(3, 15, 16\), not \(3, 16, 16\)"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(train: LabelledImages, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_trial(train, VAL, names, SETTINGS, TRIAL, "cpu")
