"""Tests of opening a source: the layout is detected, errors are one sentence, and the hashed settings."""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.image_sets import open_set, picture, read_all, write_files, write_parquet, write_tar
from tests.s3 import Proxy
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import hashed_settings
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.store.io import AccessError

CASES = Path(__file__).parents[3] / "shared" / "cases" / "layouts.py"


def test_open_source_detects_every_layout(tmp_path: Path) -> None:
    write_files(tmp_path / "folder", {"train/cat/1.jpg": picture(1)})
    write_files(
        tmp_path / "tiny",
        {"train/n01443537/images/1.JPEG": picture(1), "val/val_annotations.txt": b"", "val/images/1.JPEG": b""},
    )
    write_parquet(tmp_path / "hub" / "data" / "train-0.parquet", [(picture(1), "1.jpg", 0)], ["cat"])
    write_tar(tmp_path / "tars" / "train" / "0.tar", [("1.jpg", picture(1)), ("1.cls", b"cat")])
    starts = {"folder": "an image folder", "tiny": "the tree of Tiny", "hub": "parquet with", "tars": "WebDataset with"}
    for name, start in starts.items():
        assert open_set(tmp_path / name).description.startswith(start)
    assert open_set(f"file://{tmp_path}/folder").classes.names == ("cat",)


@pytest.fixture(scope="module")
def people_have(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image sets in folders as people have them."""
    if not CASES.exists():
        pytest.skip(f"{CASES} is not there")
    folder = tmp_path_factory.mktemp("people have")
    subprocess.run([sys.executable, CASES, folder], check=True)
    return folder


@pytest.mark.parametrize(
    ("folder", "description", "splits", "classes"),
    [
        ("kaggle/ILSVRC/Data/CLS-LOC", "an image folder with train and val, 3 classes, those of val from", (9, 6), 3),
        ("tiny-nested", "the tree of Tiny-ImageNet, 3 classes", (9, 4), 3),
        ("deeper", "an image folder with train and val, 2 classes", (2, 2), 2),
        ("cub", "the lists of CUB with train and val, 2 classes", (1, 1), 2),
        ("tiny-reorg", "an image folder with train and val, 3 classes", (9, 6), 3),
        ("splitword", "an image folder with train, 3 classes", (12, 0), 3),
        ("hfconfigs/full_size", "parquet with 1 train file and 1 val file, 2 classes", (4, 2), 2),
        ("hfconvert", "parquet with 1 train file and 1 val file, 2 classes", (4, 2), 2),
        ("heic", "an image folder with train and val, 2 classes", (5, 6), 2),
        ("twotrain", "an image folder with train and val, 2 classes", (4, 2), 2),
        ("imagenette2", "an image folder with train and val, 2 classes", (6, 4), 2),
        ("metadata", "the images of metadata.csv with train, 2 classes", (4, 0), 2),
    ],
)
def test_open_source_reads_sets_as_people_have_them(
    people_have: Path, folder: str, description: str, splits: tuple[int, int], classes: int
) -> None:
    source = open_set(people_have / folder)
    assert source.description.startswith(description)
    table = read_all(source)
    assert len(source.classes.keys) == classes
    assert set(table["class_key"].to_pylist()) <= set(source.classes.keys)
    assert tuple(table["split"].to_pylist().count(split) for split in ("train", "val")) == splits
    assert set(table["reason"].to_pylist()) == {""}
    assert len(set(table["image_id"].to_pylist())) == len(table)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("kaggle", r"it holds \S* ?\S*/kaggle/ILSVRC/Data/CLS-LOC; give that folder"),
        ("original-tars", "holds other archives .*tar -xf"),
        ("hfconfigs", "has the configurations 160px, full_size"),
        ("archives", "is an archive, which is not read as it is; unpack it: "),
        ("archives/imagenette2-160.tgz", "is an archive, .* unpack it: mkdir -p .* && tar -xf "),
        ("archives/imagenette2.zip", "is an archive, .* unpack it: unzip -q "),
        ("img2dataset", r"ingest\.class_key: no sample of .* names a class"),
    ],
)
def test_open_source_refuses_sets_with_two_readings_or_none(people_have: Path, folder: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_set(people_have / folder)


def jpgs(*names: str) -> dict[str, bytes]:
    return {name: picture(number) for number, name in enumerate(names)}


def tar_of(*members: tuple[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder, "x.tar"), members).read_bytes()


IMAGE = picture(1)
#: Files, and the description and the number of rows of train and val.
READ: dict[str, tuple[dict[str, bytes], str, tuple[int, int]]] = {
    "split words in file names": (
        jpgs("photo of a train.jpg", "test.png")
        | {"metadata.csv": b"file_name,label\nphoto of a train.jpg,a\ntest.png,b"},
        "the images of metadata.csv with train, 2 classes",
        (2, 0),
    ),
    "metadata above the splits": (
        jpgs("train/0.jpg", "test/1.jpg") | {"metadata.csv": b"file_name,label\ntrain/0.jpg,a\ntest/1.jpg,b"},
        "the images of metadata.csv with train and val, 2 classes",
        (1, 1),
    ),
    "captions beside class folders": (
        jpgs("10.jpg", "Cat/0.jpg", "Dog/1.jpg") | {"metadata.csv": b"file_name,text\nCat/0.jpg,a cat"},
        "an image folder with train, 2 classes",
        (2, 0),
    ),
    "split column": (
        jpgs("0.jpg", "1.jpg") | {"metadata.csv": b"file_name,label,split\n0.jpg,a,train\n1.jpg,b,test"},
        "the images of metadata.csv with train and val",
        (1, 1),
    ),
    "imagenet": (
        jpgs("imagenet/train/n01440764/0.JPEG", "imagenet/val/n01440764/1.JPEG"),
        "an image folder with train and val, 1 class",
        (1, 1),
    ),
    "test beside train": (
        jpgs("train/ok/0.jpg", "train/nok/1.jpg", "test/ok/2.jpg")
        | {"train/.DS_Store": b"", "train/ok/.DS_Store": b""},
        "an image folder with train and val, 2 classes",
        (2, 1),
    ),
    "tiny": (
        jpgs("train/n01443537/images/0.JPEG", "val/images/1.JPEG")
        | {"val/val_annotations.txt": b"1.JPEG\tn01443537\t0", "test/images/2.JPEG": IMAGE, "wnids.txt": b"n01443537"},
        "the tree of Tiny-ImageNet",
        (1, 1),
    ),
    "dots in names": (
        {"0.tar": tar_of(("22.05.png", IMAGE), ("22.05.cls", b"a"), ("22.06.png", IMAGE), ("22.06.cls", b"b"))},
        "WebDataset with 1 train file, 2 classes",
        (2, 0),
    ),
    "input.jpg": (
        {"0.tar": tar_of(("0.input.jpg", IMAGE), ("0.cls", b"a"), ("1.input.jpg", IMAGE), ("1.cls", b"b"))},
        "WebDataset with 1 train file, 2 classes",
        (2, 0),
    ),
    "gzip": (
        {"0.tar.gz": gzip.compress(tar_of(("0.jpg", IMAGE), ("0.cls", b"a"), ("1.jpg", IMAGE), ("1.cls", b"b")))},
        "WebDataset with 1 train file, 2 classes",
        (2, 0),
    ),
    "repeated members": (
        {"0.tar": tar_of(("0.jpg", IMAGE), ("0.cls", b"a"), ("0.jpg", IMAGE), ("0.cls", b"a"))},
        "WebDataset with 1 train file, 1 class",
        (2, 0),
    ),
    "unsorted members": (
        {"0.tar": tar_of(("0.jpg", IMAGE), ("1.jpg", IMAGE), ("0.cls", b"a"), ("1.cls", b"b"))},
        "WebDataset with 1 train file, 2 classes",
        (4, 0),
    ),
}
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "splits without classes": (jpgs("train/0.jpg", "test/1.jpg"), "has no class folders of train"),
    "images in one folder": (jpgs("data/0.jpg", "data/1.jpg"), "which would be a class named 'data'"),
    "images alone": (jpgs("0.jpg", "1.jpg"), "is in none of the layouts that can be read"),
    "metadata without a label": (
        jpgs("0.jpg") | {"metadata.csv": b"file_name,text\n0.jpg,x"},
        r"ingest\.class_key: metadata\.csv has the columns file_name, text",
    ),
    "coco": (jpgs("train2017/0.jpg", "val2017/1.jpg"), "has no class folders of train"),
    "zip": ({"images.zip": b"PK"}, "unpack it: unzip -q"),
    "a tar for each class": (
        {f"{wnid}.tar": tar_of((f"{wnid}_1.JPEG", IMAGE)) for wnid in ("n01440764", "n02102040")},
        "each tar of .* is a class; unpack them",
    ),
    "class folders in a tar": (
        {"0.tar": tar_of(("a/0.jpg", IMAGE), ("b/1.jpg", IMAGE))},
        "unpack it: mkdir -p .* tar -xf",
    ),
    "images in a tar": ({"0.tar": tar_of(("0.jpg", IMAGE), ("1.jpg", IMAGE))}, "unpack it: mkdir -p .* tar -xf"),
    "no class": ({"0.tar": tar_of(("0.jpg", IMAGE), ("0.json", b"{}"))}, "no sample of .* names a class"),
}


@pytest.mark.parametrize("name", READ)
def test_open_source_of_sets_in_issues_reads_them(tmp_path: Path, name: str) -> None:
    files, description, counts = READ[name]
    source = open_set(write_files(tmp_path / "a set", files))
    assert source.description.startswith(description)
    splits = read_all(source)["split"].to_pylist()
    assert (splits.count("train"), splits.count("val")) == counts


@pytest.mark.parametrize("name", REFUSED)
def test_open_source_of_sets_in_issues_refuses_them(tmp_path: Path, name: str) -> None:
    files, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        open_set(write_files(tmp_path / "a set", files))


def test_open_source_with_given_layout_uses_it(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1)})
    write_parquet(root / "index.parquet", [(picture(1), "1.jpg", 0)], ["dog"])
    assert open_set(root).classes.names == ("dog",)
    assert open_set(root, layout="folder").classes.names == ("cat",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "/nowhere/at/all"}, "there is no /nowhere/at/all; give the image set's folder, file or URI"),
        ({"source": "gopher://x/y"}, "ingest.source gopher://x/y: .* give a folder or a URI"),
        ({"source": "digits", "layout": "folder"}, "the embedded digits have one layout"),
        ({"source": "digits", "classes": ["digit one"]}, "the embedded digits have one layout"),
        ({"source": "digits", "class_key": "x"}, "the embedded digits have one layout"),
        ({"source": "digits", "config": "x"}, "the embedded digits have one layout"),
    ],
)
def test_open_source_unusable_settings_name_the_problem(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_set(**settings)


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_open_source_without_files_of_given_layout_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(
        ConfigError, match=r"ingest.source: .* (has no \.\w+ file|has no class folders|cannot be opened)"
    ):
        open_set(write_files(tmp_path, {"train/cat/1.jpg": picture(1)}), layout=layout)


def test_open_source_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ConfigError, match=r"is in none of the layouts that can be read: .*train/<class>"):
        open_set(tmp_path)


def test_open_source_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an empty folder; give the one that holds"):
        open_set(tmp_path)


def test_open_source_that_s3_refuses_names_the_fix(s3_proxy: Proxy) -> None:
    s3_proxy.set_faults(deny=[403, "AccessDenied", "no"])
    with pytest.raises(AccessError, match="the credentials lack a permission"):
        open_set(s3_proxy.uri("set"))
    assert {kind for _, kind, _ in s3_proxy.requests()} == {"LIST"}  # HEAD has no answer that says what is wrong


def test_hashed_settings_change_with_the_rows_only(tmp_path: Path) -> None:
    def hashed(**settings: object) -> dict[str, object]:
        return hashed_settings(Ingest(**{"source": str(tmp_path / "missing"), **settings}))

    assert hashed() == hashed(max_rejected=0.5)
    assert hashed() == hashed(source=f"{tmp_path}/a/../missing")
    assert hashed() != hashed(classes="imagenette")
    (tmp_path / "list.tsv").write_text("cat\n")
    one = hashed(class_list=str(tmp_path / "list.tsv"))
    (tmp_path / "list.tsv").write_text("dog\n")
    assert one != hashed(class_list=str(tmp_path / "list.tsv"))


def test_open_source_of_the_hub_without_internet_says_how_to_fetch_it() -> None:
    with pytest.raises(ConfigError, match=r"ingest\.source: hf://.* HF_HUB_OFFLINE is set; run vlcp-ray fetch with"):
        open_set("hf://datasets/uoft-cs/cifar10/plain_text")


def test_open_source_with_a_class_key_that_the_layout_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ingest\.class_key: the layout folder has no such field; leave it out"):
        open_set(write_files(tmp_path, {"cat/1.jpg": picture(1)}), class_key="x")


def test_open_source_with_a_configuration_that_is_a_link_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "private" / "train.parquet", [(picture(1), "1.jpg", "cat")], None)
    write_parquet(tmp_path / "set" / "a" / "train.parquet", [(picture(1), "1.jpg", "cat")], None)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match=r"has no folder b; it has a$"):
        open_set(tmp_path / "set", config="b")


@pytest.mark.parametrize("name", ["data_batch_1", "notes.txt", "1.jpg", "metadata.csv"])
def test_open_source_of_another_file_asks_for_the_folder(tmp_path: Path, name: str) -> None:
    root = write_files(tmp_path, {name: picture(1)})
    with pytest.raises(ConfigError, match=rf"{name} is a file, and no tar, .* give the folder of the image set"):
        open_set(root / name)
