"""Tests of sets of the Hugging Face hub: the commit that is read, and what is said where one cannot be read."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.hub_server import Hub, serve
from tests.image_sets import open_set, picture, read_all, write_parquet
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import hub
from vlcp_ray.sources.hub import at_commit

OLD = {f"{split}/{key}/{i}.png": picture(i) for split in ("train", "val") for key in ("cat", "dog") for i in range(2)}
NEW = {name: picture(i + 100) for i, name in enumerate(OLD)}


@pytest.fixture
def pets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pets = Hub("owner/pets")
    with serve(pets) as endpoint:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        at_commit.cache_clear()
        yield pets
    huggingface_hub.HfFileSystem.clear_instance_cache()
    at_commit.cache_clear()


def test_open_source_reads_the_commit_that_a_revision_means(pets: Hub) -> None:
    old, new = pets.push(OLD, "v1"), pets.push(NEW, "main")
    uri = "hf://datasets/owner/pets"
    for source, revision, commit, files in (
        (uri, "", new, NEW),
        (uri, "main", new, NEW),
        (uri, "v1", old, OLD),
        (uri, old, old, OLD),
        (f"{uri}@v1", "", old, OLD),
    ):
        assert at_commit(source, revision) == (f"{uri}@{commit}", commit)
        table = read_all(open_set(source, revision=revision))
        found = dict(zip(table["source"].to_pylist(), table["image"].to_pylist(), strict=True))
        assert found == files
    assert {commit for commit, _ in pets.read} == {old, new}
    # Ids and sources do not tell the commit: the same rows of two revisions have the same ids.
    one, two = (read_all(open_set(uri, revision=name)) for name in ("v1", "main"))
    assert one.select(["image_id", "source"]).equals(two.select(["image_id", "source"]))


def test_open_source_reads_all_files_of_one_commit_though_the_branch_moves(pets: Hub) -> None:
    old = pets.push(OLD, "main")
    source = open_set("hf://datasets/owner/pets")
    pets.push(NEW, "main")
    assert dict(zip(*(read_all(source)[name].to_pylist() for name in ("source", "image")), strict=True)) == OLD
    assert {commit for commit, _ in pets.read} == {old}


def test_open_source_reads_a_folder_of_a_set_of_tables(pets: Hub, tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", [(picture(i), f"{i}.png", key) for i, key in enumerate(("cat", "dog"))], None)
    content = (tmp_path / "t.parquet").read_bytes()
    commit = pets.push(
        {f"plain/{split}-0.parquet": content for split in ("train", "test")}, "main", "refs/convert/parquet"
    )
    for source in ("hf://datasets/owner/pets/plain", "hf://datasets/owner/pets@refs%2Fconvert%2Fparquet/plain"):
        assert at_commit(source, "")[0] == f"hf://datasets/owner/pets@{commit}/plain"
        assert len(read_all(open_set(source))) == 4


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [
        (
            "hf://datasets/owner/pets",
            "v9",
            r"ingest\.revision: hf://.* has no revision 'v9'; give a branch, a tag or a",
        ),
        ("hf://datasets/owner/pets@v9", "", r"ingest\.revision: hf://.* has no revision of that name; "),
        (
            "hf://datasets/owner/pets@v1",
            "main",
            r"ingest\.revision: .* names another one than 'main'; leave one of them out",
        ),
        (
            "hf://datasets/owner/none",
            "",
            r"ingest\.source: .* cannot be opened: .*; if it is gated or private, .*HF_TOK",
        ),
        ("/data/pets", "v1", r"ingest\.revision: only sets of the hub \(hf://\) have revisions; leave it out"),
        ("digits", "v1", r"ingest\.revision: only sets of the hub"),
        ("s3://bucket/pets", "v1", r"ingest\.revision: only sets of the hub"),
    ],
)
def test_revisions_that_cannot_be_read_are_refused(pets: Hub, source: str, revision: str, words: str) -> None:
    pets.push(OLD, "main", "v1")
    with pytest.raises(ConfigError, match=words):
        open_set(source, revision=revision)


def test_open_source_of_a_gated_set_says_how_to_log_in(pets: Hub) -> None:
    pets.push(OLD, "main")
    pets.gated = True
    with pytest.raises(
        ConfigError,
        match=r"cannot be opened: Accept the terms; if it is gated or private, accept its terms .* hf auth log",
    ):
        open_set("hf://datasets/owner/pets")


def test_fix_is_for_sets_of_the_hub() -> None:
    assert "vlcp-ray fetch" in hub.fix("hf://datasets/owner/pets@v1/plain")
    assert hub.fix("/data/pets") == ""


@pytest.mark.parametrize(
    ("source", "revision", "place"),
    [
        ("hf://datasets/owner/pets", "", ("owner/pets", "dataset", "", "")),
        ("hf://datasets/owner/pets/", "v1", ("owner/pets", "dataset", "v1", "")),
        ("hf://datasets/owner/pets@refs%2Fpr%2F1/a/b", "", ("owner/pets", "dataset", "refs/pr/1", "a/b")),
        ("hf://spaces/owner/app/x", "", ("owner/app", "space", "", "x")),
        ("hf://owner/net@v1/images", "", ("owner/net", "model", "v1", "images")),
    ],
)
def test_place_of_reads_the_parts_of_a_uri(source: str, revision: str, place: tuple[str, ...]) -> None:
    assert hub.place_of(source, revision) == place
