"""Tests of reading sets of any form: tensors of one set on every scale, and options that no set uses."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.image_sets import picture
from vlcp_ray.images import decode
from vlcp_ray.scoring import whitening
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import GivenSet
from vlcp_ray.scoring.read import Known, Options, read_all
from vlcp_ray.scoring.scales import NORMALISATIONS
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Ingest

CLASSES = JobClasses(("a", "b", "c"), ("ant", "bee", "cat"))
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
TRAIN = np.random.default_rng(1).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)


def known(class_list: str = "") -> Known:
    def train_pixels(size: int) -> Any:
        assert size == 8
        return TRAIN

    return Known(CLASSES, Ingest(class_list=class_list), "", train_pixels)


def read(*places: Path, **options: str) -> list[GivenSet]:
    return read_all([str(place) for place in places], Options(**options), known())


def save(folder: Path, images: Any, labels: Any = LABELS, name: str = "set.pt") -> Path:
    torch.save((images, labels), folder / name)
    return folder / name


def whitened() -> torch.Tensor:
    made = whitening.fit(TRAIN)
    vectors = PIXELS.double().flatten(1) / 255
    return ((vectors - torch.from_numpy(made.mean)) @ torch.from_numpy(made.matrix)).view(6, 3, 8, 8).float()


def normalised(name: str) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALISATIONS[name])
    return (PIXELS / 255 - mean) / std


@pytest.mark.parametrize(
    ("images", "options", "scale"),
    [
        (PIXELS, {}, "uint8, 0 to 255"),
        (PIXELS / 255, {}, "float32, 0 to 1"),
        (PIXELS.float(), {}, "float32, 0 to 255"),
        (normalised("cifar10"), {}, "float32, normalised by cifar10"),
        (normalised("imagenet"), {"normalised": "imagenet"}, "float32, normalised by imagenet"),
        (whitened(), {"normalised": "zca"}, "float32, ZCA-whitened by the job's 300 training images, eps 0.1"),
    ],
)
def test_a_set_is_the_same_on_every_scale(images: Any, options: dict[str, str], scale: str, tmp_path: Path) -> None:
    (given,) = read(save(tmp_path, images), classes="job", **options)
    assert given.scale == scale
    rows = pa.concat_tables(given.rows())
    found = np.stack([np.asarray(decode(image.as_py())) for image in rows["image"]])
    assert (found == PIXELS.permute(0, 2, 3, 1).numpy()).all()
    assert given.content == read(save(tmp_path, PIXELS), classes="job")[0].content
    notes = () if images.dtype == torch.uint8 else ("its values are rounded to 8 bits",)
    assert given.notes == notes


def test_a_whitened_set_without_its_name_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"they are normalised or whitened, and the file does not say by which.*zca"):
        read(save(tmp_path, whitened()), classes="job")


def test_class_numbers_are_those_of_the_list(tmp_path: Path) -> None:
    file = save(tmp_path, PIXELS)
    (tmp_path / "classes.txt").write_text("cat\nant\nbee\n")
    labels = [pa.concat_tables(read(file, classes=str(tmp_path / "classes.txt"))[0].rows())["label"].to_pylist()]
    assert labels == [[2, 0, 1, 2, 0, 1]]
    with pytest.raises(ConfigError, match="nothing says which class a number is"):
        read(file)
    found = read_all([str(file)], Options(), known(str(tmp_path / "classes.txt")))  # the job's own list
    assert pa.concat_tables(found[0].rows())["label"].to_pylist() == labels[0]
    torch.save({"images": PIXELS, "labels": LABELS, "classes": ["Cat", "Ant", "Bee"]}, tmp_path / "named.pt")
    assert pa.concat_tables(read(tmp_path / "named.pt")[0].rows())["label"].to_pylist() == labels[0]


def test_soft_labels_are_put_into_the_order_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\nant\nbee\n")
    shares = torch.eye(3)[LABELS] * 0.7 + 0.1
    (given,) = read(save(tmp_path, PIXELS, shares), classes=str(tmp_path / "classes.txt"))
    assert given.soft is not None
    found = np.array(given.soft["soft_label"].to_pylist())
    assert found.argmax(1).tolist() == [2, 0, 1, 2, 0, 1]
    assert given.notes == ("its soft labels are used by rded-stored; minimax takes the class with the largest one",)


def test_the_source_of_a_folder_is_its_tensor_file_and_of_a_file_what_the_user_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", PIXELS)
    found = read(Path("run"), Path("run/set.pt"), tmp_path / "run" / "set.pt", classes="job")
    assert [given.source for given in found] == [
        str(tmp_path / "run" / "set.pt"),
        "run/set.pt",
        str(tmp_path / "run" / "set.pt"),
    ]


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    (given,) = read(save(tmp_path, PIXELS[:, :1]), classes="job")
    image = np.asarray(decode(pa.concat_tables(given.rows())["image"][0].as_py()))
    assert (image == PIXELS[0, 0].numpy()[:, :, None]).all()
    assert given.notes == ("its grey images become RGB",)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (LABELS + 1, "class numbers from 1 to 3, and there are 3 classes, counted from 0"),
        (LABELS - 1, "class numbers from -1 to 1"),
        (torch.rand(6, 5), "5 numbers each, and there are 3 classes"),
        (torch.eye(5)[LABELS], "5 numbers each, and there are 3 classes"),
        (LABELS * 0, "it has no image of 'bee' and 1 more of the job's 3 classes"),
    ],
)
def test_labels_that_are_not_of_the_job_are_refused(labels: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(save(tmp_path, PIXELS, labels), classes="job")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((6, 1, 8, 8), "square RGB images of at most 64 pixels"),
        ((6, 3, 8, 4), "those of .* are 4 x 8"),
        ((6, 3, 65, 65), "save them before whitening"),
    ],
)
def test_a_whitening_that_cannot_be_made_is_refused(shape: tuple[int, ...], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(save(tmp_path, torch.randn(shape)), classes="job", normalised="zca")


def test_options_that_no_set_uses_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number, name in enumerate(CLASSES.names):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(picture(number))
    assert read(folder)[0].counts == (1, 1, 1)
    file = save(tmp_path, PIXELS)
    with pytest.raises(ConfigError, match="--normalised is for sets of tensor files, and none of these is one"):
        read(folder, normalised="zca")
    torch.save({"images": PIXELS, "labels": LABELS, "classes": CLASSES.names}, tmp_path / "named.pt")
    with pytest.raises(ConfigError, match="--classes is for sets whose classes are numbers"):
        read(tmp_path / "named.pt", classes="job")
    with pytest.raises(ConfigError, match="--labels: it is of one set, and several are scored"):
        read(file, folder, classes="job", labels=str(file))
    with pytest.raises(ConfigError, match=r"--labels .*nowhere\.pt: there is no such file"):
        read(file, classes="job", labels=str(tmp_path / "nowhere.pt"))


def test_places_that_are_no_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the sets to score"):
        read()
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="is a file, and no tar, parquet"):
        read(tmp_path / "notes.txt")
