"""Tests of the page of an inspected image set."""

from html.parser import HTMLParser
from pathlib import Path

from tests.image_sets import picture, write_files
from vlcp_ray.inspection.inspect import inspect
from vlcp_ray.inspection.page import render
from vlcp_ray.sources import open_source
from vlcp_ray.stages.ingest import Ingest


class Pictures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")


def test_render_shows_pictures_and_problems_and_refers_to_nothing(tmp_path: Path) -> None:
    open_source.cache_clear()
    bad = '<script>alert("x")</script> dog'
    files = {f"train/{name.replace('/', '')}/{i}.jpg": picture(i) for name in ("cat", bad) for i in range(3)}
    root = write_files(tmp_path / "a <b> set", files | {"train/cat/9.jpg": b"no image", "train/cat/x.txt": b""})
    found = inspect(Ingest(source=str(root)))
    page = render(found)
    parsed = Pictures()
    parsed.feed(page)
    assert len(parsed.sources) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert "script" not in parsed.tags
    assert "b" not in parsed.tags
    assert "undecodable: the bytes are not an image" in page
    assert "no val images" in page
    assert "1 .txt file" in page
    assert "4 train, 0 val" in page
