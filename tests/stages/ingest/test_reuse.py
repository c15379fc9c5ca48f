"""Tests of images that are not decoded again for another val_fraction."""

from pathlib import Path

import pytest

from tests.image_sets import picture, write_files
from tests.stages.ingest.test_run import images, ingest, rejected

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]

TRAIN = {f"train/{name}/{i:02d}.jpg": picture(i) for name in ("cat", "dog") for i in range(12)}
VAL = {f"val/{name}/{i:02d}.jpg": picture(i + 50) for name in ("cat", "dog") for i in range(3)}
BAD = {"train/cat/bad.jpg": b"text"}


def spoil(source: Path, names: list[str]) -> None:
    for name in names:
        (source / name).write_bytes(b"no longer a picture")


@pytest.mark.parametrize("workers", [1, 2])
def test_ingest_with_another_val_fraction_decodes_no_image_again(tmp_path: Path, workers: int) -> None:
    source = write_files(tmp_path / "set", TRAIN | VAL | BAD)
    fresh = {
        fraction: ingest(tmp_path / f"fresh {fraction}", source, val_fraction=fraction, max_rejected=0.1)
        for fraction in (0.0, 0.2, 0.5)
    }
    first, _ = ingest(tmp_path / "root", source, workers, max_rejected=0.1)
    spoil(source, list(TRAIN))
    for fraction in (0.2, 0.5):
        artifact, manifest = ingest(tmp_path / "root", source, workers, val_fraction=fraction, max_rejected=0.1)
        assert images(artifact).equals(images(fresh[fraction][0]))
        assert rejected(artifact) == {"train/cat/bad.jpg": "undecodable"}
        counts = ("rows_in", "rows", "rejected", "splits", "train", "val")
        assert [manifest[name] for name in counts] == [fresh[fraction][1][name] for name in counts]
        assert set(images(artifact)["split"].to_pylist()) == {"train", "val"}
    # And back: the val images of the set itself were read by the first run only.
    for path in Path(first.path).rglob("*"):
        path.unlink() if path.is_file() else None
    again, _ = ingest(tmp_path / "root", source, workers, max_rejected=0.1)
    assert images(again).equals(images(fresh[0.0][0]))


def test_ingest_of_other_images_reads_them_itself(tmp_path: Path) -> None:
    """Other limits, other classes and samples are other images: nothing is copied."""
    source = write_files(tmp_path / "set", TRAIN | VAL)
    ingest(tmp_path / "root", source)
    spoil(source, ["train/cat/00.jpg"])
    for settings in ({"max_seconds": 9.0}, {"classes": ["cat", "dog"]}, {"max_per_class": 12}):
        artifact, _ = ingest(tmp_path / "root", source, val_fraction=0.2, max_rejected=0.1, **settings)
        assert rejected(artifact) == {"train/cat/00.jpg": "undecodable"}


def test_ingest_interrupted_while_it_copies_has_every_row_once(tmp_path: Path) -> None:
    source = write_files(tmp_path / "set", TRAIN | VAL)
    ingest(tmp_path / "root", source)
    artifact, _ = ingest(tmp_path / "root", source, val_fraction=0.25)
    before = images(artifact)
    for name in ("manifest.json", "classes.json"):
        Path(artifact.path, name).unlink()
    sorted(Path(artifact.path, "images").iterdir())[0].unlink()
    again, manifest = ingest(tmp_path / "root", source, val_fraction=0.25)
    assert images(again).equals(before)
    assert manifest["rows"] == len(TRAIN)


def test_ingest_reads_all_again_where_copied_images_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "set", TRAIN | VAL)
    first, _ = ingest(tmp_path / "root", source)
    (source / "train/cat/03.jpg").unlink()
    (source / "train/cat/04.jpg").write_bytes(picture(77))
    artifact, manifest = ingest(tmp_path / "root", source, val_fraction=0.25)
    assert f"1 images of {Path(first.path).name} are no longer in the image set: all are read again" in (
        capsys.readouterr().out
    )
    fresh, _ = ingest(tmp_path / "fresh", source, val_fraction=0.25)
    assert images(artifact).equals(images(fresh))
    assert "copied-from.txt" not in manifest["files"]
    assert Path(first.path, "manifest.json").exists()


def test_ingest_copies_the_images_of_train_alone_from_a_list_of_both_splits(tmp_path: Path) -> None:
    lines = ["file_name,label,split"]
    lines += [f"{i}.jpg,{('cat', 'dog')[i % 2]},{'test' if i % 5 == 4 else 'train'}" for i in range(20)]
    files = {f"{i}.jpg": picture(i) for i in range(20)} | {"metadata.csv": "\n".join(lines).encode()}
    source = write_files(tmp_path / "set", files)
    fresh = {f: ingest(tmp_path / f"fresh {f}", source, val_fraction=f) for f in (0.0, 0.3, 0.6)}
    assert fresh[0.0][1]["splits"] == {"train": 16, "val": 4}
    assert sum(fresh[0.3][1]["splits"].values()) == 16  # val is taken from train, in place of the set's own
    for order in ((0.3, 0.0, 0.6), (0.0, 0.6, 0.3)):
        for fraction in order:
            artifact, manifest = ingest(tmp_path / f"root {order}", source, val_fraction=fraction)
            assert images(artifact).equals(images(fresh[fraction][0]))
            assert manifest["splits"] == fresh[fraction][1]["splits"]


@pytest.mark.parametrize("content", [b"{", b'{"version": 3, "settings": null}', b'{"version": 3, "settings": {}}'])
def test_ingest_beside_an_artifact_that_cannot_be_read_reads_the_images(tmp_path: Path, content: bytes) -> None:
    source = write_files(tmp_path / "set", TRAIN | VAL)
    write_files(tmp_path / "root", {"ingest-0123456789ab/manifest.json": content})
    _, manifest = ingest(tmp_path / "root", source, val_fraction=0.25)
    assert manifest["rows"] == len(TRAIN)
