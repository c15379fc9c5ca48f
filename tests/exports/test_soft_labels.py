"""Whether the soft labels of an export are what a real teacher says of the plain images, alone or among others."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.labelled_digits import NAMES, digits
from vlcp_ray.augment import normalise
from vlcp_ray.config import Teach
from vlcp_ray.exports.soft_labels import labeller
from vlcp_ray.protocols.teacher import Taught, load_teacher, teach
from vlcp_ray.schemas import TEACHER
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Artifact, Step, Store

SETTINGS = Teach(network="ConvNet-3", width=16, input_size=16, epochs=6, batch_size=50, flip=False)
SHOWN = digits(1500, 1650)


@pytest.fixture(scope="module")
def taught() -> Taught:
    return teach(digits(0, 1000), digits(1000, 1500), NAMES, SETTINGS, 0, "cpu")


@pytest.fixture
def artifact(taught: Taught, tmp_path: Path) -> Artifact:
    made = Store.at(str(tmp_path)).artifact(Step("teach", 1, {}))
    made.write_bytes(TEACHER, save(taught.state))
    return made


def rows(side: int = 16) -> pa.Table:
    """The shown digits as image files of any size."""
    files = []
    for pixels in SHOWN.pixels:
        sink = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST).save(sink, "PNG")
        files.append(sink.getvalue())
    return pa.table({"image": pa.array(files, pa.binary()), "label": pa.array(SHOWN.labels, pa.int32())})


def test_they_are_the_probabilities_of_the_plain_image(artifact: Artifact, taught: Taught) -> None:
    said = labeller(artifact, SETTINGS)(rows())
    assert said.type == pa.list_(pa.float32(), len(NAMES))
    shares = np.stack(said.to_numpy(zero_copy_only=False))
    with torch.inference_mode():
        logits = load_teacher(SETTINGS, taught.state)(normalise(torch.tensor(SHOWN.pixels)))
    assert np.allclose(shares, logits.softmax(1).numpy(), atol=1e-5)
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    assert (shares.argmax(1) == SHOWN.labels).mean() > 0.8  # in the order of the labels


def test_neighbours_and_shards_change_nothing(artifact: Artifact) -> None:
    label, table = labeller(artifact, SETTINGS), rows()
    whole = np.stack(label(table).to_numpy(zero_copy_only=False))
    assert np.array_equal(whole, np.stack(label(table).to_numpy(zero_copy_only=False)))
    for size in (1, 7, 100):
        parts = [label(table.slice(start, size)) for start in range(0, len(table), size)]
        assert np.allclose(np.stack(pa.concat_arrays(parts).to_numpy(zero_copy_only=False)), whole, atol=1e-5)
    backwards = np.stack(label(table.take(np.arange(len(table))[::-1])).to_numpy(zero_copy_only=False))
    assert np.allclose(backwards[::-1], whole, atol=1e-5)


def test_an_image_of_another_size_is_scaled_to_the_teachers(artifact: Artifact) -> None:
    shares = np.stack(labeller(artifact, SETTINGS)(rows(side=40)).to_numpy(zero_copy_only=False))
    assert (shares.argmax(1) == SHOWN.labels).mean() > 0.8


def test_weights_that_are_gone_are_named_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.safetensors is gone; delete that folder and run the job again"):
        labeller(Store.at(str(tmp_path)).artifact(Step("teach", 1, {})), SETTINGS)
