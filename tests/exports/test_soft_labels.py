"""Tests of the soft labels of an export: the predictions of a real teacher for plain images."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.labelled_digits import NAMES, digits
from vlcp_ray.exports.soft_labels import load_labeller
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.protocols.augment import normalise
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.teach import WEIGHTS, Teach
from vlcp_ray.stages.teach.train import TrainedTeacher, train_teacher
from vlcp_ray.store.artifact import Artifact, Step, Store

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=6, batch_size=50, flip=False)
LABELLED = digits(1500, 1650)


@pytest.fixture(scope="module")
def teacher() -> TrainedTeacher:
    return train_teacher(digits(0, 1000), digits(1000, 1500), NAMES, SETTINGS, 0, "cpu")


@pytest.fixture
def artifact(teacher: TrainedTeacher, tmp_path: Path) -> Artifact:
    artifact = Store.at(str(tmp_path)).artifact(Step("teach", 1, {}))
    artifact.write_bytes(WEIGHTS, save(teacher.state))
    return artifact


def rows(side: int = 16) -> pa.Table:
    """The labelled digits as image files of any size."""
    files = []
    for pixels in LABELLED.pixels:
        sink = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST).save(sink, "PNG")
        files.append(sink.getvalue())
    return pa.table({"image": pa.array(files, pa.binary()), "label": pa.array(LABELLED.labels, pa.int32())})


def test_labeller_returns_the_probabilities_of_the_plain_image(artifact: Artifact, teacher: TrainedTeacher) -> None:
    labels = load_labeller(artifact, SETTINGS)(rows())
    assert labels.type == pa.list_(pa.float32(), len(NAMES))
    shares = np.stack(labels.to_numpy(zero_copy_only=False))
    with torch.inference_mode():
        logits = load_teacher(SETTINGS, teacher.state)(normalise(torch.tensor(LABELLED.pixels)))
    assert np.allclose(shares, logits.softmax(1).numpy(), atol=1e-5)
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    assert (shares.argmax(1) == LABELLED.labels).mean() > 0.8  # in the order of the labels


def test_labeller_does_not_depend_on_other_rows(artifact: Artifact) -> None:
    label, table = load_labeller(artifact, SETTINGS), rows()
    whole = np.stack(label(table).to_numpy(zero_copy_only=False))
    assert np.array_equal(whole, np.stack(label(table).to_numpy(zero_copy_only=False)))
    for size in (1, 7, 100):
        parts = [label(table.slice(start, size)) for start in range(0, len(table), size)]
        assert np.allclose(np.stack(pa.concat_arrays(parts).to_numpy(zero_copy_only=False)), whole, atol=1e-5)
    backwards = np.stack(label(table.take(np.arange(len(table))[::-1])).to_numpy(zero_copy_only=False))
    assert np.allclose(backwards[::-1], whole, atol=1e-5)


def test_labeller_scales_images_to_the_input_size_of_the_teacher(artifact: Artifact) -> None:
    shares = np.stack(load_labeller(artifact, SETTINGS)(rows(side=40)).to_numpy(zero_copy_only=False))
    assert (shares.argmax(1) == LABELLED.labels).mean() > 0.8


def test_load_labeller_without_weights_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.safetensors is missing; delete that folder and re-run the job"):
        load_labeller(Store.at(str(tmp_path)).artifact(Step("teach", 1, {})), SETTINGS)
