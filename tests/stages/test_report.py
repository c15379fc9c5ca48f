"""Checks the page: what it shows and leaves out, and that nothing gets in unescaped."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from tests.test_scores import SCORED, scores, trials
from vlcp_ray.images import encode_png
from vlcp_ray.schemas import REJECTED, SCORES, SYNTHETIC, prototypes_schema, tensor_array
from vlcp_ray.stages.report import (
    DistilledSet,
    Report,
    StageRow,
    duration,
    highlight,
    preview,
    render,
    shown_labels,
)

VOID = {"meta", "img", "input", "link", "br"}
EVIL = "<script>alert('1')</script>"


def png(value: int, size: int = 32) -> bytes:
    return encode_png(np.full((size, size, 3), value, np.uint8))


def synthetic(classes: int, ipc: int, image: bytes | None = None) -> pa.Table:
    rows = [
        {"image_id": f"{c:04}-{k:03}", "label": c, "class_name": f"class <{c}>", "split": "train", "text": "a b"}
        | {"image": png((7 * c + k) % 256) if image is None else image, "prototype_id": f"{c}-{k}", "seed": 1}
        for c in range(classes)
        for k in range(ipc)
    ]
    return pa.Table.from_pylist(rows, schema=SYNTHETIC)


def prototypes(classes: int, ipc: int, text: str = "A round digit, wide and round.") -> pa.Table:
    places = [(c, k) for c in range(classes) for k in range(ipc)]
    columns = {
        "prototype_id": [f"{c}-{k}" for c, k in places],
        "label": [c for c, _ in places],
        "class_name": [f"class <{c}>" for c, _ in places],
        "cluster": [k for _, k in places],
        "size": [10 + k for _, k in places],
        "latent": tensor_array(np.zeros((len(places), 4, 1, 1), np.float32)),
        "text": [text] * len(places),
        "text_image_id": ["x"] * len(places),
        "words": [["round", "thin"]] * len(places),
    }
    schema = prototypes_schema((4, 1, 1))
    arrays = [v if isinstance(v, pa.Array) else pa.array(v, schema.field(k).type) for k, v in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def nearest(table: pa.Table) -> pa.Table:
    chosen = table.select(["prototype_id", "image_id", "image"])
    return chosen.append_column("distance", pa.array(np.ones(len(chosen), np.float32)))


def distilled(
    classes: int = 2, ipc: int = 2, seed: int = 0, text: str = "A round digit, wide and round."
) -> DistilledSet:
    images = synthetic(classes, ipc)
    return DistilledSet(seed, ipc, prototypes(classes, ipc, text), images, images, nearest(images))


def rejected(*rows: tuple[str, str]) -> pa.Table:
    keys = ("image_id", "reason")
    full = [
        dict(zip(keys, row, strict=True)) | {"stage": "ingest", "detail": "no PNG", "source": "a.zip"} for row in rows
    ]
    return pa.Table.from_pylist(full, schema=REJECTED)


EMPTY = Report("digits", {}, {}, (), SCORES.empty_table(), (), REJECTED.empty_table(), {}, ())


def full_report() -> Report:
    return Report(
        "digits",
        {"name": "digits", "ipc": [2], "caption": {"prompt": EVIL, "temperature": 0.2, "engine": None}},
        {"python": "3.11", "machine": "2 cores"},
        (StageRow("ingest", "ingest", "abcdef0123456789", 12, 10, 2, 3.0, "digits"),),
        SCORED,
        (distilled(), distilled(seed=1)),
        rejected(("a", "undecodable"), ("b", "undecodable")),
        {0: [(1, 0.5), (2, 0.25)], 1: [(1, 0.6), (2, 0.3)]},
        (("epoch 2", png(0)),),
        train_rows=1297,
    )


class Page(HTMLParser):
    """Reads a page, keeps what it holds, and fails where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    def all(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not class_ or class_ in (a.get("class") or "").split())]

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", "".join(self.words))


def sections(page: Page) -> list[str | None]:
    return [attributes["id"] for attributes in page.all("section")]


def test_one_trial_has_no_spread_and_shows_nothing() -> None:
    table = scores(trials("vlcp", 1, (0.8,)), trials("random", 1, (0.5,)))
    page = Page(render(dataclasses.replace(EMPTY, scores=table)))
    assert len(page.all("svg")) == 2
    assert "one trial" in page.text
    assert not page.all("path", "whisker")
    assert "1 distilled image per class reaches 80.0\N{NO-BREAK SPACE}% where 1 random one reaches" in page.text


def test_the_whole_page_is_well_formed_self_contained_and_repeatable() -> None:
    html = render(full_report())
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert sections(page) == ["scores", "sets", "finetune", "stages", "rejected", "settings", "facts"]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in sections(page)]
    assert not page.all("script")
    assert not page.all("link")
    assert all((a["src"] or "").startswith("data:image/") for a in page.all("img"))
    assert not re.search(r"url\(|https?://|@import", re.sub(r'src="data:[^"]*"', "", html))
    assert html == render(full_report())


def test_missing_parts_leave_their_section_out() -> None:
    assert sections(Page(render(EMPTY))) == []
    assert "Nothing is distilled yet" in Page(render(EMPTY)).text
    only_images = dataclasses.replace(distilled(), prototypes=prototypes(0, 0), centroids=None)
    page = Page(render(dataclasses.replace(EMPTY, sets=(only_images,))))
    assert sections(page) == ["sets"]
    assert "4 distilled images, not scored yet" in page.text
    assert not page.all("div", "prototype")
    only_prototypes = dataclasses.replace(distilled(), synthetic=SYNTHETIC.empty_table(), centroids=None)
    page = Page(render(dataclasses.replace(EMPTY, sets=(only_prototypes,))))
    assert len(page.all("div", "prototype")) == 4
    assert len(page.all("div", "none")) == 8


def test_everything_from_outside_is_escaped() -> None:
    report = dataclasses.replace(
        full_report(), title=EVIL, facts={EVIL: EVIL}, sets=(distilled(text=EVIL),),
        validation=((EVIL, png(0)),), rejected=rejected((EVIL, EVIL)),
        stages=(StageRow(EVIL, "ingest", EVIL, 1, 1, 0, None, EVIL),), scores=scores(trials(EVIL, 2, (0.5,), EVIL)),
    )  # fmt: skip
    html = render(report)
    page = Page(html)
    assert not page.all("script")
    assert "<script" not in html
    assert "class <0>" in page.text
    assert page.text.count("alert") > 8


def test_a_prototype_stands_beside_what_it_came_from() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(classes=1, ipc=1),))))
    assert len(page.all("div", "prototype")) == 1
    assert len(page.all("mark")) == 2
    assert "Cluster 0, 10 images. Its words that this text leaves out: thin." in page.text
    assert [a["alt"] for a in page.all("img")][-3:] == ["centroid", "nearest real", "synthetic"]
    assert all(a["class"] == "pixels" for a in page.all("img"))


def test_the_largest_clusters_are_shown() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(classes=1, ipc=5),))))
    assert re.findall(r"Cluster (\d), (\d+) images", page.text) == [("4", "14"), ("3", "13"), ("2", "12")]
    assert "Shown are the 3 largest of the 5 clusters of each class." in page.text


def test_highlight_marks_whole_words_and_keeps_the_text() -> None:
    pieces = highlight("Red, covered; RED 7!", ["red"])
    assert [piece for piece, marked in pieces if marked] == ["Red", "RED"]
    assert "".join(piece for piece, _ in pieces) == "Red, covered; RED 7!"
    assert highlight("", ["red"]) == []


def test_seeds_share_the_page_in_tabs() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(), distilled(seed=1)))))
    assert len(page.all("input")) == 2
    assert sum("checked" in a for a in page.all("input")) == 1
    assert len(page.all("div", "panel")) == 2
    assert not Page(render(dataclasses.replace(EMPTY, sets=(distilled(),)))).all("input")


def test_a_thousand_classes_stay_small_and_say_what_is_left_out() -> None:
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))  # what compresses worst
    images = synthetic(1000, 11, b"")
    files = [noise if label < 20 else b"never opened" for label in images["label"].to_pylist()]
    images = images.set_column(4, "image", pa.array(files))
    one = DistilledSet(0, 11, prototypes(1000, 11), images, images, nearest(images))
    sets = [dataclasses.replace(one, seed=seed) for seed in range(3)]
    html = render(dataclasses.replace(EMPTY, sets=sets))
    page = Page(html)
    assert len(html) < 20e6
    assert "Shown are 200 images of the first 20 classes; 10,800 images are left out" in page.text
    assert "980 of 1,000 classes among them" in page.text
    assert len(page.all("img")) == 20 + 3 * (20 * 10 + 20 * 3 * 3)


def test_a_part_of_a_set_with_its_totals_is_told_as_the_whole() -> None:
    part = dataclasses.replace(distilled(2, 2), classes=1000, images=2000)
    page = Page(render(dataclasses.replace(EMPTY, sets=(part,))))
    assert "2,000 distilled images, not scored yet" in page.text
    assert "Shown are 4 images of the first 2 classes; 1,996 images are left out, 998 of 1,000 classes" in page.text


@pytest.mark.parametrize(("sets", "count"), [(0, 20), (1, 20), (3, 20), (6, 10), (60, 3)])
def test_more_sets_show_fewer_classes_each(sets: int, count: int) -> None:
    assert shown_labels([*range(1000), 5, 5], sets) == list(range(count))


@pytest.mark.parametrize(
    ("stage", "rows", "mark"),
    [("ingest", 8, "1 missing"), ("ingest", 10, "1 too many"), ("ingest", 9, "adds up"), ("prototype", 4, "")],
)
def test_rows_that_do_not_add_up_are_marked(stage: str, rows: int, mark: str) -> None:
    row = StageRow("a stage", stage, "f" * 64, 10, rows, 1, None, "")
    page = Page(render(dataclasses.replace(EMPTY, stages=(row,))))
    assert {word for word in ("1 missing", "1 too many", "adds up") if word in page.text} == ({mark} if mark else set())
    assert bool(page.all("span", "no")) == (mark.startswith("1 "))
    assert "reused" in page.text


def test_rejected_rows_are_counted_by_reason() -> None:
    table = rejected(*((f"i{n}", "undecodable") for n in range(7)), ("j", "too_large"))
    page = Page(render(dataclasses.replace(EMPTY, rejected=table)))
    assert "7 \N{MULTIPLICATION SIGN} undecodable in ingest: the bytes are not an image" in page.text
    assert "1 \N{MULTIPLICATION SIGN} too_large" in page.text
    assert "2 more." in page.text


def test_settings_and_facts_are_told_in_full() -> None:
    page = Page(render(full_report()))
    for words in ("temperature0.2", "enginenull", "ipc[2]", "machine2 cores", "namedigits"):
        assert words in page.text.replace(" 0.2", "0.2")


def test_large_images_become_small_jpegs_and_small_ones_stay() -> None:
    large, small = preview(png(9, 400)), preview(png(9, 32))
    assert (large["small"], small["small"]) == (False, True)
    assert large["src"].startswith("data:image/jpeg;base64,")
    assert small["src"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "reused"), (0.04, "0.0 s"), (61.0, "1 min 01 s"), (59.99, "60.0 s"), (3 * 3600 + 299.0, "3 h 04 min")],
)
def test_durations_are_words_of_a_clock(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
