"""Tests of reading exports: every format gives the rows of the run, and damaged or hostile ones are refused."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.exports.conftest import IPC, NAMES, Export, exporter, job, job_with_teacher, synthetic  # noqa: F401
from tests.hostile import tar_header, tar_member
from vlcp_ray.config import Job
from vlcp_ray.pipeline import graph
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.scoring.given import GivenSet
from vlcp_ray.scoring.read import Known, Options, read_all
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Ingest

CLASSES = JobClasses(tuple(NAMES), tuple(NAMES))


def read(folder: Path, classes: JobClasses = CLASSES, teacher: str = "", settings: Ingest | None = None) -> GivenSet:
    known = Known(classes, settings or Ingest(), teacher, lambda size: pytest.fail("no whitening is needed"))
    return read_all([str(folder)], Options(), known)[0]


@pytest.fixture
def exported(job_with_teacher: Job, tmp_path: Path) -> Export:  # noqa: F811
    return exporter(job_with_teacher, tmp_path)


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset", "dd-ranking"])
def test_every_format_gives_the_images_ids_and_labels_of_the_run(form: str, exported: Export) -> None:
    given = read(exported(form)[0])
    names = ["image_id", "label", "class_name", "split", "image"]
    assert pa.concat_tables(given.rows()).schema == SYNTHETIC
    found = pa.concat_tables(given.rows()).select(names).sort_by("image_id")
    assert found.equals(synthetic().select(names).sort_by("image_id"))
    assert (given.method, given.seed, given.ipc, given.per_class, given.counts) == ("vlcp", 0, IPC, IPC, (IPC,) * 3)
    assert given.notes[0] == f"it is the export of the set vlcp, seed 0, {IPC} images per class"


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset", "dd-ranking"])
def test_soft_labels_of_another_teacher_are_kept_in_the_order_of_the_jobs_labels(
    form: str,
    exported: Export,
    job_with_teacher: Job,  # noqa: F811
) -> None:
    to, _ = exported(form)
    other = JobClasses(tuple(reversed(NAMES)), tuple(reversed(NAMES)))
    one, two = read(to).soft, read(to, other).soft
    assert one is not None
    assert two is not None
    rows = dict(zip(*(two.to_pydict()[name] for name in ("image_id", "soft_label")), strict=True))
    for row in one.to_pylist():
        assert rows[row["image_id"]] == row["soft_label"][::-1]
        assert sum(row["soft_label"]) == pytest.approx(1, abs=1e-5)
    (teacher,) = {step.fingerprint for step in graph(job_with_teacher) if step.stage == "teach"}
    assert read(to, teacher=teacher).soft is None


def test_all_formats_have_the_same_content(exported: Export) -> None:
    assert len({read(exported(form)[0]).content for form in ("imagefolder", "parquet", "webdataset")}) == 1


def test_files_that_a_user_has_put_beside_the_tables_of_an_export_are_not_read(exported: Export) -> None:
    to, _ = exported("parquet")
    before = read(to).content
    (to / "data" / "notes.txt").write_text("x")
    (to / "other.parquet").write_text("x")
    assert read(to).content == before


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("SET", "{", "", "it is no file of an export"),
        ("SET", '"seed": 0', '"seed": "0"', "its values are not those of an export"),
        ("SET", '"ipc": 4', '"ipc": 0', "its values are not those of an export"),
        ("SET", '"dog"', '"zebra"', "the job has no class 'zebra'"),
        ("train/metadata.jsonl", '"file_name": "cat/', '"file_name": "../../', "which is outside of the export"),
        ("train/metadata.jsonl", '"file_name": "cat/', '"file_name": "dog/none-', "it cannot be read"),
        (
            "train/metadata.jsonl",
            '"class_name": "cat"',
            '"class_name": "zebra"',
            "of the class 'zebra', which SET lacks",
        ),
        ("train/metadata.jsonl", "0000-0001", "0000-0000", "twice; export the set again"),
        ("train/metadata.jsonl", '"image_id"', '"id"', "a row has no image_id or class_name"),
        ("train/metadata.jsonl", "{", "", "it has a line that is no JSON"),
        ("train/metadata.jsonl", "{", "[" * 10**5, "it has a line that is no JSON"),
        ("SET", "{", "[" * 10**5, "it is no file of an export"),
        ("SET", '"teacher": "', '"teacher": "" ,"was": "', "numbers, not 0; export the set again"),
        ("train/metadata.jsonl", '"soft_label": [', '"was": [', "has 0 numbers, not 3; export the set again"),
        ("train/metadata.jsonl", '"soft_label": [', '"soft_label": [NaN, ', "a soft label that is no list of numbers"),
        ("train/metadata.jsonl", '"soft_label": [', f'"soft_label": [{10**400}, ', "that is no list of numbers"),
    ],
)
def test_a_changed_export_is_refused_in_one_sentence(
    name: str, old: str, new: str, sentence: str, exported: Export
) -> None:
    to, _ = exported("imagefolder")
    change(to / name, old, new)
    with pytest.raises(ConfigError) as error:
        read(to)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_links_out_of_an_export_and_missing_files_are_refused(exported: Export, tmp_path: Path) -> None:
    to, _ = exported("imagefolder")
    image = next((to / "train" / "cat").iterdir())
    (tmp_path / "secret.png").write_bytes(image.read_bytes())
    image.unlink()
    with pytest.raises(ConfigError, match="it cannot be read"):
        read(to)
    image.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ConfigError, match="which is outside of the export"):
        read(to)
    shutil.rmtree(to / "train")
    with pytest.raises(ConfigError, match="and none of its images"):
        read(to)


@pytest.mark.parametrize(
    ("form", "name"), [("parquet", "data/train-00000-of-00001.parquet"), ("webdataset", "train-000000.tar")]
)
def test_a_damaged_file_is_refused(form: str, name: str, exported: Export) -> None:
    to, _ = exported(form)
    (to / name).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="export the set again"):
        read(to)


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset"])
def test_images_above_the_limit_are_refused_with_its_name(form: str, exported: Export) -> None:
    to, _ = exported(form)
    largest = max(len(image) for image in synthetic()["image"].to_pylist())
    assert read(to, settings=Ingest(max_bytes=largest)).images == len(synthetic())
    with pytest.raises(ConfigError, match=f"has more than {largest - 1:,} bytes; of an image ingest.max_bytes"):
        read(to, settings=Ingest(max_bytes=largest - 1))


@pytest.mark.parametrize("column", ["image", "image_id"])
def test_parquet_without_a_column_or_without_bytes_is_refused(column: str, exported: Export) -> None:
    to, _ = exported("parquet")
    file = to / "data" / "train-00000-of-00001.parquet"
    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns([column]), file)
    with pytest.raises(ConfigError, match="has no bytes" if column == "image" else "a row has no image_id"):
        read(to)
    empty = pa.array([{"bytes": None, "path": "x.png"}] * len(table))
    parquet.write_table(table.set_column(0, "image", empty), file)
    with pytest.raises(ConfigError, match="has no bytes"):
        read(to)


@pytest.mark.parametrize(
    "content", [tar_header("x.png", -(2**20)) + bytes(512), tar_member("a.json", b"{}"), tar_header("x.png", 2**40)]
)
def test_a_tar_of_a_stranger_ends_with_one_sentence(content: bytes, exported: Export) -> None:
    to, _ = exported("webdataset")
    (to / "train-000000.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ConfigError, match=r"it cannot be read .*; export the set again"):
        read(to)


def test_an_export_is_read_through_a_link_to_its_folder(exported: Export, tmp_path: Path) -> None:
    for form in ("imagefolder", "parquet", "webdataset"):
        to, _ = exported(form)
        (tmp_path / f"{form}-link").symlink_to(to)
        assert read(tmp_path / f"{form}-link").content == read(to).content


def test_set_of_a_tensor_with_other_ids_is_refused(exported: Export) -> None:
    to, _ = exported("dd-ranking")
    found = json.loads((to / "SET").read_text())
    (to / "SET").write_text(json.dumps(found | {"image_ids": found["image_ids"][1:]}))
    with pytest.raises(ConfigError, match="does not list the images of the tensor"):
        read(to)
