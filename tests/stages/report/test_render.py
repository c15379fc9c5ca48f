"""Tests of the rendered page: what it shows and leaves out, its size, and that all text is escaped."""

import dataclasses
import re
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from tests.stages.report.small_report import (
    EMPTY,
    SCRIPT,
    distilled,
    full_report,
    nearest,
    png,
    prototypes,
    rejected,
    synthetic,
    tsne_plot,
)
from tests.stages.report.test_scores import scores, trials
from vlcp_ray.images import encode_png
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.stages.report.contents import DistilledSet, Neighbour, Sample, StageRow
from vlcp_ray.stages.report.images import thumbnail
from vlcp_ray.stages.report.render import (
    _finetuning_charts,
    _rejected,
    _samples,
    _set_sizes,
    _settings,
    _tsne_view,
    render,
)

VOID = {"meta", "img", "input", "link", "br"}


class Page(HTMLParser):
    """A parsed page: its tags and its text; fails where a tag is closed that is not open."""

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


def test_render_one_trial_has_no_std_and_no_significance() -> None:
    table = scores(trials("vlcp", 1, (0.8,)), trials("random", 1, (0.5,)))
    page = Page(render(dataclasses.replace(EMPTY, scores=table)))
    assert len(page.all("svg")) == 2
    assert "not shown" in page.text
    assert not page.all("g", "std")
    assert "1 distilled image per class reaches 80.0\N{NO-BREAK SPACE}% where 1 random one reaches" in page.text


def test_render_full_report_is_well_formed_self_contained_and_reproducible() -> None:
    html = render(full_report())
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert sections(page) == ["data", "scores", "sets", "coverage", "finetuning", "cost", "rejected", "reproduce"]
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in sections(page)}
    assert not page.all("script")
    assert not page.all("link")
    assert all((a["src"] or "").startswith("data:image/") for a in page.all("img"))
    assert not re.search(r"url\((?!#)|https?://|@import", re.sub(r'src="data:[^"]*"', "", html))
    assert html == render(full_report())


def test_render_without_a_part_leaves_its_section_out() -> None:
    assert sections(Page(render(EMPTY))) == []
    assert "Nothing is distilled yet" in Page(render(EMPTY)).text
    only_images = dataclasses.replace(distilled(), prototypes=prototypes(0, 0), centroids=None)
    page = Page(render(dataclasses.replace(EMPTY, sets=(only_images,))))
    assert sections(page) == ["sets"]
    assert "4 distilled images, not evaluated yet" in page.text
    assert not page.all("div", "prototype")
    only_prototypes = dataclasses.replace(distilled(), synthetic=SYNTHETIC.empty_table(), centroids=None)
    page = Page(render(dataclasses.replace(EMPTY, sets=(only_prototypes,))))
    assert len(page.all("div", "prototype")) == 4
    assert len(page.all("div", "none")) == 8


def test_render_shows_the_device_seconds_of_measured_sets() -> None:
    text = Page(render(full_report())).text
    assert "CPU-seconds" in text
    for method, megabytes in (("vlcp", "2.00"), ("random", "2.00")):
        assert f"2{method}{megabytes}1,234.50.5" in text  # images per class, method, MB of images, means of two seeds


def test_render_shows_unseen_characters_escaped() -> None:
    name = "cat\u202egnp.exe\x1b"
    html = render(
        dataclasses.replace(
            full_report(),
            title=name,
            source=name,
            sets=(distilled(text=name),),
            rejected=rejected((name, name)),
            samples=(Sample(0, 1, name, png(0)),),
        )
    )
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert html.count(r"cat\u202egnp.exe\x1b") >= 5


@pytest.mark.parametrize(
    "hostile",
    [SCRIPT, "\" onload=\"alert('1')\" x='", "'><img src=x onerror=alert('1')>", "</title></svg>&#60;script>"],
)
def test_render_escapes_everything_from_outside(hostile: str) -> None:
    report = dataclasses.replace(
        full_report(),
        title=hostile,
        facts={hostile: hostile},
        stages=(StageRow(hostile, "ingest", hostile, 1, 1, 0, None, hostile),),
        scores=scores(trials(hostile, 2, (0.5,), hostile)),
        sets=(distilled(text=hostile),),
        rejected=rejected((hostile, hostile)),
        samples=(Sample(0, 1, hostile, png(0)),),
        source=hostile,
        class_lists=(hostile,),
        class_names=(hostile,),
        dropped_words={0: [(hostile, 1.0)]},
        tsne_plots=(dataclasses.replace(tsne_plot(outliers=False), class_name=hostile),),
        other_classes=pa.table({"label": [7], "class_name": [hostile], "image": [png(3)]}),
        coverage=[dict(report_coverage, method=hostile) for report_coverage in full_report().coverage],
        neighbours=(Neighbour(hostile, hostile, 0.1, 0.5, png(1), png(2)),),
        command=hostile,
    )
    html = render(report)
    page = Page(html)
    assert not page.all("script")
    assert "<script" not in html
    assert "class <0>" in page.text
    assert page.text.count(hostile) > 8
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not [image for image in page.all("img") if not (image["src"] or "").startswith("data:image/")]


def test_render_prototype_is_beside_its_centroid_and_real_images() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(classes=1, ipc=1),))))
    assert len(page.all("div", "prototype")) == 1
    assert len(page.all("mark")) == 2
    assert "Cluster 0, 10 images. Representative words that are not in this caption: thin." in page.text
    assert [a["alt"] for a in page.all("img")][-5:] == ["centroid", "synthetic", *["nearest real"] * 3]
    assert all(a["class"] == "pixels" for a in page.all("img"))


def test_render_of_many_clusters_shows_the_largest() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(classes=20, ipc=12),))))
    assert re.findall(r"Cluster (\d+), (\d+) images", page.text)[:3] == [("11", "21"), ("10", "20"), ("9", "19")]
    assert "Shown are the 10 largest of the 12 clusters of each class." in page.text


def test_render_of_two_seeds_has_tabs() -> None:
    page = Page(render(dataclasses.replace(EMPTY, sets=(distilled(), distilled(seed=1)))))
    assert len(page.all("input")) == 2
    assert sum("checked" in a for a in page.all("input")) == 1
    assert len(page.all("div", "panel")) == 2
    assert not Page(render(dataclasses.replace(EMPTY, sets=(distilled(),)))).all("input")


def test_render_of_a_thousand_classes_is_small_and_counts_what_is_left_out() -> None:
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))  # what compresses worst
    images = synthetic(1000, 11, b"")
    files = [noise if label < 20 else b"never opened" for label in images["label"].to_pylist()]
    images = images.set_column(4, "image", pa.array(files))
    one = DistilledSet(0, 11, prototypes(1000, 11), images, images, nearest(images))
    sets = [dataclasses.replace(one, seed=seed) for seed in range(3)]
    names = [f"class <{label}>" for label in range(20, 1000)]
    other_classes = pa.table({"label": range(20, 1000), "class_name": names, "image": [thumbnail(noise)] * 980})
    html = render(dataclasses.replace(EMPTY, sets=sets, other_classes=other_classes))
    page = Page(html)
    assert len(html) < 20e6
    assert all(name in page.text for name in names)
    assert "Shown are 200 images of the first 20 classes; 10,800 images are left out" in page.text
    assert "980 of 1,000 classes among them" in page.text
    assert len(page.all("img")) == 20 + 3 * 20 * 10 + 20 * (1 + 10 * 3) + 980


def test_render_of_ten_classes_is_below_five_megabytes() -> None:
    random = np.random.default_rng(0)  # like a photograph: coarse patches with a little noise
    coarse = random.integers(0, 256, (30, 8, 8, 3)).repeat(28, 1).repeat(28, 2)
    photos = [
        encode_png(np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)) for image in coarse
    ]
    sets = []
    for seed in range(3):
        for ipc in (10, 20, 50):
            images = synthetic(10, ipc, b"")
            images = images.set_column(4, "image", pa.array([photos[i % 30] for i in range(len(images))], pa.binary()))
            sets.append(DistilledSet(seed, ipc, prototypes(10, ipc), images, images, nearest(images, 3)))
    html = render(dataclasses.replace(EMPTY, sets=sets, tsne_plots=[tsne_plot(outliers=True)] * 10))
    assert len(html) < 5e6


def test_render_part_of_a_set_uses_its_totals() -> None:
    part = dataclasses.replace(distilled(2, 2), classes=1000, images=2000)
    page = Page(render(dataclasses.replace(EMPTY, sets=(part,))))
    assert "2,000 distilled images, not evaluated yet" in page.text
    assert "Shown are 4 images of the first 2 classes; 1,996 images are left out, 998 of 1,000 classes" in page.text


@pytest.mark.parametrize(
    ("stage", "rows", "mark"),
    [("ingest", 8, "1 missing"), ("ingest", 10, "1 too many"), ("ingest", 9, "adds up"), ("prototype", 4, "")],
)
def test_render_marks_rows_that_do_not_add_up(stage: str, rows: int, mark: str) -> None:
    row = StageRow("a stage", stage, "f" * 64, 10, rows, 1, None, "")
    page = Page(render(dataclasses.replace(EMPTY, stages=(row,))))
    assert {word for word in ("1 missing", "1 too many", "adds up") if word in page.text} == ({mark} if mark else set())
    assert bool(page.all("span", "no")) == (mark.startswith("1 "))
    assert "reused" in page.text


def test_render_counts_rejected_rows_by_reason() -> None:
    table = rejected(*((f"i{n}", "undecodable") for n in range(7)), ("j", "too_large"))
    page = Page(render(dataclasses.replace(EMPTY, rejected=table)))
    assert "7 \N{MULTIPLICATION SIGN} undecodable in ingest: the bytes are not an image" in page.text
    assert "1 \N{MULTIPLICATION SIGN} too_large" in page.text
    assert "2 more." in page.text


def test_render_lists_all_settings_and_facts() -> None:
    page = Page(render(full_report()))
    for words in ("temperature0.2", "enginenull", "ipc[2]", "machine2 cores", "namedigits"):
        assert words in page.text.replace(" 0.2", "0.2")


def test_render_compares_images_and_bytes_with_the_train_split() -> None:
    page = Page(render(full_report()))
    assert "1,297train images, 1.0 MiB" in page.text.replace("\n", "")
    assert "324 \N{MULTIPLICATION SIGN}" in page.text  # 1,297 images against 4
    assert "1,024 \N{MULTIPLICATION SIGN}" in page.text  # a mebibyte against a kibibyte


def test_render_shows_how_many_captions_are_too_long_if_any_are() -> None:
    sentence = "3 of 1,297 captions are longer than the 77 tokens"
    assert f"{sentence}." in Page(render(dataclasses.replace(full_report(), too_long=sentence))).text
    assert "captions are longer" not in Page(render(full_report())).text


def test_render_shows_dropped_words_outliers_and_tsne() -> None:
    page = Page(render(full_report()))
    assert "digit 100 %" in page.text
    assert "grey 75 %" in page.text
    assert [a["alt"] for a in page.all("img")].count("outlier of class <0>") == 8
    assert "(8 of 12)" in page.text
    assert "with the centres of k-means without outlier removal" in page.text
    one = Page(render(dataclasses.replace(full_report(), tsne_plots=(tsne_plot(outliers=False),))))
    assert "This job removes no outliers" in one.text


def test_render_shows_finetuning_metrics_and_samples_by_epoch() -> None:
    page = Page(render(full_report()))
    for words in ("Training loss", "Learning rate", "epoch 2", "epoch 4", "1 more seed are left out"):
        assert words in page.text
    assert "Gradient norm" not in page.text
    many = [Sample(0, epoch, "a", png(epoch)) for epoch in range(1, 101)]
    text = Page(render(dataclasses.replace(EMPTY, samples=many))).text
    assert "epoch 100" in text
    assert "92 epochs in between are left out" in text


def test_render_shows_devices_memory_estimate_and_command() -> None:
    page = Page(render(full_report()))
    for words in (
        "2 x 1 CPU",
        "300 MiB",
        "2.0 s (1.50 \N{MULTIPLICATION SIGN})",
        "4.0/s",
        "vlcp-ray run jobs/digits.toml --set",
    ):
        assert words in page.text
    unknown = dataclasses.replace(full_report().stages[0], peak_memory=None)
    assert "not measured" in Page(render(dataclasses.replace(EMPTY, stages=(unknown,)))).text


def test_render_lists_published_figures_of_the_image_set() -> None:
    table = scores(trials("vlcp", 10, (0.5, 0.6), "ResNetAP-10"))
    names = [str(i) for i in range(10)]
    report = dataclasses.replace(EMPTY, scores=table, class_lists=["imagenette"], class_names=names)
    page = Page(render(report))
    assert "64.8 ± 3.6" in page.text
    assert "cannot be compared" not in page.text
    other = Page(render(dataclasses.replace(report, splits={"train": 9469, "val": 3925})))
    assert "They are of 12,894 train and 500 val images; this job has 9,469 and 3,925" in other.text
    assert "No figures are published" in Page(render(dataclasses.replace(EMPTY, scores=table))).text


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        (range(1, 9), [1, 2, 3, 4, 5, 6, 7, 8]),
        (range(1, 10), [1, 3, 5, 7, 9]),
        (range(2, 34, 2), [4, 8, 12, 16, 20, 24, 28, 32]),
        (range(1, 18), [2, 5, 8, 11, 14, 17]),
    ],
)
def test_samples_are_of_evenly_spaced_epochs_to_the_last(epochs: Sequence[int], shown: list[int]) -> None:
    view = _samples([Sample(3, epoch, "a", png(epoch)) for epoch in epochs])
    assert view == {
        "seed": 3,
        "epochs": shown,
        "rows": [{"name": "a", "images": [png(epoch) for epoch in shown]}],
        "more_seeds": 0,
        "more_epochs": len(epochs) - len(shown),
    }


def test_samples_are_of_the_first_seed_and_ten_classes() -> None:
    samples = [Sample(seed, epoch, f"c{c}", png(c)) for seed in (5, 1, 2) for epoch in (2, 4) for c in range(12)]
    view = _samples(samples[1:])  # class c0 has no image of epoch 2
    assert (view["seed"], view["epochs"], view["more_seeds"], view["more_epochs"]) == (5, [2, 4], 2, 0)
    assert [row["name"] for row in view["rows"]] == [f"c{c}" for c in range(1, 11)]
    early = _samples([samples[13], samples[0], samples[12]])
    assert early["rows"] == [{"name": "c1", "images": [None, png(1)]}, {"name": "c0", "images": [png(0), png(0)]}]
    assert _samples([]) == {"rows": [], "epochs": [], "seed": None, "more_seeds": 0, "more_epochs": 0}


def test_set_sizes_are_factors_of_the_train_split_by_ipc() -> None:
    sets = [
        dataclasses.replace(distilled(ipc=5), images=50, n_bytes=2000),
        dataclasses.replace(distilled(ipc=5, seed=1), images=50, n_bytes=9000),
        dataclasses.replace(distilled(ipc=1), images=10, n_bytes=0),
    ]
    report = dataclasses.replace(EMPTY, sets=sets, splits={"train": 400}, train_bytes=10_000)
    assert _set_sizes(report) == [
        {"ipc": 1, "images": 10, "fewer": 40, "n_bytes": 0, "smaller": None},
        {"ipc": 5, "images": 50, "fewer": 8, "n_bytes": 2000, "smaller": 5},
    ]
    assert [row["smaller"] for row in _set_sizes(dataclasses.replace(report, train_bytes=None))] == [None, None]
    assert _set_sizes(dataclasses.replace(report, splits={"val": 5})) == []


def test_rejected_rows_are_grouped_with_five_examples() -> None:
    table = rejected(*((f"i{n}", "undecodable") for n in range(6, -1, -1)), ("j", "unknown reason"))
    small, large = (_rejected(table, {"i1": png(1)})[i] for i in (1, 0))
    assert (large["stage"], large["reason"], large["count"]) == ("ingest", "undecodable", 7)
    assert [row["image_id"] for row in large["examples"]] == ["i0", "i1", "i2", "i3", "i4"]
    assert [row["image"] for row in large["examples"]] == [None, png(1), None, None, None]
    assert large["meaning"].startswith("the bytes are not an image")
    assert (small["reason"], small["meaning"], small["count"]) == ("unknown reason", "", 1)


def test_settings_are_json_values_by_section() -> None:
    nested = {
        "name": "x",
        "ipc": [1, 5],
        "root": "",
        "empty": {},
        "caption": {"prompt": "é", "source": "", "top": None},
    }
    assert _settings(nested) == {
        "job": {"name": "x", "ipc": "[1, 5]", "root": '""'},
        "caption": {"prompt": "é", "source": '""', "top": "null"},
    }
    assert _settings({"caption": {"flip": True}}) == {"caption": {"flip": "true"}}
    assert _settings({"a": {"b": ["é"]}}) == {"a": {"b": '["é"]'}}


def test_finetuning_charts_are_of_the_recorded_metrics() -> None:
    metrics = {
        0: [{"step": 1, "loss": 0.5, "learning_rate": 0.1}, {"step": 2, "loss": 0.25, "learning_rate": None}],
        1: [{"step": 1, "loss": 0.6}],
    }
    loss, rate = _finetuning_charts(metrics)
    assert (loss["title"], rate["title"]) == ("Training loss, mean of the epoch", "Learning rate")
    assert ">seed 1<" in loss["chart"]
    assert ">seed 1<" not in rate["chart"]  # a curve without points is left out
    assert "Learning rate by step" in rate["chart"]
    assert _finetuning_charts({}) == []


def test_tsne_view_has_all_images_beside_those_without_outliers() -> None:
    plot = dataclasses.replace(tsne_plot(outliers=True), total=50)
    view = _tsne_view(plot)
    assert (view["name"], view["shown"], view["total"]) == ("class <0>", 30, 50)
    before, after = re.findall(r'<g class="outliers"(.*?)<g class="centres"', view["chart"], re.DOTALL)
    assert (before.count("<use"), after.count("<use")) == (10, 0)
    assert view["chart"].index("all images") < view["chart"].index("outliers removed")
    assert len(re.findall('<g class="centres"', _tsne_view(tsne_plot(outliers=False))["chart"])) == 1


def test_render_headline_without_vlcp_or_scores_says_what_there_is() -> None:
    compared = dataclasses.replace(EMPTY, scores=scores(trials("random", 1, (0.5,))))
    assert "Scores of the compared methods" in Page(render(compared)).text
    few = dataclasses.replace(EMPTY, sets=(distilled(), distilled(seed=1)))
    assert "8 distilled images, not evaluated yet" in Page(render(few)).text


def test_render_shows_coverage_and_the_nearest_real_images() -> None:
    page = Page(render(full_report()))
    assert "random237.5 ± 17.7" in page.text  # two sets, 25 and 50 % of the images
    assert "of 4 pairs the 2 nearest are shown, the nearest first" in page.text
    alts = [image["alt"] for image in page.all("img")]
    first = alts.index("nearest training image, real <7>")
    assert alts[first - 1 : first + 3] == [
        "synthetic class <0>",
        "nearest training image, real <7>",
        "synthetic class <1>",
        "nearest training image, real <8>",
    ]
    assert "0.12 class <0>" in page.text
    assert "0.250 of black to white class <1>" in page.text
    without = Page(render(dataclasses.replace(full_report(), neighbours=())))
    assert "pairs the" not in without.text
    assert "coverage" in sections(without)


def test_render_opens_the_largest_set_of_the_first_seed() -> None:
    """Of the tabs the one with the most images per class is checked, and of equal ones that of the smallest seed."""
    sets = (distilled(ipc=1), distilled(ipc=2, seed=4), distilled(ipc=2, seed=3))
    inputs = Page(render(dataclasses.replace(EMPTY, sets=sets))).all("input")
    assert ["checked" in attributes for attributes in inputs] == [False, False, True]
