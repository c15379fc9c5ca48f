"""Tests of the WebDataset layout: labels, repeated keys, and broken tars of which no row is lost."""

import gzip
import json
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile import labelled, tar_header, tar_sample
from tests.image_sets import SHARED, by_source, open_set, picture, read_all, write_files, write_parquet, write_tar
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.gzip_shards import GzipShard
from vlcp_ray.sources.reader import Part, Source

IMAGE = picture(1)


def sample(key: str, image: bytes, **label: object) -> list[tuple[str, bytes]]:
    """Build the members of a sample: `cls` as a file, all other labels in a json."""
    members = [(f"{key}.jpg", image)]
    if "cls" in label:
        members.append((f"{key}.cls", str(label.pop("cls")).encode()))
    return [*members, (f"{key}.json", json.dumps(label).encode())] if label else members


def test_webdataset_class_is_from_json_or_cls(tmp_path: Path) -> None:
    members = [
        *sample("a/1", picture(1), cls=999, wnid="n01440764"),
        *sample("a/2", picture(2), class_name="English springer, English springer spaniel"),
        ("3.seg.png", b"a mask, not the image"),
        *sample("3", picture(3), cls="cat"),
    ]
    write_tar(tmp_path / "set-train-0.tar", members)
    write_tar(tmp_path / "set-val-0.tar", sample("1", picture(4), cls="cat"))
    source = open_set(tmp_path)
    assert source.description == "WebDataset with 1 train file and 1 val file, 3 classes"
    table = read_all(source)
    assert by_source(table, "class_key") == {
        "set-train-0.tar:a/1": "n01440764",
        "set-train-0.tar:a/2": "n02102040",
        "set-train-0.tar:3": "cat",
        "set-val-0.tar:1": "cat",
    }
    assert by_source(table, "image_id")["set-train-0.tar:a/1"] == "train/n01440764/a/1"
    assert by_source(table, "image")["set-train-0.tar:3"] == picture(3)


def test_webdataset_label_numbers_follow_class_list(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", [m for i in (0, 217, 1000) for m in sample(str(i), picture(i), cls=i)])
    with pytest.raises(ConfigError, match=r"ingest.class_list: the tars have label numbers"):
        open_set(tmp_path)
    keys = by_source(read_all(open_set(tmp_path, class_list="imagenet1k")), "class_key")
    assert keys == {"train.tar:0": "n01440764", "train.tar:217": "n02102040", "train.tar:1000": "#1000"}
    subset = read_all(open_set(tmp_path, class_list="imagenet1k", classes=["n02102040"]))
    assert by_source(subset, "class_key") == {"train.tar:217": "n02102040", "train.tar:1000": "#1000"}


def test_webdataset_unwanted_classes_are_skipped_and_missing_labels_kept(tmp_path: Path) -> None:
    members = [*sample("1", picture(1), cls="cat"), *sample("2", picture(2), cls="dog"), *sample("3", picture(3))]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members), classes="cat"))
    assert by_source(table, "reason") == {"train.tar:1": "", "train.tar:3": "no_label"}
    assert "none of which names a class" in by_source(table, "detail")["train.tar:3"]


def test_webdataset_broken_samples_are_rows_with_a_reason(tmp_path: Path) -> None:
    members = [
        ("1.cls", b"cat"),
        *sample("2", picture(2, size=(200, 200)), cls="cat"),
        ("3.jpg", picture(3)),
        ("3.json", b"{no json"),
        *sample("4", picture(4), cls="cat"),
    ]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members), max_bytes=5_000))
    assert by_source(table, "reason") == {
        "train.tar:1": "unreadable",
        "train.tar:2": "too_large",
        "train.tar:3": "no_label",
        "train.tar:4": "",
    }


def test_webdataset_repeated_key_is_another_row_of_same_id(tmp_path: Path) -> None:
    members = [m for key, seed in (("1", 1), ("2", 2), ("1", 3)) for m in sample(key, picture(seed), cls="cat")]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members)))
    assert by_source(table, "image_id") == {
        "train.tar:1": "train/cat/1",
        "train.tar:1 again 1": "train/cat/1",
        "train.tar:2": "train/cat/2",
    }


def test_webdataset_neighbours_of_one_key_are_two_rows(tmp_path: Path) -> None:
    members = [*sample("1", picture(1), cls="cat"), *sample("1", picture(2), cls="dog")]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members)))
    assert by_source(table, "image") == {"train.tar:1": picture(1), "train.tar:1 again 1": picture(2)}
    assert table["class_key"].to_pylist() == ["cat", "dog"]


@pytest.mark.parametrize("tail", ["zeros", "another tar"])
def test_webdataset_bytes_after_the_end_are_an_unreadable_row(tmp_path: Path, tail: str) -> None:
    file = write_tar(tmp_path / "train.tar", [m for i in range(4) for m in sample(str(i), picture(i), cls="cat")])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 512 // 2 * 512] + bytes(2**21) if tail == "zeros" else whole + whole)
    assert "unreadable" in read_all(open_set(file, classes="cat"))["reason"].to_pylist()


def test_webdataset_name_in_another_encoding_is_escaped(tmp_path: Path) -> None:
    members = [("b\udce4r.jpg", picture(1)), ("b\udce4r.cls", b"cat")]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members)))
    assert table["source"].to_pylist() == ["train.tar:b\\xe4r"]


def test_webdataset_malformed_labels_are_no_label(tmp_path: Path) -> None:
    members = [("1.jpg", picture(1)), ("1.json", b"[" * 100_000), ("2.jpg", picture(2)), ("2.cls", b"x" * 2**21)]
    table = read_all(open_set(write_tar(tmp_path / "train.tar", members), classes="cat"))
    assert table["reason"].to_pylist() == ["no_label", "no_label"]


@pytest.mark.parametrize("cut", [700, 1300, 2048 + 512 * 3])
def test_webdataset_truncated_tar_has_an_unreadable_row(tmp_path: Path, cut: int) -> None:
    file = write_tar(tmp_path / "train.tar", [m for i in range(4) for m in sample(str(i), picture(i), cls="cat")])
    whole = file.read_bytes()
    assert set(read_all(open_set(file))["reason"].to_pylist()) == {""}
    file.write_bytes(whole[:-10240] if cut == 1300 else whole[:cut])
    table = read_all(open_set(file, classes="cat"))
    assert "unreadable" in table["reason"].to_pylist()
    assert "cut short or broken at byte" in " ".join(table["detail"].to_pylist())


def test_webdataset_broken_header_is_an_unreadable_row(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", [m for i in range(4) for m in sample(str(i), picture(i), cls="cat")])
    content = bytearray(file.read_bytes())
    at = content.index(b"2.jpg")
    content[at : at + 512] = b"x" * 512
    file.write_bytes(content)
    reasons = by_source(read_all(open_set(file)), "reason")
    assert [reasons[f"train.tar:{i}"] for i in (0, 1)] == ["", ""]
    assert reasons[f"train.tar:from byte {at}"] == "unreadable"


def test_webdataset_path_traversal_writes_nothing(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "in" / "train.tar", sample("../../evil", picture(1), cls="cat"))
    assert by_source(read_all(open_set(file)), "image_id") == {"train.tar:../../evil": "train/cat/evil"}
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "train.tar"}


def test_webdataset_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"this is text" * 100)
    with pytest.raises(ConfigError, match=r"train.tar cannot be read as a tar"):
        open_set(tmp_path)


def test_webdataset_read_skips_done_samples(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train.tar", [m for i in range(3) for m in sample(str(i), picture(i), cls="cat")])
    assert read_all(open_set(file), ["train.tar:1"])["source"].to_pylist() == ["train.tar:0", "train.tar:2"]


def test_webdataset_of_real_sample_has_exact_counts() -> None:
    tars = SHARED / "imagenet-sample"
    if not tars.exists():
        pytest.skip(f"{tars} is not there")
    source = open_set(tars)
    assert source.description == "WebDataset with 4 train files, 120 classes"
    table = read_all(source)
    assert len(table) == 120
    assert set(table["reason"].to_pylist()) == {""}
    half = source.classes.keys[::2]
    assert sorted(read_all(open_set(tars, classes=half))["class_key"].to_pylist()) == sorted(half)


def test_webdataset_of_img2dataset_asks_for_the_field_of_the_class(tmp_path: Path) -> None:
    content = b'{"caption": "a cat", "key": "0", "animal": "cat"}'
    write_tar(tmp_path / "00000.tar", [("0.jpg", picture(1)), ("0.txt", b"a cat"), ("0.json", content)])
    write_parquet(tmp_path / "00000.parquet", [(picture(2), "0.jpg", 0)], ["dog"])
    with pytest.raises(ConfigError, match=r"no sample of .* names a class; they have jpg, txt, json; set ingest\.cl"):
        open_set(tmp_path)
    source = open_set(tmp_path, class_key="animal")
    assert source.description == "WebDataset with 1 train file, 1 class"
    assert read_all(source)["class_key"].to_pylist() == ["cat"]


def test_webdataset_of_archives_gives_the_command_that_unpacks_them(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "in", [("n01440764_1.JPEG", picture(1))]).read_bytes()
    root = tmp_path / "set"
    write_tar(root / "ILSVRC2012_img_train.tar", [("n01440764.tar", inner), ("n02102040.tar", inner)])
    with pytest.raises(ConfigError, match="holds other archives") as error:
        open_set(root)
    command = str(error.value).split("for each class: ")[1]
    subprocess.run(["sh", "-c", command], check=True)
    assert open_set(root, layout="folder").classes.keys == ("n01440764", "n02102040")
    assert read_all(open_set(root, layout="folder"))["image"].to_pylist() == [picture(1)] * 2


@pytest.mark.parametrize("label", ["tench", "n01440764"])
def test_webdataset_classes_by_synonym_are_those_of_the_labels(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "0.tar", [("1.jpg", picture(1)), ("1.cls", label.encode()), ("2.jpg", picture(2))])
    source = open_set(tmp_path, classes=["tench"])
    assert source.classes.keys == (label,)
    assert by_source(read_all(source), "class_key")["0.tar:1"] == label


def test_webdataset_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    names = ("22.05", "22.06", "a/v1.0/track 2.0 (clean)", "x")
    members = [
        member
        for i, name in enumerate(names)
        for member in ((f"{name}.png", picture(i, "PNG")), (f"{name}.cls", b"cat"))
    ]
    write_tar(tmp_path / "0.tar", members)
    assert by_source(read_all(open_set(tmp_path)), "image") == {
        f"0.tar:{name}": picture(i, "PNG") for i, name in enumerate(names)
    }


def test_webdataset_image_may_have_a_name_before_its_suffix(tmp_path: Path) -> None:
    one = [("0.input.jpg", picture(1)), ("0.cls", b"cat")]
    two = [("1.left.jpg", picture(1)), ("1.right.jpg", picture(2)), ("1.cls", b"cat")]
    write_tar(tmp_path / "0.tar", [*one, *two])
    assert by_source(read_all(open_set(tmp_path)), "reason") == {"0.tar:0": "", "0.tar:1": "unreadable"}


def test_webdataset_of_a_tar_for_each_class_gives_the_command_that_unpacks_them(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n02102040"):
        write_tar(tmp_path / f"{wnid}.tar", [(f"{wnid}_1.JPEG", picture(1))])
    with pytest.raises(ConfigError, match=r"each tar of .* is a class") as error:
        open_set(tmp_path)
    subprocess.run(["sh", "-c", str(error.value).split("a folder each: ")[1]], check=True)
    assert open_set(tmp_path).classes.keys == ("n01440764", "n02102040")


@pytest.mark.parametrize("other", ["000.depth-map.png", "000.0.txt", "000.x1.npy"])
def test_webdataset_members_with_names_before_their_suffix_stay_in_their_sample(tmp_path: Path, other: str) -> None:
    write_tar(tmp_path / "0.tar", [("000.jpg", picture(1)), (other, b"x"), ("000.cls", b"cat")])
    assert by_source(read_all(open_set(tmp_path)), "class_key") == {"0.tar:000": "cat"}


def test_webdataset_wanted_class_with_an_ambiguous_name_is_that_of_the_labels(tmp_path: Path) -> None:
    image = picture(1)
    write_tar(tmp_path / "0.tar", [("1.jpg", image), ("1.cls", b"panda"), ("2.jpg", image), ("2.cls", b"cat")])
    assert open_set(tmp_path, classes=["panda", "cat"]).classes.keys == ("panda", "cat")


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_webdataset_labels_may_begin_with_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    texts = {"1.cls": "cat", "2.json": '{"label": "dog"}', "3.cls": "1"}
    members = [
        member for name, text in texts.items() for member in ((f"{name[0]}.jpg", IMAGE), (name, (mark + text).encode()))
    ]
    write_tar(tmp_path / "0.tar", members)
    (tmp_path / "names.txt").write_bytes(f"{mark}cat\ncow\ndog\n".encode())
    table = read_all(open_set(tmp_path, class_list=str(tmp_path / "names.txt")))
    assert by_source(table, "class_key") == {"0.tar:1": "cat", "0.tar:2": "dog", "0.tar:3": "cow"}


def pack(file: Path, end: str = ".gz", level: int = 9) -> Path:
    """Put a gzip file in the place of a tar."""
    packed = file.with_name(f"{file.name}{end}") if end == ".gz" else file.with_suffix(end)
    packed.write_bytes(gzip.compress(file.read_bytes(), level))
    file.unlink()
    return packed


def cats(count: int) -> list[tuple[str, bytes]]:
    return [member for number in range(count) for member in sample(f"{number}", picture(number), cls="cat")]


def test_webdataset_in_gzip_has_the_rows_of_the_tars(tmp_path: Path) -> None:
    for folder in ("plain", "packed"):
        write_tar(tmp_path / folder / "set-train-0.tar", cats(5))
        members = [*sample("a/1", picture(6), wnid="n01440764"), *sample("a/2", picture(7)), ("3.cls", b"cat")]
        write_tar(tmp_path / folder / "set-train-1.tar", members)
        write_tar(tmp_path / folder / "val" / "0.tar", sample("9", picture(9, size=(200, 200)), cls="cat"))
    pack(tmp_path / "packed" / "set-train-0.tar")
    pack(tmp_path / "packed" / "val" / "0.tar", ".tgz")  # one is left as it is
    plain, packed = (open_set(tmp_path / folder, max_bytes=5_000) for folder in ("plain", "packed"))
    assert packed.description == plain.description == "WebDataset with 2 train files and 1 val file, 2 classes"
    assert packed.splits == {"train", "val"}
    expected, table = read_all(plain), read_all(packed)
    assert len(table) == 9
    assert sorted(table["reason"].to_pylist()) == [""] * 6 + ["no_label", "too_large", "unreadable"]
    for name in ("image_id", "class_key", "split", "image", "reason", "detail"):
        assert table[name].to_pylist() == expected[name].to_pylist()
    assert [name.replace(".tgz", ".tar").replace(".gz", "") for name in table["source"].to_pylist()] == expected[
        "source"
    ].to_pylist()
    rows = {name: reason for name, reason in by_source(table, "reason").items() if name.startswith("set-train-0")}
    assert set(by_source(read_all(packed, list(rows)[1:]), "source")) & set(rows) == {next(iter(rows))}
    listed = [image for part in packed.parts() for image in packed.images(part, ids=True)]
    assert sorted(image.image_id for image in listed) == sorted(table["image_id"].to_pylist())


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_webdataset_is_unpacked_by_its_first_bytes_not_by_its_name(tmp_path: Path, name: str, is_packed: bool) -> None:
    content = write_tar(tmp_path / "x", cats(2)).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    for source in (tmp_path, tmp_path / name):
        assert set(by_source(read_all(open_set(source)), "source")) == {f"{name}:0", f"{name}:1"}


@pytest.mark.parametrize("is_packed", [True, False])
def test_webdataset_that_macos_has_written_has_no_rows_of_hidden_members(tmp_path: Path, is_packed: bool) -> None:
    members = [(".DS_Store", b"junk")]
    for name, content in cats(3):
        members += [(f"._{name}", b"junk"), (name, content)]
    file = write_tar(tmp_path / "train.tar", members)
    table = read_all(open_set(pack(file) if is_packed else file))
    assert table["reason"].to_pylist() == [""] * 3
    assert table["image"].to_pylist() == [picture(number) for number in range(3)]


def test_webdataset_in_gzip_is_unpacked_once_for_each_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large member behind the image does not send the reader back, and is not held."""
    noise = np.random.default_rng(0).bytes(3 * 2**20)
    image = picture(2, "PNG", size=(800, 600))
    others = [
        [(f"{number}.png", image), (f"{number}.cls", b"cat"), (f"{number}.npy", noise), (f"{number}.seg.png", image)]
        for number in range(3)
    ]
    whole = write_tar(tmp_path / "train.tar", [member for members in others for member in members])
    size, shards = whole.stat().st_size, list[GzipShard]()
    pack(whole, level=1)
    source, begin = open_set(tmp_path), GzipShard._begin
    monkeypatch.setattr(GzipShard, "_begin", lambda shard: (shards.append(shard), begin(shard))[1])
    tracemalloc.start()
    rows = [(row["image"] == image, row["reason"]) for (part,) in [source.parts()] for row in read_rows(source, part)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == [(True, "")] * 3
    assert len(shards) <= 2  # opened, and from the start again behind the first header
    assert max(shard._unpacked for shard in shards) <= size + 2**20
    assert peak < 3 * (3 * len(image)) + 2**24


def read_rows(source: Source, part: Part) -> list[dict[str, Any]]:
    return [row for table in source.read(part, ()) for row in table.to_pylist()]


def test_webdataset_in_gzip_holds_no_image_that_is_too_large(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2**24)
    file = pack(write_tar(tmp_path / "train.tar", [*cats(1), *sample("big", noise, cls="cat")]), level=1)
    del noise
    source = open_set(file, max_bytes=2**20)
    tracemalloc.start()
    table = read_all(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert by_source(table, "reason") == {"train.tar.gz:0": "", "train.tar.gz:big": "too_large"}
    assert peak < 2**23


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, -1])
def test_webdataset_gzip_that_is_cut_short_keeps_the_rows_before_it(tmp_path: Path, cut: float) -> None:
    file = pack(write_tar(tmp_path / "train.tar", cats(20)), level=1)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole)) if cut > 0 else -1])
    table = read_all(open_set(file))
    good = [name for name, reason in by_source(table, "reason").items() if not reason]
    bad = {name: detail for name, detail in by_source(table, "detail").items() if name not in good}
    assert all(by_source(table, "image")[name] == picture(int(name.rpartition(":")[2])) for name in good)
    assert len(good) >= 20 * abs(cut) - 2
    assert 1 <= len(bad) <= 2  # the sample at the cut, and what may have followed
    assert [detail for name, detail in bad.items() if "from byte" in name] == ["the gzip file is cut short"]
    with pytest.raises(ValueError, match=r"train\.tar\.gz: the gzip file is cut short"):
        list(open_set(file).images(open_set(file).parts()[0]))


def test_webdataset_gzip_with_damaged_bytes_keeps_the_rows_before_them(tmp_path: Path) -> None:
    file = pack(write_tar(tmp_path / "train.tar", cats(20)), level=0)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of its length
    file.write_bytes(content)
    reasons = by_source(read_all(open_set(file)), "reason")
    assert sorted(reasons.values()) == [""] * 20 + ["unreadable"]
    file.write_bytes(file.read_bytes()[:-8] + gzip.compress(bytes(10))[:-8])
    assert "unreadable" in by_source(read_all(open_set(file)), "reason").values()


def test_webdataset_gzip_that_is_none_beside_a_good_one_costs_one_row(tmp_path: Path) -> None:
    pack(write_tar(tmp_path / "train-0.tar", cats(3)))
    (tmp_path / "train-1.tar.gz").write_bytes(b"\x1f\x8b this is text" * 100)
    (tmp_path / "train-2.tgz").write_bytes(b"")
    reasons = by_source(read_all(open_set(tmp_path)), "reason")
    assert sorted(reasons.values()) == ["", "", "", "unreadable", "unreadable"]
    assert {name for name, reason in reasons.items() if reason} == {
        "train-1.tar.gz:whole file",
        "train-2.tgz:whole file",
    }


def test_webdataset_gzip_bomb_ends_with_one_row(tmp_path: Path) -> None:
    bomb = tar_sample("1", IMAGE) + tar_header("1.bin", 2**30) + bytes(10**8)
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(bomb))
    del bomb
    tracemalloc.start()
    table = read_all(open_set(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [bool(reason) for reason in table["reason"].to_pylist()] == [False, True]
    assert "bytes of the gzip file unpack to more than" in table["detail"].to_pylist()[1]
    assert peak < 2**24


def test_webdataset_in_gzip_has_sparse_members_and_no_links(tmp_path: Path) -> None:
    content = bytes(3 * 2**20) + b"end"
    write_files(tmp_path / "files", {"x.cls": b"cat"})
    with (tmp_path / "files" / "x.png").open("wb") as file:
        file.seek(3 * 2**20)
        file.write(b"end")
    command = ["tar", "--format=gnu", "--sparse", "-cf", "x.tar", "x.png", "x.cls"]
    subprocess.run(command, cwd=tmp_path / "files", check=True)
    sparse = (tmp_path / "files" / "x.tar").read_bytes()
    assert len(sparse) < 20_000
    link = labelled("y", tar_header("y.png", kind=b"2", link="1.png"))
    (tmp_path / "train.tgz").write_bytes(gzip.compress(tar_sample("1", IMAGE) + link + sparse))
    table = read_all(open_set(tmp_path / "train.tgz"))
    assert by_source(table, "image") == {"train.tgz:1": IMAGE, "train.tgz:x": content, "train.tgz:y": b""}
    assert by_source(table, "detail")["train.tgz:y"] == "y.png is a link to 1.png, which is not followed in a gzip file"


def test_webdataset_image_of_exactly_max_bytes_is_read(tmp_path: Path) -> None:
    image = picture(1)
    file = write_tar(tmp_path / "train.tar", sample("0", image, cls="cat"))
    for limit, reason in ((len(image), ""), (len(image) - 1, "too_large")):
        assert by_source(read_all(open_set(file, max_bytes=limit)), "reason") == {"train.tar:0": reason}
