"""Tests that exported sets open in the libraries that people use: complete, in order, with their meaning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset
from pyarrow import parquet

from tests.exports.conftest import IPC, NAMES, PIXELS, Export, exporter, pairs, synthetic
from vlcp_ray.config import Job
from vlcp_ray.exports import FORMATS, dd_ranking
from vlcp_ray.exports.dataset import WRITERS
from vlcp_ray.exports.soft_labels import load_labeller
from vlcp_ray.pipeline import graph
from vlcp_ray.sources import open_source
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.pair.saved_captions import CaptionTable
from vlcp_ray.store.artifact import Store

ROOT = Path(__file__).parents[2]
every_form = pytest.mark.parametrize("form", WRITERS)


def test_writers_are_the_formats_of_sets() -> None:
    assert {*WRITERS, dd_ranking.FORM, "captions", "model"} == set(FORMATS)


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_export_opens_in_datasets(form: str, exported: Export, tmp_path: Path) -> None:
    to, line = exported(form)
    assert line == "12 images of 3 classes, generate seed 0 ipc 4 vlcp"
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert "soft_label" not in data.features
    assert data.features["label"] == ClassLabel(names=NAMES)
    assert isinstance(data.features["image"], Image)
    assert data["image_id"][:] == synthetic()["image_id"].to_pylist()
    assert data["label"][:] == synthetic()["label"].to_pylist()
    assert data["text"][:] == synthetic()["text"].to_pylist()
    pixels = np.stack([np.asarray(image) for image in data["image"]])
    assert np.array_equal(pixels, PIXELS.reshape(-1, 8, 8, 3))


def test_webdataset_opens_in_datasets(exported: Export, tmp_path: Path) -> None:
    to, _ = exported("webdataset")
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["cls"][:] == synthetic()["label"].to_pylist()
    assert [row["text"] for row in data["json"]] == synthetic()["text"].to_pylist()
    assert np.array_equal(np.stack([np.asarray(image) for image in data["png"]]), PIXELS.reshape(-1, 8, 8, 3))
    assert (to / "classes.txt").read_text().splitlines() == NAMES


def test_parquet_trains_a_classifier_with_the_documented_code(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, _ = exported("parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(to.parent / "cache"))
    pages = [file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *sorted(ROOT.glob("*/README.md")))]
    blocks = [block.partition("```")[0] for page in pages for block in page.split("```python\n")[1:]]
    (code,) = [block for block in blocks if 'load_dataset("FOLDER"' in block]
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(to)), names)
    assert (names["net"](names["x"]).argmax(1) == names["y"]).float().mean() > 0.9
    assert names["y"].tolist() == synthetic()["label"].to_pylist()


@every_form
def test_export_is_an_image_set_that_ingest_reads(form: str, exported: Export) -> None:
    source = open_source(Ingest(source=str(exported(form)[0]), val_fraction=0.25))
    rows = pa.concat_tables([table for part in source.parts() for table in source.read(part, set())])
    names = ["0002 a_b" if form == "imagefolder" and name == "a/b" else name for name in NAMES]
    assert sorted(source.classes.names) == sorted(names)
    assert len(set(rows["image_id"].to_pylist())) == len(synthetic())
    assert set(rows["reason"].to_pylist()) == {""}
    assert sorted(rows["class_key"].to_pylist()) == sorted(name for name in names for _ in range(IPC))


@every_form
def test_export_with_a_teacher_has_its_soft_labels(form: str, job_with_teacher: Job, tmp_path: Path) -> None:
    to, _ = exporter(job_with_teacher, tmp_path)(form)
    data = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    if form == "webdataset":
        written = np.array([row["soft_label"] for row in data["json"]], np.float32)
    else:
        assert data.features["soft_label"] == List(Value("float32"), length=len(NAMES))
        written = np.array(data["soft_label"][:], np.float32)
    (teacher,) = [step for step in graph(job_with_teacher) if step.stage == "teach"]
    label = load_labeller(Store.at(str(tmp_path / "runs")).artifact(teacher), job_with_teacher.teach)
    expected = np.stack(label(synthetic()).to_numpy(zero_copy_only=False))
    assert np.array_equal(written, expected)  # nine digits of text restore the same float32


def test_imagefolder_has_a_folder_for_each_class(exported: Export) -> None:
    to, _ = exported("imagefolder")
    assert {path.name for path in (to / "train").iterdir()} == {"cat", "dog", "0002 a_b", "metadata.jsonl"}
    assert len(list((to / "train").rglob("*.png"))) == len(synthetic())


def test_captions_are_read_by_caption_source(exported: Export) -> None:
    to, line = exported("captions")
    assert line == "6 captions"
    rows = [json.loads(text) for text in (to / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == pairs().sort_by("image_id")["caption"].to_pylist()
    assert [row["source"] for row in rows] == [f"set/{row['file_name']}" for row in rows]
    for table in (parquet.read_table(to / "captions.parquet"), pa.Table.from_pylist(rows)):
        assert set(table["source"].to_pylist()) == {row["source"] for row in rows}
        again = CaptionTable(table)(pairs().select(["image_id", "class_name"]))
        assert again["caption"].to_pylist() == pairs()["caption"].to_pylist()
        assert set(again["reason"].to_pylist()) == {""}
