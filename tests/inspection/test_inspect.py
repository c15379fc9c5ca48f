"""Tests of looking at an image set before a run."""

import json
import resource
import socket
from pathlib import Path

import pytest

from tests.image_sets import picture, write_files, write_parquet, write_tar
from vlcp_ray.inspection.inspect import ClassCounts, inspect, inspect_names, inspect_without_reading
from vlcp_ray.sources import open_source
from vlcp_ray.sources.webdataset import WebDataset
from vlcp_ray.stages.ingest import Expect, Ingest

FILES = {
    f"{split}/{name}/{i}.jpg": picture(i) for split in ("train", "val") for name in ("cat", "dog") for i in range(5)
}
COUNTS = [ClassCounts("cat", "cat", 5, 5), ClassCounts("dog", "dog", 5, 5)]


@pytest.fixture(autouse=True)
def _no_cache() -> None:
    open_source.cache_clear()


def write_set(root: Path, layout: str) -> Path:
    if layout == "folder":
        return write_files(root, FILES)
    for split in ("train", "val"):
        rows = [(name.split("/")[1], content) for name, content in FILES.items() if name.startswith(split)]
        if layout == "parquet":
            write_parquet(root / f"{split}-0.parquet", [(image, None, key) for key, image in rows], None)
        else:
            members = [
                part
                for number, (key, image) in enumerate(rows)
                for part in ((f"{number}.jpg", image), (f"{number}.cls", key.encode()))
            ]
            write_tar(root / f"{split}-0.tar", members)
    return root


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_inspect_counts_the_images_of_every_class(tmp_path: Path, layout: str) -> None:
    found = inspect(Ingest(source=str(write_set(tmp_path, layout))))
    assert found.layout == layout
    assert list(found.classes) == COUNTS
    assert (found.problems, found.is_refused, found.unlabelled, found.unknown) == ([], False, 0, 0)
    assert found.parts[0] == found.parts[1] > 0
    assert {(one.kind, one.width, one.height) for one in found.examples} == {("JPEG", 16, 12)}
    assert {one.key for one in found.examples} == {"cat", "dog"}
    assert len(found.examples) == 8


def test_inspect_the_embedded_digits() -> None:
    found = inspect(Ingest(source="digits"))
    assert (found.layout, len(found.classes)) == ("digits", 10)
    assert sum(one.train for one in found.classes) == 1297
    assert sum(one.val for one in found.classes) == 500


def test_inspect_finds_images_that_ingest_rejects(tmp_path: Path) -> None:
    rows = [(picture(1), None, "cat"), (picture(2), None, None), (picture(3), None, "dog"), (b"no image", None, "cow")]
    write_parquet(tmp_path / "set" / "train.parquet", rows, None)
    (tmp_path / "list.txt").write_text("cat\ndog\ncow\n")
    found = inspect(Ingest(source=str(tmp_path / "set"), val_fraction=0.1))
    assert found.unlabelled == 1
    assert [one.problem for one in found.examples if one.problem and one.key == "cow"] == [
        "undecodable: the bytes are not an image in a format that Pillow can read"
    ]
    assert "1 images have no label: ingest rejects them" in list(found.lines())


def test_inspect_counts_other_files_and_refuses_a_class_without_images(tmp_path: Path) -> None:
    root = write_files(tmp_path, FILES | {"train/cow/1.heic5": b"x", "train/cow/2.heic5": b"x", "val/cow/1.jpg": b""})
    found = inspect(Ingest(source=str(root)))
    assert found.skipped == {".heic5": 2}
    assert found.is_refused
    assert "class 'cow' has no usable training images" in found.problems[0]
    assert found.classes[1] == ClassCounts("cow", "cow", 0, 1)
    lines = "\n".join(found.lines())
    assert "not read: 2 .heic5 files" in lines


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.jpg", "dog/1.jpg"], "has no val images, on which sets are evaluated"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"], "class 'dog' of train has no usable val images"),
        (["train/cat/1.jpg", "val/cat/1.jpg"], "1 class: 'cat', and a classifier needs two"),
        (["notes.txt"], "is in none of the layouts"),
    ],
)
def test_inspect_refuses_what_a_run_refuses(tmp_path: Path, names: list[str], message: str) -> None:
    found = inspect(Ingest(source=str(write_files(tmp_path, dict.fromkeys(names, picture(1))))))
    assert found.is_refused
    assert message in found.problems[0]
    assert f"problem: {found.problems[0]}" in list(found.lines())


def test_inspect_refuses_classes_smaller_than_a_set(tmp_path: Path) -> None:
    settings = Ingest(source=str(write_files(tmp_path, FILES)))
    assert not inspect(settings, ipc=5).is_refused
    assert "fewer than ipc = 6" in inspect(settings, ipc=6).problems[0]


def test_inspect_of_a_damaged_shard_says_so(tmp_path: Path) -> None:
    root = write_set(tmp_path, "parquet")
    (root / "train-1.parquet").write_bytes(b"PAR1")
    found = inspect(Ingest(source=str(root)))
    assert not found.is_refused
    assert found.problems[0].startswith("train-1.parquet: ")
    assert list(found.classes) == COUNTS


def test_inspect_without_time_says_how_much_it_counted(tmp_path: Path) -> None:
    found = inspect(Ingest(source=str(write_files(tmp_path, FILES))), seconds=-1)
    assert found.parts == (0, 4)
    assert not found.is_refused
    assert "in 0 of 4 parts" in next(line for line in found.lines() if "val images" in line)


def test_inspection_as_json_has_no_bytes(tmp_path: Path) -> None:
    found = json.loads(json.dumps(inspect(Ingest(source=str(write_files(tmp_path, FILES)))).as_json()))
    assert found["classes"][0] == {"key": "cat", "name": "cat", "train": 5, "val": 5}
    assert set(found["examples"][0]) == {"key", "source", "kind", "width", "height", "problem"}
    assert (found["layout"], found["skipped"], found["problems"]) == ("folder", {}, [])


def test_inspect_shows_no_secret_and_no_escape_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://KEYKEYKEYKEY:SECRETSECRET@bucket/set?endpoint_override=http://127.0.0.1:9"
    found = inspect(Ingest(source=uri))
    shown = json.dumps(found.as_json()) + "\n".join(found.lines())
    assert found.is_refused
    assert "SECRET" not in shown
    root = write_files(tmp_path / "set", FILES)
    (root / "train" / "\x1b[2Jevil").symlink_to("/etc")
    assert "\x1b" not in "\n".join(inspect(Ingest(source=str(root))).lines())


def test_inspect_of_tables_leaves_the_memory_limit_of_the_process(tmp_path: Path) -> None:
    for number in range(20):
        write_parquet(tmp_path / f"train-{number}.parquet", [(picture(number), f"{number}.jpg", "cat")], None)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert inspect(Ingest(source=str(tmp_path))).classes[0].train == 20
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_inspect_names_counts_files_and_reads_none(tmp_path: Path, layout: str) -> None:
    root = write_set(tmp_path, layout)
    found = inspect_names(Ingest(source=str(root)), 5, needs_val=True)
    assert (found.layout, found.is_refused, found.examples) == (layout, False, ())
    (line,) = found.short_lines()
    counts = "; 10 train and 10 val images"
    assert line.endswith(counts if layout == "folder" else "2 classes")
    assert line.startswith(f"{root} is {found.description}")


def test_inspect_names_refuses_a_class_that_is_too_small_before_images_are_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, dict.fromkeys([*FILES, "train/cow/1.jpg", "val/cow/1.jpg"], b"no image"))
    settings = Ingest(source=str(root))
    assert not inspect_names(settings, 0, needs_val=True).is_refused
    assert not inspect_names(settings, 1, needs_val=True).is_refused
    found = inspect_names(settings, 2, needs_val=True)
    assert "class 'cow' has only 1 usable training image, fewer than ipc = 2" in found.problems[0]
    assert [line.partition(" ")[0] for line in found.short_lines()] == [str(root), "problem:"]


def test_inspect_says_that_the_job_expects_other_images(tmp_path: Path) -> None:
    root = str(write_files(tmp_path, FILES))
    for train, is_other in ((10, False), (20, True)):
        settings = Ingest(source=root, expect=Expect(classes=2, train=train, val=10, gib=1))
        for lines in (inspect(settings).lines(), inspect_names(settings, 1, needs_val=True).short_lines()):
            assert any(line.startswith("the job expects 20 train and 10 val images") for line in lines) == is_other


def test_inspect_says_which_images_are_used(tmp_path: Path) -> None:
    settings = Ingest(source=str(write_files(tmp_path, FILES)), max_per_class=2, val_fraction=0.25)
    found = inspect_names(settings, 1, needs_val=True)
    (line,) = found.short_lines()
    words = "used are 2 train images of each class at most; 0.25 of train becomes val"
    assert line.endswith(f"; 10 train and 0 val images; {words}")
    assert words in list(inspect(settings).lines())


def test_inspect_says_why_a_list_cannot_be_read_and_not_what_follows_from_it(tmp_path: Path) -> None:
    files = {f"train/{wnid}/1.JPEG": picture(1) for wnid in ("n01440764", "n02102040")} | {"val/v_1.JPEG": picture(2)}
    root = write_files(tmp_path, files | {"LOC_val_solution.csv": b"x" * 2**18})
    for found in (inspect(Ingest(source=str(root))), inspect_names(Ingest(source=str(root)), 1, needs_val=True)):
        assert found.is_refused
        assert "LOC_val_solution.csv cannot be read" in found.problems[0]


def test_inspect_of_a_list_of_both_splits_counts_train_alone_where_val_is_taken_from_it(tmp_path: Path) -> None:
    lines = [
        "file_name,label,split",
        *(f"{i}.jpg,{'cat' if i % 2 else 'dog'},{'test' if i < 4 else 'train'}" for i in range(10)),
    ]
    files = {f"{i}.jpg": picture(i) for i in range(10)} | {"metadata.csv": "\n".join(lines).encode()}
    root = write_files(tmp_path, files)
    for fraction, counts in ((0.0, "6 train and 4 val images"), (0.5, "6 train and 0 val images")):
        assert counts in list(inspect(Ingest(source=str(root), val_fraction=fraction)).lines())


def test_inspect_without_reading_leaves_the_labels_of_tars_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path, "webdataset")
    monkeypatch.setattr(WebDataset, "_read_classes", lambda self: pytest.fail("all tars are read"))
    (line,) = inspect_without_reading(Ingest(source=str(root)), 1).short_lines()
    assert line == f"{root} is in the layout webdataset; its classes are in its labels, which a run reads"
    named = inspect_without_reading(Ingest(source=str(root), classes=("n01440764", "n02102040")), 1)
    assert named.description == "WebDataset with 1 train file and 1 val file, 2 classes"
    assert inspect_without_reading(Ingest(source=str(write_files(tmp_path / "f", FILES))), 1).classes == COUNTS


def test_inspect_without_reading_does_not_wait_for_a_silent_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcp_ray.inspection.inspect._REMOTE_WAIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        uri = f"s3://KEYKEYKEYKEY:SECRETSECRET@bucket/set?endpoint_override=http://127.0.0.1:{port}&region=x"
        found = inspect_without_reading(Ingest(source=uri), 1)
    shown = f"s3://***@bucket/set?endpoint_override=http://127.0.0.1:{port}&region=x"
    assert list(found.short_lines()) == [f"problem: ingest.source: {shown} has not answered in 0.3 s"]
    assert not found.is_refused
