"""Tests of the stage ingest: bad rows beside good ones, duplicates, resume and limits."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.hostile import broken_tails, labelled, parquet_bombs, slow_jpeg, tar_header, tar_sample
from tests.image_sets import encoded, noise, open_set, picture, write_files, write_parquet, write_tar
from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import IMAGES, REJECTED
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest.run import run as run_ingest
from vlcp_ray.store.artifact import Artifact, Store

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


def ingest(root: Path, source: Path, workers: int = 2, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    open_set(source)  # clears the cache: the files may have changed
    job = build(Job, {"name": "x", "ipc": [1], "ingest": {"source": str(source), "max_pixels": 1000} | settings}, "x")
    context = Context(job, Scale(rows_per_block=3, ingest=Pool(num_workers=workers)), Store.at(str(root)))
    step = graph(job)[0]
    run_ingest(context, [step])
    return context.artifact(step), context.manifest(step)


def images(artifact: Artifact) -> pa.Table:
    return artifact.table("images", IMAGES).sort_by("image_id")


def rejected(artifact: Artifact) -> dict[str, str]:
    rows = artifact.table("rejected", REJECTED)
    assert set(rows["stage"].to_pylist()) <= {"ingest"}
    return dict(zip(rows["source"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def test_ingest_rejects_bad_files_up_to_max_rejected(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {name: content for name, (content, _) in BAD.items()})
    with pytest.raises(
        ValueError, match=r"4 of 18 rows were rejected \(22.2%\), more than .*1.0%.*: 2 x undecodable.*1 x too_large"
    ) as error:
        ingest(tmp_path / "strict", source)
    assert "2 x undecodable (e.g. train/dog/cut.jpg: " in str(error.value)
    assert "1 x empty (e.g. train/cat/empty.jpg: the file has no bytes)" in str(error.value)
    artifact, manifest = ingest(tmp_path / "strict", source, max_rejected=0.3)
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


def test_ingest_counts_the_files_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {f"{CAT}/{name}": b"x" for name in ("a.HEIC5", "b.txt", "deeper/c.txt", ".hidden")}
    source = write_files(tmp_path / "set", GOOD | others | {f"{DOG}/noext": b"x"})
    _, manifest = ingest(tmp_path / "root", source)
    assert manifest["skipped"] == {".txt": 2, ".heic5": 1, "no suffix": 1}
    assert "2 .txt files, " in capsys.readouterr().out
    assert (manifest["train"], manifest["val"]) == ([5, 5], [4, 0])
    assert "skipped" not in ingest(tmp_path / "clean", write_files(tmp_path / "clean set", GOOD))[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_ingest_of_a_sample_reads_the_first_of_each_class(tmp_path: Path, workers: int) -> None:
    names = [f"{folder}/{i:02d}.jpg" for folder in (CAT, DOG, "val/cat", "val/dog") for i in range(9)]
    source = write_files(tmp_path / "set", {name: picture(number) for number, name in enumerate(names)})
    limits = {"max_per_class": 4, "max_val_per_class": 2}
    artifact, manifest = ingest(tmp_path / "root", source, workers, **limits)
    assert (manifest["train"], manifest["val"], manifest["rows_in"]) == ([4, 4], [2, 2], 12)
    more, _ = ingest(tmp_path / "root", source, workers, max_per_class=6, max_val_per_class=2)
    assert set(images(artifact)["image_id"].to_pylist()) < set(images(more)["image_id"].to_pylist())
    before = images(artifact)
    Path(artifact.path, "manifest.json").unlink()
    again, _ = ingest(tmp_path / "root", source, workers, **limits)
    assert images(again).equals(before)


def test_ingest_again_reads_fixed_files_and_keeps_good_rows(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows"):
        ingest(tmp_path / "root", source)
    (artifact,) = (tmp_path / "root").iterdir()
    files = {file: file.stat().st_mtime_ns for file in (artifact / "images").iterdir()}
    deleted = sorted(files)[0]
    deleted.unlink()
    (source / CAT / "x.jpg").write_bytes(picture(5))
    resumed, manifest = ingest(tmp_path / "root", source)
    assert (manifest["rows_in"], manifest["rows"], manifest["rejected"]) == (15, 15, 0)
    assert rejected(resumed) == {}
    assert all(file.stat().st_mtime_ns == before for file, before in files.items() if file != deleted)


def test_ingest_duplicate_in_tars_keeps_first_source_in_any_order(tmp_path: Path) -> None:
    """Two tars have samples of the same id and different pixels: the one with the first source is kept."""
    one = [("1.jpg", picture(1)), ("1.cls", b"cat"), ("2.jpg", picture(2)), ("2.cls", b"dog")]
    two = [("1.jpg", picture(3)), ("1.cls", b"cat"), ("3.jpg", picture(4)), ("3.cls", b"dog")]
    for order in ("ab", "ba"):
        for name in order:
            write_tar(tmp_path / order / f"train-{name}.tar", one if name == "a" else two)
    tables = {}
    for order in ("ab", "ba"):
        artifact, manifest = ingest(tmp_path / f"root-{order}", tmp_path / order, max_rejected=0.3)
        assert (manifest["rows_in"], manifest["rows"], manifest["rejected"]) == (4, 3, 1)
        assert rejected(artifact) == {"train-b.tar:1": "duplicate"}
        tables[order] = images(artifact)
    assert tables["ab"].equals(tables["ba"])
    assert tables["ab"]["image"].to_pylist()[0] == picture(1)


def test_ingest_after_classes_changed_reads_everything_again(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows was rejected"):
        ingest(tmp_path / "root", source)
    write_files(source, {"train/bird/1.jpg": picture(1), f"{CAT}/x.jpg": picture(2)})
    artifact, manifest = ingest(tmp_path / "root", source)
    assert manifest["class_names"] == ["bird", "cat", "dog"]
    table = images(artifact)
    assert set(zip(table["label"].to_pylist(), table["class_name"].to_pylist(), strict=True)) == {
        (0, "bird"),
        (1, "cat"),
        (2, "dog"),
    }


def test_ingest_after_a_file_was_deleted_is_refused_with_fix(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD | {f"{CAT}/x.jpg": b"text"})
    with pytest.raises(ValueError, match="1 of 15 rows"):
        ingest(tmp_path / "root", source)
    (source / CAT / "1.jpg").unlink()
    (source / CAT / "x.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 rows that an earlier attempt has read are no longer in .*; delete .* and re-run"
    ):
        ingest(tmp_path / "root", source)


def test_ingest_without_manifest_completes_from_written_rows(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", GOOD)
    artifact, before = ingest(tmp_path / "root", source)
    Path(artifact.path, "manifest.json").unlink()
    _, after = ingest(tmp_path / "root", source)
    for manifest in (before, after):
        manifest |= {"seconds": 0, "peak_memory": 0}
        # The records of parts count the rows that were written before.
        manifest["files"] = {name: sums for name, sums in manifest["files"].items() if not name.startswith("parts/")}
    assert before == after


def test_ingest_without_images_is_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", {"train/cat/notes.txt": b"x"})
    with pytest.raises(ValueError, match="the image set has no image of the wanted classes"):
        ingest(tmp_path / "root", source)


def write_hostile(root: Path, kind: str) -> Path:
    """Write a set with good rows beside rows of strangers, in one of the layouts."""
    if kind == "folder":
        source = write_files(root, GOOD | {f"{CAT}/slow.jpg": slow_jpeg(30, 300), f"{DOG}/\x1b[31m\n.png": b"x"})
        os.mkfifo(source / CAT / "fifo.png")
        (source / CAT / "outside.png").symlink_to("/etc/hostname")
        return source
    if kind == "parquet":
        write_parquet(root / "train-0.parquet", [(picture(i), f"{i}.jpg", "cat") for i in range(4)], None)
        write_parquet(root / "train-1.parquet", [(picture(i), f"{i}.png", "dog") for i in range(4)], None)
        (root / "train-2.parquet").write_bytes(b"PAR1")
        parquet_bombs()["dictionary"](root / "train-3.parquet")
        return root
    root.mkdir(parents=True)
    loop = labelled("x", tar_header("x.png", kind=b"1", link="x.png"))
    good = b"".join(tar_sample(str(i), picture(i), "dog" if i % 2 else "cat") for i in range(4))
    (root / "train-0.tar").write_bytes(good + loop + bytes(1024))
    (root / "train-1.tar").write_bytes(broken_tails()["names of names"] + bytes(1024))
    return root


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_ingest_of_strangers_has_the_same_rows_with_one_and_two_workers_and_after_resuming(
    tmp_path: Path, kind: str
) -> None:
    source = write_hostile(tmp_path / "set", kind)
    with pytest.raises(ValueError, match=r"more than ingest.max_rejected"):
        ingest(tmp_path / "resumed", source)
    found = {}
    for workers, name in ((1, "one"), (2, "two"), (2, "resumed")):
        artifact, manifest = ingest(tmp_path / name, source, max_rejected=1.0, workers=workers)
        assert manifest["rows_in"] == manifest["rows"] + manifest["rejected"]
        found[name] = (images(artifact).to_pylist(), rejected(artifact))
    assert found["one"] == found["two"] == found["resumed"]
    expected = {
        "folder": {
            f"{CAT}/slow.jpg": "too_slow",
            f"{DOG}/\x1b[31m\n.png": "undecodable",
            f"{CAT}/fifo.png": "unreadable",
            f"{CAT}/outside.png": "unreadable",
        },
        "parquet": {"train-2.parquet:whole file": "unreadable"}
        | {f"train-3.parquet#{row}": "too_large" for row in range(256)},
        "tar": {"train-0.tar:x": "unreadable", "train-1.tar:whole file": "unreadable"},
    }
    assert found["one"][1] == expected[kind]
