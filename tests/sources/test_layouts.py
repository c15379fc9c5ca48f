"""Whether layouts are recognised by looking, and a source that cannot be used is told in one sentence."""

from pathlib import Path

import pytest

from tests.image_sets import opened, picture, write_files, write_parquet, write_tar
from vlcp_ray import config
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.layouts import science


def test_layouts_are_recognised(tmp_path: Path) -> None:
    write_files(tmp_path / "folder", {"train/cat/1.jpg": picture(1)})
    write_files(
        tmp_path / "tiny",
        {"train/n01443537/images/1.JPEG": picture(1), "val/val_annotations.txt": b"", "val/images/1.JPEG": b""},
    )
    write_parquet(tmp_path / "hub" / "data" / "train-0.parquet", [(picture(1), "1.jpg", 0)], ["cat"])
    write_tar(tmp_path / "tars" / "train" / "0.tar", [("1.jpg", picture(1)), ("1.cls", b"cat")])
    starts = {"folder": "an image folder", "tiny": "the tree of Tiny", "hub": "parquet with", "tars": "WebDataset with"}
    for name, start in starts.items():
        assert opened(tmp_path / name).description.startswith(start)
    assert opened(f"file://{tmp_path}/folder").classes.names == ("cat",)


def test_the_job_can_say_the_layout(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"train/cat/1.jpg": picture(1)})
    write_parquet(root / "index.parquet", [(picture(1), "1.jpg", 0)], ["dog"])
    assert opened(root).classes.names == ("dog",)
    assert opened(root, layout="folder").classes.names == ("cat",)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "/nowhere/at/all"}, "there is no /nowhere/at/all; give the image set's folder, file or URI"),
        ({"source": "gopher://x/y"}, "ingest.source gopher://x/y: .* give a folder or a URI"),
        ({"source": "digits", "layout": "folder"}, "the embedded digits have one layout"),
        ({"source": "digits", "classes": ["digit one"]}, "the embedded digits have one layout"),
    ],
)
def test_sources_that_cannot_be_used_are_told(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        opened(**settings)


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_layout_that_is_not_there_is_told(tmp_path: Path, layout: str) -> None:
    with pytest.raises(
        ConfigError, match=r"ingest.source: .* (has no \.\w+ file|has no class folders|cannot be opened)"
    ):
        opened(write_files(tmp_path, {"train/cat/1.jpg": picture(1)}), layout=layout)


def test_an_unknown_layout_is_told_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ConfigError, match="is none of the layouts that can be read: train/<class>"):
        opened(tmp_path)


def test_an_empty_folder_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an empty folder; give the one that holds"):
        opened(tmp_path)


def test_a_fingerprint_holds_what_decides_the_rows_and_reads_nothing(tmp_path: Path) -> None:
    def of(**settings: object) -> dict[str, object]:
        return science(config.Ingest(**{"source": str(tmp_path / "missing"), **settings}))

    assert of() == of(max_rejected=0.5)
    assert of() == of(source=f"{tmp_path}/a/../missing")
    assert of() != of(classes="imagenette")
    (tmp_path / "list.tsv").write_text("cat\n")
    one = of(class_list=str(tmp_path / "list.tsv"))
    (tmp_path / "list.tsv").write_text("dog\n")
    assert one != of(class_list=str(tmp_path / "list.tsv"))
