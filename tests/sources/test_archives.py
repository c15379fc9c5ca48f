"""Tests of archives that are no image sets: refused, with a command that unpacks them to one."""

import gzip
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow import fs as pafs

from tests.image_sets import open_set, picture, read_all, write_files, write_parquet, write_tar
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.archives import has_tars, refuse_archives

FILESYSTEM = pafs.LocalFileSystem()
IMAGE = picture(1)
TREE = [(f"train/{name}/{number}.jpg", IMAGE) for name in ("cat", "dog") for number in range(2)]
FLAT = [("0.jpg", IMAGE), ("1.jpg", IMAGE)]
SAMPLES = [(f"{number}.{end}", content) for number in range(2) for end, content in (("jpg", IMAGE), ("cls", b"cat"))]
HINT = '; if samples with labels follow in them, set ingest.layout = "webdataset"'
ENDS = ["tar", "tar.gz", "tgz", "TGZ"]


def archive(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar, packed with gzip unless its name ends with .tar."""
    write_tar(file, members)
    if not file.name.endswith(".tar"):
        file.write_bytes(gzip.compress(file.read_bytes()))
    return file


def unpack(source: Path, **settings: str) -> Path:
    """Run the command that the refusal of a set gives; returns the folder that it names."""
    with pytest.raises(ConfigError, match=r"unpack (it|them): ") as error:
        open_set(source, **settings)
    assert str(error.value).endswith(HINT) == (settings.get("layout") != "webdataset")
    message = str(error.value).removesuffix(HINT)
    command, _, found = message.split(" unpack ")[1].partition(": ")[2].partition(", and set ingest.source = ")
    subprocess.run(["sh", "-c", command], check=True)
    root = source.parent if source.is_file() else source
    assert found == repr(str(root / "unpacked"))
    return root / "unpacked"


@pytest.mark.parametrize("name", ["set.zip", "my set.ZIP"])
def test_refuse_archives_gives_the_command_that_unpacks_them(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {name: b"", ".DS_Store": b"", "README.md": b""})
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ConfigError) as error:
            refuse_archives(FILESYSTEM, str(source))
        quoted = f"'{tmp_path}/{name}'" if " " in name else f"{tmp_path}/{name}"
        command = f"unzip -q {quoted} -d {tmp_path}/unpacked"
        assert f"unpack it: {command}, and set ingest.source" in str(error.value)


@pytest.mark.parametrize("end", ["tar.bz2", "tbz2", "tbz", "tar.xz", "txz", "TXZ", "tar.zst", "tzst", "7z", "rar"])
def test_refuse_archives_of_other_tars_gives_the_command_that_unpacks_them(tmp_path: Path, end: str) -> None:
    root = write_files(tmp_path / "a set", {f"0.{end}": b""})
    with pytest.raises(ConfigError, match=rf"/a set/0\.{end} is an archive, which is not read as it is; unpack it: "):
        open_set(root)
    if "b" in end or "x" in end.lower():
        with tarfile.open(root / f"0.{end}", "w:bz2" if "b" in end else "w:xz") as tar:
            tar.add(write_files(tmp_path / "tree", dict(TREE)), "set")
        with pytest.raises(ConfigError) as error:
            open_set(root)
        subprocess.run(["sh", "-c", str(error.value).split("unpack it: ")[1].split(", and set")[0]], check=True)
        assert len(read_all(open_set(root / "unpacked"))) == 4


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder, "x.tar"), members).read_bytes()


STORED: list[tuple[dict[str, list[tuple[str, bytes]]], str, str]] = [
    ({"b.tar": TREE}, "download it and unpack it: ", ", upload the folder unpacked, and set ingest.source to it"),
    (
        {"my 0.tar": FLAT, "val/my 1.tar": FLAT},
        "download them and unpack them: ",
        ", upload the folder unpacked, and set ingest.source to it",
    ),
    (
        {f"{wnid}.tar": [(f"{wnid}_1.JPEG", IMAGE)] for wnid in ("n01440764", "n02102040")},
        "download the folder, and in it unpack them into a folder each: ",
        "; then upload the folders, and set ingest.source to where they are",
    ),
    (
        {"ILSVRC2012_img_train.tar": [("n01440764.tar", tar_of(FLAT))]},
        "download the folder, and in it unpack them into a folder for each class: ",
        "; then upload the folder train, and set ingest.source to where they are",
    ),
]


@pytest.mark.parametrize(("tars", "begin", "end"), STORED)
def test_archives_in_a_store_are_unpacked_where_they_were_downloaded(
    tmp_path: Path, tars: dict[str, list[tuple[str, bytes]]], begin: str, end: str
) -> None:
    store: Any = fsspec.filesystem("memory")
    for name, members in tars.items():
        store.pipe(f"/{tmp_path.name}/set/{name}", archive(tmp_path / name, members).read_bytes())
    with pytest.raises(ConfigError, match=f"/{tmp_path.name}/set") as error:
        open_set(f"memory://{tmp_path.name}/set")
    command, _, rest = str(error.value).partition(begin)[2].partition(end)
    assert rest in ("", HINT)
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    found = next(folder for folder in (tmp_path / "unpacked", tmp_path / "train", tmp_path) if folder.is_dir())
    assert len(read_all(open_set(found))) == {"b": 4, "m": 4, "n": 2, "I": 2}[min(tars)[0]]


def test_zip_in_a_store_is_unpacked_where_it_was_downloaded(tmp_path: Path) -> None:
    store: Any = fsspec.filesystem("memory")
    store.pipe(f"/{tmp_path.name}/set/my set.zip", b"PK")
    command = "unzip -q 'my set.zip' -d unpacked"
    message = f"set/my set.zip is an archive, which is not read as it is; download it and unpack it: {command}, upload"
    with pytest.raises(ConfigError, match=message):
        open_set(f"memory://{tmp_path.name}/set")


def test_refuse_archives_leaves_sets_beside_archives(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/1.jpg", "0.tar", "0.tgz", "1.jpg", "1.npz")):
        refuse_archives(FILESYSTEM, str(write_files(tmp_path / str(number), {name: b"", "backup.zip": b""})))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("settings", [{}, {"classes": "cat"}, {"layout": "webdataset"}])
def test_tar_of_a_folder_tree_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, end: str, settings: dict[str, str]
) -> None:
    file = archive(tmp_path / f"my set.{end}", [("README.md", b"x"), ("./._a", b"x"), ("train/.DS_Store", b""), *TREE])
    with pytest.raises(ConfigError, match="is an archive, which is not read as it is; unpack it: "):
        open_set(tmp_path, **settings)
    folder = unpack(file, **settings)
    assert open_set(folder).description == "an image folder with train, 2 classes"
    assert len(read_all(open_set(folder))) == 4


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_tars_of_a_tree_for_each_split_are_unpacked_into_folders_of_splits(tmp_path: Path, end: str) -> None:
    for split, count in (("train", 3), ("val", 2)):
        images = [(f"{name}/{number}.jpg", IMAGE) for name in ("cat", "dog") for number in range(count)]
        archive(tmp_path / f"set-{split}.{end}", [("README.md", b"x"), *images])
    table = read_all(open_set(unpack(tmp_path)))
    assert sorted(table["split"].to_pylist()) == ["train"] * 6 + ["val"] * 4


def test_tars_of_one_tree_with_splits_are_unpacked_into_one_folder(tmp_path: Path) -> None:
    for number in range(10):
        archive(tmp_path / f"part-{number}.tar", [(f"train/cat/{number}.jpg", IMAGE), (f"val/cat/{number}.jpg", IMAGE)])
    with pytest.raises(ConfigError, match="; then the other 2 in the same way, and set"):
        open_set(tmp_path)
    for number in range(8, 10):
        (tmp_path / f"part-{number}.tar").unlink()
    assert sorted(read_all(open_set(unpack(tmp_path)))["split"].to_pylist()) == ["train"] * 8 + ["val"] * 8


def test_tars_of_images_alone_are_unpacked_into_a_folder_each(tmp_path: Path) -> None:
    for name in ("cat", "my pet"):
        archive(tmp_path / f"{name}.tar.gz", FLAT)
    assert open_set(unpack(tmp_path)).classes.keys == ("cat", "my pet")


@pytest.mark.parametrize("end", ["tar", "tgz"])
def test_tar_for_each_wnid_is_refused_with_the_command_that_unpacks_them(tmp_path: Path, end: str) -> None:
    root = tmp_path / "a set"
    for wnid in ("n01440764", "n02102040"):
        archive(root / f"{wnid}.{end}", [(f"{wnid}_1.JPEG", IMAGE)])
    with pytest.raises(ConfigError, match=r"each tar of .* is a class") as error:
        open_set(root)
    subprocess.run(["sh", "-c", str(error.value).split("a folder each: ")[1]], check=True)
    assert open_set(root).classes.keys == ("n01440764", "n02102040")


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_tar_of_tars_is_refused_with_the_command_that_unpacks_them(tmp_path: Path, end: str) -> None:
    inner = archive(tmp_path / "in.tar", [("n01440764_1.JPEG", IMAGE)]).read_bytes()
    archive(tmp_path / "a set" / f"ILSVRC2012_img_train.{end}", [("n01440764.tar", inner), ("n02102040.tar", inner)])
    with pytest.raises(ConfigError, match="holds other archives") as error:
        open_set(tmp_path / "a set", class_list="imagenet1k")
    subprocess.run(["sh", "-c", str(error.value).split("for each class: ")[1]], check=True)
    assert open_set(tmp_path / "a set").classes.keys == ("n01440764", "n02102040")  # beside the tar, which is left


def test_tar_beside_what_it_was_unpacked_to_is_not_read(tmp_path: Path) -> None:
    for end in ENDS:
        root = write_files(tmp_path / end, dict(TREE))
        archive(root / f"set.{end}", TREE)
        assert open_set(root).layout == "folder"
        (root / f"broken.{end}").write_bytes(b"x" * 600)
        assert open_set(root).layout == "folder"
        (root / "metadata.csv").write_bytes(b"file_name,label\n0.jpg,cat\n")
        assert open_set(write_files(root, {"0.jpg": IMAGE, "README.md": b""})).layout == "folder"
    files = {
        f"ILSVRC/{name}": IMAGE for name in ("Annotations/CLS-LOC/train/cat/1.xml", "Data/CLS-LOC/train/cat/1.JPEG")
    }
    kaggle = write_files(tmp_path / "kaggle", files)
    archive(kaggle / "imagenet.tar.gz", list(files.items()))
    with pytest.raises(ConfigError, match=r"it holds .*/ILSVRC/Data/CLS-LOC; give that folder"):
        open_set(kaggle)
    listed = write_files(tmp_path / "listed", {"0.jpg": IMAGE, "metadata.csv": b"file_name,label\n0.jpg,cat\n"})
    archive(listed / "images.tar.gz", FLAT)
    assert open_set(listed).layout == "metadata"


@pytest.mark.parametrize("end", ENDS)
def test_tar_beside_the_folder_that_it_was_unpacked_to_is_not_read(tmp_path: Path, end: str) -> None:
    root = write_files(tmp_path, {f"set/{name}": content for name, content in TREE})
    archive(root / f"set.{end}", [(f"set/{name}", content) for name, content in TREE])
    source = open_set(root)
    assert (source.description, len(read_all(source))) == ("an image folder with train, 2 classes", 4)
    write_files(root / "set", {f"other/old.{end}": b"x" * 600})  # no folder of images
    assert len(read_all(open_set(root))) == 4


def test_tar_of_samples_beside_images_is_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"examples/0.jpg": IMAGE})
    archive(root / "train.tar.gz", SAMPLES)
    assert open_set(root).layout == "webdataset"


def test_tar_whose_first_members_cannot_be_read_is_no_archive_of_a_tree(tmp_path: Path) -> None:
    file = archive(tmp_path / "train.tar", TREE)
    file.write_bytes(file.read_bytes()[:1_200])
    assert set(read_all(open_set(file, classes="cat"))["reason"].to_pylist()) == {"no_label", "unreadable"}


def test_tar_of_folders_or_nothing_beside_images_is_not_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, dict(TREE))
    with tarfile.open(root / "folders.tar", "w") as tar:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (root / "nothing.tar").write_bytes(bytes(10_240))
    assert not has_tars(FILESYSTEM, str(root))


def test_parquet_of_img2dataset_beside_packed_tars_is_not_the_set(tmp_path: Path) -> None:
    archive(tmp_path / "00000.tar.gz", [("0.jpg", IMAGE), ("0.json", b'{"label": "cat"}')])
    write_parquet(tmp_path / "00000.parquet", [(IMAGE, "0.jpg", 0)], ["dog"])
    assert open_set(tmp_path).classes.keys == ("cat",)


@pytest.mark.parametrize("labelled", range(9))
def test_tars_of_which_one_has_samples_are_read(tmp_path: Path, labelled: int) -> None:
    for number in range(9):
        archive(tmp_path / f"train-{number}.tar", SAMPLES if number == labelled else FLAT)
    assert len(read_all(open_set(tmp_path, layout="webdataset"))) == 18
    if labelled == 7:  # of nine eight are looked at
        with pytest.raises(ConfigError, match="are archives of files without labels"):
            open_set(tmp_path)
        return
    assert len(read_all(open_set(tmp_path))) == 18
    write_files(tmp_path, {"examples/0.jpg": IMAGE})
    assert open_set(tmp_path).layout == "webdataset"


def test_tar_of_images_in_the_given_layout_is_rows_without_labels(tmp_path: Path) -> None:
    file = archive(tmp_path / "train.tar", FLAT)
    table = read_all(open_set(file, layout="webdataset", classes="cat"))
    assert table["reason"].to_pylist() == ["no_label"] * 2
    with pytest.raises(ConfigError, match="is an archive"):
        open_set(file, classes="cat")


@pytest.mark.parametrize(("limit", "value"), [("_SEEN", 4), ("_SEEN_BYTES", 6_000)])
def test_tar_is_told_from_samples_by_its_first_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(f"vlcp_ray.sources.archives.{limit}", value)
    for number, is_set in ((2, True), (9, False)):
        members = [(f"a/{i}.jpg", IMAGE) for i in range(number)] + [("a/last.cls", b"cat")]
        file = archive(tmp_path / f"{number}.tgz", members)
        if is_set:
            assert len(read_all(open_set(file))) == number + 1
        else:
            with pytest.raises(ConfigError, match="is an archive"):
                open_set(file)
