"""Tests of tensor files: the layouts that released code writes, and files that are damaged, wrong or hostile."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlcp_ray.scoring.tensors import find_file, read
from vlcp_ray.settings import ConfigError

IMAGES = torch.rand(6, 3, 4, 4)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


class Code:
    """An object that runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


def save(folder: Path, content: Any, name: str = "set.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        {"images": IMAGES, "labels": LABELS},
        {"image": IMAGES, "target": LABELS.float()},
        {"data": [[IMAGES, LABELS]], "accs": [0.5]},  # of DC and DM
        [(IMAGES, LABELS[:, None])],
        {"images": IMAGES.double(), "labels": LABELS.int()},
        {"images": IMAGES.requires_grad_(), "labels": LABELS},
    ],
)
def test_read_knows_the_layouts_of_one_file(content: Any, tmp_path: Path) -> None:
    found = read(save(tmp_path, content))
    assert np.allclose(found.images, IMAGES.detach().numpy())
    assert found.labels.numbers.tolist() == LABELS.tolist()
    assert (found.labels.soft, found.labels.kind) == (None, "class numbers")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.uint8, np.uint8),
        (torch.int64, np.int64),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_read_keeps_numbers_as_they_are_but_those_of_half_precision(
    dtype: torch.dtype, expected: type, tmp_path: Path
) -> None:
    """Whether they are whole numbers says their scale."""
    numbers = (IMAGES.detach() * 255).to(dtype)
    images = read(save(tmp_path, (numbers, LABELS))).images
    assert images.dtype == expected
    assert (images == numbers.to(torch.float64).numpy()).all()


@pytest.mark.parametrize(("images", "labels"), [("images_best.pt", "labels_best.pt"), ("images.PT", "labels.PT")])
def test_labels_are_found_beside_the_images(images: str, labels: str, tmp_path: Path) -> None:
    save(tmp_path, IMAGES, images)
    save(tmp_path, LABELS, labels)
    save(tmp_path, torch.tensor(0.1), "lr.pt")
    assert find_file(tmp_path) == tmp_path / images
    assert read(tmp_path / images).labels.numbers.tolist() == LABELS.tolist()
    other = save(tmp_path, LABELS.flip(0), "other.pt")
    assert read(tmp_path / images, other).labels.numbers.tolist() == LABELS.flip(0).tolist()


def test_class_names_of_a_file_are_read(tmp_path: Path) -> None:
    content = {"images": IMAGES, "labels": LABELS, "classes": ["a", "b", "c"]}
    assert read(save(tmp_path, content)).class_names == ("a", "b", "c")


def test_labels_of_rows_are_one_hot_or_soft_or_logits(tmp_path: Path) -> None:
    one_hot = torch.nn.functional.one_hot(LABELS, 3)
    logits = one_hot * 4 - 1.5
    for rows, kind in ((one_hot, "one-hot"), (logits.softmax(1), "soft: prob"), (logits, "soft: logits")):
        found = read(save(tmp_path, (IMAGES, rows))).labels
        assert found.kind.startswith(kind)
        assert (found.numbers.tolist(), found.width) == (LABELS.tolist(), 3)
        assert found.soft is None if kind == "one-hot" else np.allclose(found.soft, logits.softmax(1), atol=1e-6)
    large = read(save(tmp_path, (IMAGES, one_hot * 2000.0))).labels.soft
    assert large is not None
    assert (large == one_hot.numpy()).all()  # the exponential of 2000 is infinite


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (IMAGES, "it has no labels, and no labels file is beside it; give --labels FILE"),
        ((IMAGES.permute(0, 2, 3, 1), LABELS), "move the channels first: images.permute(0, 3, 1, 2)"),
        ((IMAGES[:, :2], LABELS), "with 1 or 3 channels"),
        ((IMAGES[0], LABELS), "the images have the shape (3, 4, 4), not (images, channels, height, width)"),
        ((IMAGES[:0], LABELS[:0]), "it has no images"),
        ((IMAGES > 0.5, LABELS), "the images are true or false"),
        ((IMAGES / 0, LABELS), "image 0 has numbers that are not finite"),
        ((IMAGES.index_fill(0, torch.tensor(4), torch.nan), LABELS), "image 4 has numbers that are not finite"),
        ((IMAGES.to(torch.complex64), LABELS), "no dense tensor of real numbers"),
        ((IMAGES.to_sparse(), LABELS), "no dense tensor of real numbers"),
        ((torch.zeros(1).expand(10**6, 3, 10**3, 10**3), LABELS), "are the most of a tensor; give the set as an image"),
        ((IMAGES, LABELS[:5]), "the labels have the shape (5,), not (6,) or (6, classes)"),
        ((IMAGES, LABELS + 0.5), "the labels are no whole numbers, such as 0.5"),
        ((IMAGES, torch.full((6,), torch.nan)), "labels that are not finite"),
        ({"a": IMAGES}, "it is a dict of a, without images and labels"),
        ({"images": IMAGES, "labels": LABELS, "classes": [0, 1, 2]}, "its classes are no list of names; save one, or"),
        ({"images": IMAGES, "labels": LABELS, "class_names": "abc"}, "its class_names are no list of names"),
        ({"data": [[IMAGES, LABELS]] * 5}, "it holds 5 sets; save each in a file of its own"),
        ([1, 2, 3], "it holds a list of 3 parts that are no images"),
        ("text", "it holds str, no images"),
        (Code(), "it holds Python objects besides tensors, which can run code and are not loaded"),
        ({"images": IMAGES, "labels": LABELS, "x": Code()}, "it holds Python objects besides tensors"),
    ],
)
def test_read_of_a_wrong_file_is_refused_in_one_sentence(
    content: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("was-run").exists()


def test_read_of_bytes_that_are_no_tensor_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (
        b"",
        b"junk",
        pickle.dumps(Code()),
        pickle.dumps(Code(), 2),
        (save(tmp_path, (IMAGES, LABELS)).read_bytes())[:-90],
    ):
        (tmp_path / "set.pt").write_bytes(content)
        with pytest.raises(ConfigError, match="torch"):
            read(tmp_path / "set.pt")
    assert not Path("was-run").exists()


def test_read_of_a_file_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/data/0", bytes(10**7))
    with pytest.raises(ConfigError, match="it unpacks to 10,000,000 bytes"):
        read(tmp_path / "set.pt")


def test_find_file_of_several_names_them(tmp_path: Path) -> None:
    assert find_file(tmp_path) is None
    save(tmp_path, IMAGES, ".hidden.pt")
    assert find_file(tmp_path) is None
    save(tmp_path, LABELS, "labels.pt")
    (tmp_path / "cat").mkdir()
    save(tmp_path, IMAGES, "checkpoint.pt")
    assert find_file(tmp_path) is None  # an image folder with something beside
    save(tmp_path, IMAGES, "images_100.pt")
    assert find_file(tmp_path) == tmp_path / "images_100.pt"
    save(tmp_path, IMAGES, "images_200.pt")
    with pytest.raises(ConfigError, match=r"several tensor files \(images_100.pt, images_200.pt\)"):
        find_file(tmp_path)
