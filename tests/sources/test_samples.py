"""Tests of grouping the members of a tar into samples, and of telling a sample from a single file."""

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from tests.image_sets import write_tar
from vlcp_ray.sources.samples import Sample, samples
from vlcp_ray.sources.tars import open_tar


def grouped(folder: Path, *names: str) -> list[Sample]:
    file = write_tar(folder / "x.tar", [(name, b"x") for name in names])
    return list(samples(open_tar(LocalFileSystem(), str(file), "")))


@pytest.mark.parametrize(
    ("names", "is_labelled"),
    [
        (["a/1.jpg", "a/1.cls"], True),
        (["1.cls"], True),
        (["1.jpg", "1.json"], True),
        (["1.npy", "1.json"], True),
        (["1.jpg", "1.txt"], True),
        (["a/1.jpg"], False),
        (["a/1.jpg", "a/1.png"], False),
        (["a/1.seg.png", "a/1.jpg"], False),
        (["annotations.json"], False),
        (["README.md"], False),
        (["n01440764.tar"], False),
        (["data_batch_1"], False),
        (["1.html", "1.css"], False),
    ],
)
def test_sample_is_labelled_if_something_belongs_to_its_image(
    tmp_path: Path, names: list[str], is_labelled: bool
) -> None:
    (sample,) = grouped(tmp_path, *names)
    assert sample.is_labelled() == is_labelled


def test_samples_are_neighbours_of_one_key(tmp_path: Path) -> None:
    found = grouped(
        tmp_path, "1.jpg", "1.cls", "2.jpg", "1.jpg", "1.png", "1.jpg", "b/22.05.png", "b/22.05.cls", "22.x.y.jpg"
    )
    assert [(sample.key, sample.name, list(sample.members)) for sample in found] == [
        ("1", "1", ["jpg", "cls"]),
        ("2", "2", ["jpg"]),
        ("1", "1 again 1", ["jpg", "png"]),
        ("1", "1 again 2", ["jpg"]),
        ("b/22.05", "b/22.05", ["png", "cls"]),
        ("22", "22", ["x.y.jpg"]),
    ]


def test_samples_have_no_hidden_members(tmp_path: Path) -> None:
    names = [
        ".DS_Store",
        "a/._1.jpg",
        "a/1.jpg",
        "a/._1.cls",
        "a/1.cls",
        ".git/2.jpg",
        "a/.b/3.cls",
        "./4.jpg",
        "../5.jpg",
    ]
    found = [(sample.name, list(sample.members)) for sample in grouped(tmp_path, *names)]
    assert found == [("a/1", ["jpg", "cls"]), ("./4", ["jpg"]), ("../5", ["jpg"])]


def test_sample_contents_are_its_labels_and_the_image_that_is_read(tmp_path: Path) -> None:
    (sample,) = grouped(tmp_path, "1.left.png", "1.cls", "1.npy", "1.json", "1.jpg", "1.right.png")
    expected = [sample.members[name].content for name in ("cls", "json", "jpg")]
    assert sample.contents(1) == expected
    assert sample.contents(0) == expected[:2]


def test_sample_image_is_the_only_one_of_a_longer_extension(tmp_path: Path) -> None:
    both, one, exact = (
        grouped(tmp_path, *names)[0]
        for names in (
            ("1.input.jpg", "1.target.jpg", "1.cls"),
            ("1.input.jpg", "1.cls"),
            ("1.input.jpg", "1.jpg", "1.cls"),
        )
    )
    assert both.image() is None
    assert [sample.image().name for sample in (one, exact)] == ["1.input.jpg", "1.jpg"]
