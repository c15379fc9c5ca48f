"""Tests of a trial: learning under both protocols, reproducible results, and rows of SCORES."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.labelled_digits import NAMES, digits
from vlcp_ray.config import Evaluate, Teach
from vlcp_ray.models.teacher import build_teacher, load_teacher
from vlcp_ray.protocols import PROTOCOLS, minimax
from vlcp_ray.protocols.augment import normalise
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.schemas import conform
from vlcp_ray.stages.evaluate import SCORES, Trial
from vlcp_ray.stages.evaluate import trial as trial_module
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.teach.train import train_teacher

SETTINGS = Evaluate(
    protocols=("minimax", "rded"), networks=("ConvNet-3",), width=16, input_size=16, epochs=50, flip=False
)
TRIAL = Trial(method="vlcp", protocol="minimax", network="ConvNet-3", ipc=5, seed=0, repeat=1)
SOFT = replace(TRIAL, protocol="rded")
TEACH = Teach(network="ConvNet-3", width=16, input_size=16, epochs=5, batch_size=32, flip=False)

TRAIN, VAL = digits(0, 100), digits(1000, 1150)


def run(
    trial: Trial = TRIAL, settings: Evaluate = SETTINGS, teacher: torch.nn.Module | None = None
) -> dict[str, object]:
    return run_trial(TRAIN, VAL, NAMES, settings, trial, "cpu", teacher)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Run with one thread: on busy cores, several make such small steps a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def row() -> dict[str, object]:
    return run()


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return load_teacher(TEACH, train_teacher(digits(0, 400), VAL, NAMES, TEACH, 0, "cpu").state)


def test_run_trial_on_a_hundred_digits_is_far_above_chance(row: dict[str, object]) -> None:
    assert float(row["top1_last"]) > 0.6  # type: ignore[arg-type]


def test_run_trial_with_soft_labels_ignores_wrong_labels(teacher: torch.nn.Module) -> None:
    """All labels of the training images are wrong here: with soft labels they have no effect."""
    wrong = LabelledImages(TRAIN.pixels, (TRAIN.labels + 1) % 10)
    row = run_trial(wrong, VAL, NAMES, SETTINGS, SOFT, "cpu", teacher)
    assert row["top1_last"] > 0.6
    assert (row["protocol"], row["trial_id"]) == ("rded", "vlcp-rded-ipc5-seed0-ConvNet-3-r1")
    assert len(row["curve"]) == 10  # of 50 epochs, each validated, the last fifth
    assert row["top1_best"] == max(row["curve"])
    assert row.keys() == set(SCORES.names)


def test_run_trial_with_stored_labels_needs_the_teacher_once(teacher: torch.nn.Module) -> None:
    stored = replace(SOFT, protocol="rded-stored")
    calls: list[int] = []
    handle = teacher.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    row = run_trial(TRAIN, VAL, NAMES, SETTINGS, stored, "cpu", teacher, "ConvNet-3, 5 epochs")
    handle.remove()
    assert sum(calls) <= len(TRAIN.labels) + 64  # of the check of its outputs, and of a batch that is filled up
    assert row["top1_last"] > 0.6
    assert (row["labels"], row["teacher"]) == ("stored", "ConvNet-3, 5 epochs")
    assert (row["label_bytes"], row["teacher_bytes"]) == (100 * 10 * 4, 0)


@pytest.mark.parametrize("protocol", ["minimax", "rded", "rded-stored"])
def test_run_trial_without_augmentation_sees_the_images_as_they_are(protocol: str, teacher: torch.nn.Module) -> None:
    seen: list[torch.Tensor] = []
    trial = replace(TRIAL, protocol=protocol, augmented=False)
    build = trial_module.build_classifier

    def recording(*arguments: object, **options: object) -> torch.nn.Module:
        network = build(*arguments, **options)  # type: ignore[arg-type]
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "build_classifier", recording)
        row = run(trial, SETTINGS.model_copy(update={"epochs": 2}), teacher)
    assert (row["augmented"], row["trial_id"]) == (False, f"vlcp-{protocol}-ipc5-seed0-ConvNet-3-r1-plain")
    plain = {image.numpy().tobytes() for image in normalise(torch.tensor(TRAIN.pixels))}
    images = torch.cat(seen)
    assert len(images) == 2 * len(TRAIN.labels)
    assert {image.numpy().tobytes() for image in images} == plain


def test_run_trial_has_the_budget_in_its_row(row: dict[str, object], teacher: torch.nn.Module) -> None:
    assert (row["epochs"], row["steps"], row["batch_size"]) == (50, 100, 64)  # of 100 images two steps an epoch
    assert (row["labels"], row["teacher"], row["label_bytes"], row["teacher_bytes"]) == ("hard", "", 0, 0)
    settings = SETTINGS.model_copy(update={"rded_epochs": (2, 3)})
    soft = run(replace(SOFT, ipc=10, epochs=3), settings, teacher)
    assert soft["trial_id"] == "vlcp-rded-ipc10-seed0-ConvNet-3-r1-3epochs"
    assert (soft["epochs"], soft["steps"], soft["batch_size"], soft["labels"]) == (3, 6, 50, "teacher")
    assert soft["teacher_bytes"] == sum(value.nbytes for value in teacher.state_dict().values())


def test_run_trial_returns_a_consistent_row_of_scores(row: dict[str, object]) -> None:
    assert set(row) == set(SCORES.names)
    scores = conform(pa.Table.from_pylist([row]), SCORES).to_pylist()[0]
    assert scores["trial_id"] == "vlcp-minimax-ipc5-seed0-ConvNet-3-r1"
    assert (scores["ipc"], scores["seed"], scores["repeat"], scores["epochs"]) == (5, 0, 1, 50)
    assert 0 <= scores["top1_last"] <= scores["top1_best"] <= 1
    assert scores["top1_last"] <= scores["top5_last"] <= 1
    assert scores["seconds"] > 0
    assert len(scores["curve"]) == 50
    assert scores["curve"][-1] == scores["top1_last"]
    counts = np.reshape(scores["confusion"], (10, 10))
    assert counts.sum(1).tolist() == np.bincount(VAL.labels, minlength=10).tolist()
    assert counts.trace() / 150 == pytest.approx(scores["top1_last"])
    np.testing.assert_allclose(scores["per_class"], counts.diagonal() / counts.sum(1), rtol=1e-6)


def test_run_trial_with_more_than_a_hundred_classes_keeps_no_confusion() -> None:
    names, short = [str(label) for label in range(101)], SETTINGS.model_copy(update={"epochs": 1})
    hundred = run_trial(TRAIN, VAL, names[:100], short, TRIAL, "cpu")
    assert np.sum(hundred["confusion"]) == 150
    assert len(hundred["confusion"]) == 100**2
    row = run_trial(TRAIN, VAL, names, short, TRIAL, "cpu")
    scores = conform(pa.Table.from_pylist([row]), SCORES).to_pylist()[0]
    assert scores["confusion"] == []
    assert len(scores["per_class"]) == 101
    assert scores["per_class"][10:] == [0.0] * 91


@pytest.mark.parametrize("trial", [TRIAL, SOFT])
def test_run_trial_again_gives_the_same_row(trial: Trial, teacher: torch.nn.Module) -> None:
    short = SETTINGS.model_copy(update={"epochs": 4})

    def scores(trial: Trial) -> dict[str, object]:
        return {name: value for name, value in run(trial, short, teacher).items() if name != "seconds"}

    first = scores(trial)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    other = scores(replace(trial, repeat=2))
    assert scores(trial) == first
    assert {**other, "trial_id": first["trial_id"], "repeat": 1} != first


@pytest.mark.parametrize("trial", [TRIAL, SOFT])
def test_run_trial_in_bf16_learns_the_same(trial: Trial, teacher: torch.nn.Module) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 8})
    half, again = (run(trial, settings.model_copy(update={"precision": "bf16"}), teacher) for _ in range(2))
    exact = run(trial, settings, teacher)
    assert half["top1_last"] == pytest.approx(float(exact["top1_last"]), abs=0.1)  # type: ignore[arg-type]
    assert half["curve"] == again["curve"]
    assert half["curve"] != exact["curve"]


def test_run_trial_without_memory_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vlcp_ray.stages.evaluate.trial.to_device", fail)
    with pytest.raises(ValueError, match=r"evaluate: a training of ConvNet-3 does not fit .*num_gpus .*batch_size"):
        run()


def test_run_trial_leaves_global_random_state_alone(teacher: torch.nn.Module) -> None:
    before = torch.get_rng_state()
    for trial in (TRIAL, SOFT):
        run(trial, SETTINGS.model_copy(update={"epochs": 1}), teacher)
    assert torch.equal(torch.get_rng_state(), before)


def test_run_trial_accepts_read_only_arrays() -> None:
    train = digits(0, 20)
    before = train.pixels.copy()
    train.pixels.flags.writeable = train.labels.flags.writeable = False
    run_trial(train, VAL, NAMES, SETTINGS.model_copy(update={"epochs": 1}), TRIAL, "cpu")
    np.testing.assert_array_equal(train.pixels, before)


def test_run_trial_reports_best_and_last_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([(0.3, 0.5), (0.9, 0.95), (0.6, 0.8), (1.0, 1.0)])  # the last one on the training images
    monkeypatch.setattr(trial_module, "accuracy", lambda predicted, labels: next(results))
    row = run(settings=SETTINGS.model_copy(update={"epochs": 3}))
    assert (row["top1_best"], row["top1_last"], row["top5_last"]) == (0.9, 0.6, 0.8)
    assert row["curve"] == [0.3, 0.9, 0.6]
    assert row["train_top1"] == 1.0


def test_run_trial_with_two_classes_has_full_top5() -> None:
    two = LabelledImages(TRAIN.pixels[:40], TRAIN.labels[:40] % 2)
    row = run_trial(two, two, ("even", "odd"), SETTINGS.model_copy(update={"epochs": 1}), TRIAL, "cpu")
    assert row["top5_last"] == 1


@pytest.mark.parametrize(
    ("trial", "norm"), [(TRIAL, torch.nn.GroupNorm), (SOFT, torch.nn.BatchNorm2d)], ids=["minimax", "rded"]
)
def test_run_trial_uses_the_norm_of_the_protocol(
    trial: Trial, norm: type, teacher: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[torch.nn.Module] = []
    build = trial_module.build_classifier
    monkeypatch.setattr(trial_module, "build_classifier", lambda *a, **k: built.append(build(*a, **k)) or built[0])
    run(trial, SETTINGS.model_copy(update={"epochs": 1}), teacher)
    assert sum(isinstance(module, norm) for module in built[0].modules()) == 3


@pytest.mark.parametrize(
    ("train", "names", "message"),
    [
        (digits(0, 0), NAMES, "evaluate: the train set has no images"),
        (TRAIN, NAMES[:9], r"evaluate: the train set has labels \[9\], but 9 class names"),
    ],
)
def test_run_trial_on_an_unusable_set_is_refused(train: LabelledImages, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_trial(train, VAL, names, SETTINGS, TRIAL, "cpu")


def test_run_trial_without_a_fitting_teacher_is_refused(teacher: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="rded needs a teacher and none was given"):
        run(SOFT)
    with pytest.raises(ValueError, match="the teacher of rded has 10 outputs, but there are 11 class names"):
        run_trial(TRAIN, VAL, (*NAMES, "ten"), SETTINGS, SOFT, "cpu", teacher)


@pytest.mark.parametrize("trial", [TRIAL, SOFT], ids=["minimax", "rded"])
def test_run_trial_curve_has_the_validated_epochs(trial: Trial, teacher: torch.nn.Module) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 7, "rded_epochs": (11,), "validations": 3})
    row = run_trial(TRAIN, VAL, NAMES, settings, trial, "cpu", teacher if trial == SOFT else None)
    epochs = PROTOCOLS[trial.protocol].validated_epochs(row["epochs"], settings.validations)
    assert len(epochs) == len(row["curve"])
    assert epochs[-1] == row["epochs"]


def test_run_trial_that_cannot_learn_is_marked(teacher: torch.nn.Module) -> None:
    """A learning rate that ruins the network, and a teacher of random weights."""
    fast = run(settings=SETTINGS.model_copy(update={"learning_rate": 1e6, "epochs": 3}))
    assert fast["outcome"] in ("diverged", "did_not_learn")
    guessing = build_teacher(TEACH, 10, 16, seed=1).eval()
    blind = run(SOFT, SETTINGS.model_copy(update={"epochs": 30}), guessing)
    assert blind["outcome"] == "did_not_learn"
    assert float(blind["train_top1"]) < 0.3  # type: ignore[arg-type]
    assert run(SOFT, SETTINGS, teacher)["outcome"] == ""


def test_run_trial_with_a_network_that_sees_one_place_did_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(torch.nn.Module):
        """Normalises a map of one place, which leaves zeros."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(torch.nn.functional.group_norm(images.mean((2, 3), keepdim=True), 3).flatten(1))

    monkeypatch.setattr(trial_module, "build_classifier", lambda name, **options: Blind())
    row = run()
    assert row["outcome"] == "did_not_learn"
    assert row["train_top1"] == pytest.approx(0.1, abs=0.05)


def test_run_trial_on_the_digits_has_learned(row: dict[str, object]) -> None:
    assert row["outcome"] == ""
    assert float(row["train_top1"]) > 0.8  # type: ignore[arg-type]
    assert 0 < float(row["train_loss"]) < 2.3  # type: ignore[arg-type]


def test_run_trial_of_two_images_learned_by_heart_is_counted() -> None:
    """So few images cannot tell chance from learning: a low score on val is a score."""
    two = LabelledImages(TRAIN.pixels[:2], np.array([0, 1]))
    val = LabelledImages(VAL.pixels[:100], np.arange(100) % 2)
    row = run_trial(two, val, ("a", "b"), SETTINGS.model_copy(update={"epochs": 100}), TRIAL, "cpu")
    assert (row["train_top1"], row["outcome"]) == (1.0, "")
    assert 0.3 < float(row["top1_last"]) < 0.7


def test_run_trial_that_collapses_at_the_end_did_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = minimax.learning_rate_at
    monkeypatch.setattr(minimax, "learning_rate_at", lambda epoch, *rest: 1e6 if epoch > 46 else rate(epoch, *rest))
    row = run()
    assert float(row["top1_best"]) > 0.4  # type: ignore[arg-type]
    assert row["outcome"] in ("did_not_learn", "diverged")


def test_dropout_depends_on_the_trial_only() -> None:
    """mobilenet_v2 has dropout, which samples from torch's global random state."""
    settings = Evaluate(networks=("mobilenet_v2",), input_size=16, epochs=2, batch_size=10, flip=False)
    trial, train = replace(TRIAL, network="mobilenet_v2"), digits(0, 21)

    def once() -> dict[str, object]:
        row = run_trial(train, digits(1000, 1040), NAMES, settings, trial, "cpu")
        return {name: value for name, value in row.items() if name != "seconds"}

    torch.manual_seed(1)
    first, after = once(), torch.rand(1)
    torch.manual_seed(2)
    second = once()
    assert first == second
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert (first["steps"], first["batch_size"]) == (4, 10)  # the last of 21 images is in the second batch
