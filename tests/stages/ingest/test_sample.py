"""Tests of choosing the first images of every class."""

from collections import Counter
from pathlib import Path

import pytest

from tests.image_sets import open_set, picture, write_files, write_parquet, write_tar
from vlcp_ray.sources.reader import Source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.ingest.sample import OthersDone, Sample, sample_part

NAMES = [f"{name}/{i:03d}.jpg" for name in ("cat", "dog") for i in range(30)]


def write_set(root: Path, layout: str) -> Path:
    """Write the same 60 images."""
    rows = [(name, picture(number, size=(4, 4))) for number, name in enumerate(NAMES)]
    if layout == "folder":
        return write_files(root, {f"train/{name}": content for name, content in rows})
    for part in range(3):
        mine = rows[part::3]
        if layout == "parquet":
            table = [(content, name.split("/")[1], name.split("/")[0]) for name, content in mine]
            write_parquet(root / f"train-{part}.parquet", table, None)
        else:
            members = [
                member
                for name, content in mine
                for key in [name.replace("/", "-").removesuffix(".jpg")]
                for member in ((f"{key}.jpg", content), (f"{key}.cls", name.split("/")[0].encode()))
            ]
            write_tar(root / f"train-{part}.tar", members)
    return root


def choose(source: Source, settings: Ingest, order: int = 1) -> Sample:
    sample = Sample()
    for number, part in list(enumerate(source.parts()))[::order]:
        sample.add(sample_part(source, settings, number, part), settings)
    return sample


def chosen_ids(source: Source, sample: Sample) -> list[str]:
    sources = {name for names in sample.sources().values() for name in names}
    images = [image for part in source.parts() for image in source.images(part, ids=True)]
    return sorted(image.image_id for image in images if image.source in sources)


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_sample_is_in_larger_ones_whatever_the_order_of_parts(tmp_path: Path, layout: str) -> None:
    source = open_set(write_set(tmp_path, layout))
    ids: list[list[str]] = []
    for count in (1, 7, 20, 100):
        settings = Ingest(source=str(tmp_path), max_per_class=count)
        ids.append(chosen_ids(source, choose(source, settings)))
        assert chosen_ids(source, choose(source, settings, order=-1)) == ids[-1]
        by_class = Counter(image_id.split("/")[1] for image_id in ids[-1])
        assert by_class == {"cat": min(count, 30), "dog": min(count, 30)}
    assert set(ids[0]) < set(ids[1]) < set(ids[2]) < set(ids[3])


def test_sample_of_equal_ids_is_equal_in_folders_and_tables(tmp_path: Path) -> None:
    found = []
    for layout in ("folder", "parquet"):
        source = open_set(write_set(tmp_path / layout, layout))
        settings = Ingest(source=str(tmp_path / layout), max_per_class=5)
        found.append(chosen_ids(source, choose(source, settings)))
    assert found[0] == found[1]


def test_sample_of_val_has_a_limit_of_its_own(tmp_path: Path) -> None:
    source = open_set(write_set(tmp_path, "folder"))
    settings = Ingest(source=str(tmp_path), max_per_class=3, max_val_per_class=2, val_fraction=0.5)
    places = choose(source, settings).places
    assert {key: len(some) for key, some in places.items()} == {
        (split, name): count for split, count in (("train", 3), ("val", 2)) for name in ("cat", "dog")
    }
    without = choose(source, Ingest(source=str(tmp_path), max_val_per_class=2, val_fraction=0.5)).places
    assert len(without["train", "cat"]) + len(without["train", "dog"]) > 20


def test_sample_of_damaged_parts_says_so(tmp_path: Path) -> None:
    write_set(tmp_path, "webdataset")
    (tmp_path / "train-9.tar").write_bytes(b"x" * 600)
    source = open_set(tmp_path)
    sample = choose(source, Ingest(source=str(tmp_path), max_per_class=4))
    assert [text.split(":")[0] for text in sample.damaged] == ["train-9.tar"]
    assert sum(len(names) for names in sample.sources().values()) == 8


def test_others_done_are_those_not_chosen_and_those_done() -> None:
    others = OthersDone(frozenset({"a", "b"}), {"b"})
    assert [name in others for name in "abc"] == [False, True, True]
