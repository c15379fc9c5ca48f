"""Whether an image set is read whole and once: bad rows beside good ones, duplicates, resumption, limits."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.image_sets import encoded, noise, opened, picture, write_files, write_tar
from vlcp_ray.config import Job
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.ingest import ingest, reject_duplicates
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Scale
from vlcp_ray.schemas import IMAGES, REJECTED, conform
from vlcp_ray.settings import build
from vlcp_ray.store import Artifact, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]

CAT, DOG = "train/cat", "train/dog"
GOOD = {f"{folder}/{i}.jpg": picture(i) for folder in (CAT, DOG, "val/cat") for i in range(4)}
GOOD |= {f"{CAT}/rotated 'ü' \"x\".png": encoded(noise(9), "PNG"), f"{DOG}/grey.jpg": picture(9, mode="L")}
BAD = {
    f"{CAT}/empty.jpg": (b"", "empty"),
    f"{DOG}/text.jpg": (b"this is text", "undecodable"),
    f"{DOG}/cut.jpg": (picture(7)[:200], "undecodable"),
    f"{DOG}/bomb.png": (encoded(noise(60, (60, 60))), "too_large"),
}


def run(root: Path, source: Path, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    opened(source)  # and forget what the folder looked like
    job = build(Job, {"name": "x", "ingest": {"source": str(source), "max_pixels": 1000} | settings}, "x")
    context = Context(job, Scale(rows_per_block=3), Store.at(str(root)))
    step = graph(job)[0]
    ingest(context, [step])
    return context.artifact(step), context.manifest(step)


def images(artifact: Artifact) -> pa.Table:
    return artifact.table("images", IMAGES).sort_by("image_id")


def rejected(artifact: Artifact) -> dict[str, str]:
    rows = artifact.table("rejected", REJECTED)
    assert set(rows["stage"].to_pylist()) <= {"ingest"}
    return dict(zip(rows["source"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def test_bad_files_cost_a_row_each_and_are_mended_by_the_same_command(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {name: content for name, (content, _) in BAD.items()})
    with pytest.raises(
        ValueError, match=r"4 of 18 rows were rejected \(22.2%\), more than .*1.0%.*: 2 x undecodable.*1 x too_large"
    ) as told:
        run(tmp_path / "strict", source)
    assert "2 x undecodable (e.g. train/dog/cut.jpg: " in str(told.value)
    assert "1 x empty (e.g. train/cat/empty.jpg: the file has no bytes)" in str(told.value)
    artifact, manifest = run(tmp_path / "strict", source, max_rejected=0.3)
    assert {name: manifest[name] for name in ("rows_in", "rows", "rejected")} == {
        "rows_in": 18,
        "rows": 14,
        "rejected": 4,
    }
    assert manifest["splits"] == {"train": 10, "val": 4}
    assert dict(zip(manifest["class_names"], manifest["train"], strict=True)) == {"cat": 5, "dog": 5}
    assert rejected(artifact) == {name: reason for name, (_, reason) in BAD.items()}
    table = images(artifact)
    assert dict(zip(table["source"].to_pylist(), table["image"].to_pylist(), strict=True)) == GOOD
    assert set(zip(table["label"].to_pylist(), table["class_name"].to_pylist(), strict=True)) == {
        (0, "cat"),
        (1, "dog"),
    }


def test_a_stopped_run_goes_on_with_what_is_mended_and_writes_no_good_row_again(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows"):
        run(tmp_path / "root", source)
    (artifact,) = (tmp_path / "root").iterdir()
    files = {file: file.stat().st_mtime_ns for file in (artifact / "images").iterdir()}
    gone = sorted(files)[0]
    gone.unlink()
    (source / CAT / "x.jpg").write_bytes(picture(5))
    done, manifest = run(tmp_path / "root", source)
    assert (manifest["rows_in"], manifest["rows"], manifest["rejected"]) == (15, 15, 0)
    assert rejected(done) == {}
    assert all(file.stat().st_mtime_ns == before for file, before in files.items() if file != gone)


def test_the_order_of_tars_decides_nothing(tmp_path: Path) -> None:
    """Two samples of one id and different pixels in two tars: the one with the first source stays."""
    one = [("1.jpg", picture(1)), ("1.cls", b"cat"), ("2.jpg", picture(2)), ("2.cls", b"dog")]
    two = [("1.jpg", picture(3)), ("1.cls", b"cat"), ("3.jpg", picture(4)), ("3.cls", b"dog")]
    for order in ("ab", "ba"):
        for name in order:
            write_tar(tmp_path / order / f"train-{name}.tar", one if name == "a" else two)
    tables = {}
    for order in ("ab", "ba"):
        artifact, manifest = run(tmp_path / f"root-{order}", tmp_path / order, max_rejected=0.3)
        assert (manifest["rows_in"], manifest["rows"], manifest["rejected"]) == (4, 3, 1)
        assert rejected(artifact) == {"train-b.tar:1": "duplicate"}
        tables[order] = images(artifact)
    assert tables["ab"].equals(tables["ba"])
    assert tables["ab"]["image"].to_pylist()[0] == picture(1)


@pytest.mark.parametrize("name", ["00", "zz"])
def test_rejecting_duplicates_can_be_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    artifact = Store.at(str(tmp_path)).artifact(graph(build(Job, {"name": "x"}, "x"))[0])
    rows = [
        {"image_id": i, "label": 0, "class_name": "cat", "split": "train", "image": b"x", "source": s}
        for i, s in (("1", "b"), ("2", "c"), ("1", "a"))
    ]
    artifact.write_table(f"images/{name}.parquet", conform(pa.Table.from_pylist(rows[:2]), IMAGES))
    artifact.write_table("images/two.parquet", conform(pa.Table.from_pylist(rows[2:]), IMAGES))
    whole = {file.name: file.read_bytes() for file in Path(artifact.path, "images").iterdir()}
    for _ in range(2):
        reject_duplicates(artifact)
        assert sorted(images(artifact)["source"].to_pylist()) == ["a", "c"]
        assert rejected(artifact) == {"b": "duplicate"}
        for name, content in whole.items():  # as if the old files had not been removed before the end
            Path(artifact.path, "images", name).write_bytes(content)
    reject_duplicates(artifact)
    assert sorted(images(artifact)["source"].to_pylist()) == ["a", "c"]


def test_a_set_whose_classes_changed_is_read_anew(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows was rejected"):
        run(tmp_path / "root", source)
    write_files(source, {"train/bird/1.jpg": picture(1), f"{CAT}/x.jpg": picture(2)})
    artifact, manifest = run(tmp_path / "root", source)
    assert manifest["class_names"] == ["bird", "cat", "dog"]
    found = images(artifact)
    assert set(zip(found["label"].to_pylist(), found["class_name"].to_pylist(), strict=True)) == {
        (0, "bird"),
        (1, "cat"),
        (2, "dog"),
    }


def test_a_set_that_lost_a_row_since_is_told_with_the_cure(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows"):
        run(tmp_path / "root", source)
    (source / CAT / "1.jpg").unlink()
    (source / CAT / "x.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 rows that an earlier attempt has read are not in .*; remove .* and run again"
    ):
        run(tmp_path / "root", source)


def test_all_rows_there_and_no_seal_is_sealed(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD)
    artifact, before = run(tmp_path / "root", source)
    Path(artifact.path, "manifest.json").unlink()
    _, after = run(tmp_path / "root", source)
    assert {**before, "seconds": 0, "peak_memory": 0} == {**after, "seconds": 0, "peak_memory": 0}


def test_an_empty_set_is_told(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", {"train/cat/notes.txt": b"x"})
    with pytest.raises(ValueError, match="the image set has no image of the wanted classes"):
        run(tmp_path / "root", source)
