"""Tests of the key of a given set: name, seed, images per class; and of its facts and its artifact."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import GivenSet, assign, default_name, describe, of_arrays, write
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.select import SOFT, SOFT_LABELS
from vlcp_ray.store.artifact import Store

CLASSES = JobClasses(("a", "b"), ("ant", "bee"))
BESIDE = ("random", "herding")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)


def given(counts: tuple[int, ...] = (2, 2), **facts: Any) -> GivenSet:
    facts = {"sizes": Counter({(8, 8): sum(counts)}), "content": repr(counts), **facts}
    return GivenSet(
        source="/sets/x", form="folder", rows=lambda: iter(()), counts=counts, labels="class names", **facts
    )


def of_pixels(soft: Any = None, pixels: Any = PIXELS) -> GivenSet:
    return of_arrays(pixels, [0, 1, 0, 1, 1, 0], CLASSES, soft, source="x.pt", form="tensor", labels="class numbers")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/sets/My Set_1/", "my-set-1"),
        ("dm/cifar10_ipc10.pt", "cifar10-ipc10"),
        ("DATM/IPC10/images_best.pt", "ipc10"),
        ("s3://bucket/sets/dm", "dm"),
        ("/", "set"),
        ("日本", "set"),
    ],
)
def test_default_name_is_that_of_the_folder_or_file(place: str, name: str) -> None:
    assert default_name(place) == name


def test_sets_of_one_name_are_of_the_next_seeds_and_others_of_the_first() -> None:
    sets = [given(), given(), given((5, 5))]
    entries = assign(sets, ["a", "b", "c"], ["dm"], (3, 4), BESIDE, 8)
    assert [(e.name, e.step.key["seed"], e.step.key["ipc"]) for e in entries] == [
        ("dm", 3, 2),
        ("dm", 4, 2),
        ("dm", 3, 5),
    ]
    entries = assign(sets[:2], ["a/x", "b/y"], [], (3, 4), BESIDE, 8)
    assert [(entry.name, entry.step.key["seed"]) for entry in entries] == [("x", 3), ("y", 3)]
    assert {entry.stream for entry in entries} == {"given"}


def test_an_export_keeps_the_seed_the_size_and_the_random_numbers_of_its_run() -> None:
    (entry,) = assign([given((2, 1), method="vlcp", seed=7, ipc=2)], ["out"], [], (0,), BESIDE, 8)
    assert (entry.name, dict(entry.step.key), entry.stream) == ("out", {"seed": 7, "ipc": 2, "method": "out"}, "vlcp")
    assert assign([given(method="vlcp", seed=7, ipc=2)], ["out"], ["vlcp"], (0,), BESIDE, 8)[0].name == "vlcp"


@pytest.mark.parametrize(
    ("places", "names", "sentence"),
    [
        (["a/x", "b/x"], [], "b/x: another set has the name 'x', too; give --name for each of them"),
        (["a/x", "b/y", "c/z"], ["one", "two"], "--name: 2 names for 3 sets"),
        (["a", "b", "c"], ["dm"], "2 sets are called 'dm', with the seeds [0, 1]; add seeds: --set seeds=[0,1,2]"),
        (["random"], [], "'random' is the name of a method; give it another with --name"),
        (["a"], ["vlcp"], "'vlcp' is the name of a method"),
        (["a"], ["../a"], "--name ../a: it must consist of lower-case letters"),
    ],
)
def test_names_that_cannot_be_used_are_refused(places: list[str], names: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        assign([given() for _ in places], places, names, (0, 1), BESIDE, 8)
    assert sentence in str(error.value)


def test_facts_say_what_a_reader_of_the_scores_has_to_know() -> None:
    sizes = Counter({(32, 32): 9, (40, 30): 1})
    (entry,) = assign([given((4, 6), sizes=sizes, scale="uint8", notes=("a note",))], ["x"], [], (0,), BESIDE, 8)
    assert entry.step.key["ipc"] == 5
    lines = describe(entry.facts)
    assert (
        lines[0]
        == "x: 10 images, 4 to 6 of each of 2 classes, seed 0, from /sets/x (folder, uint8; labels: class names)"
    )
    assert lines[1] == "  a note"
    assert lines[2] == "  its classes have 4 to 6 images: the sets beside it have 5 of each"
    assert lines[3].startswith("  images of 32 x 32 and 1 other sizes are resized to 8 x 8 as the job resizes all")


def test_content_is_that_of_pixels_labels_and_soft_labels() -> None:
    soft = np.full((6, 2), 0.5, np.float32)
    changed = PIXELS.copy()
    changed[3, 0, 0, 0] ^= 1
    contents = [of_pixels().content, of_pixels().content, of_pixels(soft).content, of_pixels(pixels=changed).content]
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


def test_write_makes_the_artifact_once_with_all_rows_and_where_they_came_from(tmp_path: Path) -> None:
    store, soft = Store.at(str(tmp_path)), np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1, 0]]
    (entry,) = assign([of_pixels(soft)], ["x.pt"], [], (0,), BESIDE, 8)
    write(entry, store)
    artifact = store.artifact(entry.step)
    rows = artifact.table("synthetic", SYNTHETIC)
    assert rows["image_id"].to_pylist() == [f"{number:06d}" for number in range(6)]
    assert rows["class_name"].to_pylist() == ["ant", "bee", "ant", "bee", "bee", "ant"]
    assert artifact.table(SOFT, SOFT_LABELS)["soft_label"].to_pylist() == soft.tolist()
    manifest = artifact.manifest() or {}
    assert (manifest["rows"], manifest["origin"]["source"]) == (6, "x.pt")
    assert len(manifest["files"]) == 2
    before = (tmp_path / entry.step.folder / "manifest.json").stat().st_mtime_ns
    write(entry, store)
    assert (tmp_path / entry.step.folder / "manifest.json").stat().st_mtime_ns == before


def test_of_arrays_without_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x\.pt: it has no image of 'bee'"):
        of_arrays(PIXELS, [0] * 6, CLASSES, None, source="x.pt", form="tensor", labels="class numbers")
