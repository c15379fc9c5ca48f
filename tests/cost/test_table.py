"""Tests of the table of costs that `plan` prints."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cost.test_estimate import AWS, DIGITS, DIGITS_IMAGES, IMAGENET, IMAGENET_IMAGES, measured_rates
from vlcp_ray.config import Job
from vlcp_ray.cost.estimate import StageCost, estimate, seconds_by_stage
from vlcp_ray.cost.rates import CPU, Rates, load_rates, published, save_rates
from vlcp_ray.cost.requirements import expected_images
from vlcp_ray.cost.table import cost_lines, counted_images, expected_seconds, format_clock, table, this_machine
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Prices, Scale, count_cores, derive
from vlcp_ray.settings import build
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.store.artifact import Store

INGEST = StageCost("ingest", 1500, 0.0, 9.0, 0.0, 0.5, 0.25, "measured")
GENERATE = StageCost("generate", 12, 2e15, 7200.0, 1.5, 0.25, 3.0, "published")
UNKNOWN = StageCost("finetune", 8, math.nan, math.nan, math.nan, math.nan, math.nan, "assumed")
COUNTS = {"rows_in": 12, "rows": 12, "rejected": 0, "seconds": 1.0}
UNSEEN = build(Job, {"name": "x", "ingest": {"source": "/data/unseen"}}, "x")


def rows_of(*costs: StageCost, **arguments: Any) -> list[list[str]]:
    """The words of each line of a table, without disk, measured seconds and prices unless given."""
    return [line.split() for line in table(costs, **{"disk": {}, "measured": {}, "prices": None} | arguments)]


@pytest.fixture
def machine_with_l4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of NVIDIA's driver on a machine with two L4."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\necho 'NVIDIA L4, 23034'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)


def test_table_adds_up_the_stages_and_marks_assumed_times() -> None:
    prices = Prices(currency="EUR")
    assert rows_of(INGEST, GENERATE, disk={"ingest": 2.0}, measured={"ingest": 8.0}, prices=prices) == [
        ["stage", "images", "written", "work", "GPU-hours", "time", "measured", "EUR", "rates"],
        ["ingest", "1,500", "2.0", "GiB", "0.00", "9.0", "s", "8.0", "s", "0.25", "measured"],
        ["generate", "12", "2.0", "PFLOP", "1.50", "~2:00:00", "3.00", "published"],
        ["all", "2.0", "GiB", "2.0", "PFLOP", "1.50", "~2:00:09", "3.25", "published"],
    ]


def test_table_shows_the_measured_sum_only_where_every_stage_was_measured() -> None:
    assert rows_of(INGEST, GENERATE, measured={"ingest": 8.0, "generate": 90.0})[-1][-2] == "1:38"
    assert rows_of(INGEST, GENERATE, measured={"ingest": 8.0})[-1][-2] == "~2:00:09"
    assert rows_of(INGEST)[-1] == ["all", "0.50", "9.0", "s", "measured"]


def test_table_of_a_job_without_gpus_has_cpu_hours() -> None:
    rows = rows_of(INGEST, StageCost("evaluate", 3, 1e12, 60.0, 0.0, 0.25, 0.0, "measured"))
    assert rows[0] == ["stage", "images", "written", "work", "CPU-hours", "time", "rates"]
    assert [row[-3] for row in rows[1:]] == ["9.0", "0.25", "0.75"]


def test_table_of_an_unknown_stage_has_no_hours_and_no_sum() -> None:
    rows = rows_of(INGEST, UNKNOWN, prices=Prices())
    assert rows[2] == ["finetune", "8", "unknown", "unknown"]
    assert rows[3] == ["all", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0.0, []),
        (9e11, ["900.0", "GFLOP"]),
        (1e12, ["1.0", "TFLOP"]),
        (1.2e12, ["1.2", "TFLOP"]),
        (1e15, ["1.0", "PFLOP"]),
        (1.2e15, ["1.2", "PFLOP"]),
        (1e18, ["1.0", "EFLOP"]),
        (1.2345e21, ["1,234.5", "EFLOP"]),
    ],
)
def test_table_work_is_in_the_largest_unit_that_fits(flops: float, text: list[str]) -> None:
    cost = StageCost("x", 1, flops, 60.0, 0.0, 0.5, 0.0, "measured")
    assert rows_of(cost)[1] == ["x", "1", *text, "0.50", "1:00", "measured"]


def test_cost_lines_use_the_rates_that_bench_saved(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert load_rates(store, CPU) is None
    before = list(cost_lines(DIGITS, graph, store, graph(DIGITS), store.manifests(graph(DIGITS)), derive(2, 0)))
    assert "~" in before[2]
    save_rates(store, measured_rates())
    assert load_rates(store, CPU) == measured_rates()
    after = list(cost_lines(DIGITS, graph, store, graph(DIGITS), store.manifests(graph(DIGITS)), derive(2, 0)))
    assert not any("~" in line for line in after)
    assert "rates       measured: here" in after


def test_cost_lines_of_a_large_job_without_gpus_say_that_it_needs_some(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), graph(IMAGENET)
    header, *rows = list(cost_lines(IMAGENET, graph, store, steps, {}, derive(2, 0)))[1:]
    table = rows[: 1 + next(number for number, row in enumerate(rows) if row.startswith("all "))]
    end = header.index("time") + len("time")
    times = [row[:end].rsplit("  ", 1)[-1].strip() for row in table]
    assert f"needs a GPU: {times[-1].lstrip('~')} here" in "\n".join(rows)
    assert all(row[end : end + 2] == "  " for row in table)  # no column is wider than its header
    assert "years" in times[-1]
    for scale, job in ((derive(2, 0), DIGITS), (AWS, IMAGENET)):
        assert not [line for line in cost_lines(job, graph, store, graph(job), {}, scale) if "needs a GPU" in line]


def test_cost_lines_show_measured_seconds_beside_the_estimate(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), graph(DIGITS)
    for step in steps:
        facts = {"seconds": 30.0, "splits": {"train": 1297, "val": 500}, "class_names": list("0123456789")}
        facts |= {"rows_in": 1, "rows": 1, "rejected": 0}
        if step.stage in ("ingest", "generate"):
            store.artifact(step).complete(facts)
    lines = list(cost_lines(DIGITS, graph, store, steps, store.manifests(steps), derive(2, 0)))
    rows = {line.split()[0]: line.split() for line in lines[1:] if line}
    assert rows["stage"][-2:] == ["measured", "rates"]
    assert rows["ingest"][-2] == "0:30"
    assert rows["generate"][-2] == "1:00"  # two sets, each with its share
    assert len(rows["pair"]) < len(rows["generate"])


def test_cost_lines_of_a_scale_with_unnamed_or_unrated_gpus_name_the_setting(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for gpu, message in (("", 'name their kind, e.g. gpu = "L4"'), ("GTX 9", "GPU 'GTX 9'; known: T4")):
        (line,) = cost_lines(IMAGENET, graph, store, graph(IMAGENET), {}, AWS.model_copy(update={"gpu": gpu}))
        assert line.startswith("cost        unknown: gpu: ")
        assert message in line
    with pytest.raises(ValueError, match="no pool has num_gpus"):
        Scale(gpu="L4")


def test_cost_lines_leave_out_the_disk_of_an_uncounted_model(tmp_path: Path) -> None:
    job = DIGITS.model_copy(update={"base_model": "some/model"})
    lines = list(cost_lines(job, graph, Store.at(str(tmp_path)), graph(job), {}, derive(2, 0)))
    rows = {line.split()[0]: line for line in lines[2:]}
    assert "iB" in rows["ingest"]
    assert "iB" in rows["all"]
    assert "iB" not in rows["finetune"]


def test_cost_lines_without_the_number_of_images_are_none(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert list(cost_lines(UNSEEN, graph, store, graph(UNSEEN), {}, derive(2, 0))) == []
    assert counted_images(UNSEEN, graph(UNSEEN), store.manifests(graph(UNSEEN))) is None
    assert expected_seconds(UNSEEN, store, graph(UNSEEN), {}, derive(2, 0)) == {}


@pytest.mark.parametrize("gpu", ["", "GTX 9"])
def test_expected_seconds_of_unnamed_or_unrated_gpus_are_unknown(gpu: str, tmp_path: Path) -> None:
    scale, steps = AWS.model_copy(update={"gpu": gpu}), graph(IMAGENET)
    assert expected_seconds(IMAGENET, Store.at(str(tmp_path)), steps, {}, scale) == {}


def test_expected_seconds_are_those_of_the_estimate(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    on_cpus = seconds_by_stage(estimate(DIGITS, graph(DIGITS), derive(2, 0), DIGITS_IMAGES))
    assert expected_seconds(DIGITS, store, graph(DIGITS), {}, derive(2, 0)) == on_cpus
    steps, l40s = graph(IMAGENET), published("L40S")
    on_gpus = seconds_by_stage(estimate(IMAGENET, steps, AWS, IMAGENET_IMAGES, l40s))
    assert expected_seconds(IMAGENET, store, steps, {}, AWS) == on_gpus
    save_rates(store, l40s.model_copy(update={"peak": l40s.peak / 2}))
    assert expected_seconds(IMAGENET, store, steps, {}, AWS)["generate"] > 1.9 * on_gpus["generate"]
    save_rates(store, measured_rates())
    assert expected_seconds(DIGITS, store, graph(DIGITS), {}, derive(2, 0)) != on_cpus


@pytest.mark.usefixtures("machine_with_l4")
def test_expected_seconds_on_gpus_without_a_name_are_those_of_this_machine(tmp_path: Path) -> None:
    assert this_machine() == (derive(count_cores(), 2, 23034 / 1024), "L4")
    store, steps, scale = Store.at(str(tmp_path)), graph(DIGITS), derive(8, 2)
    expected = seconds_by_stage(estimate(DIGITS, steps, scale, DIGITS_IMAGES, published("L4")))
    assert expected_seconds(DIGITS, store, steps, {}, scale) == expected
    # Pools without GPUs do not use the rates of this machine's GPUs.
    on_cpus = expected_seconds(DIGITS, store, steps, {}, derive(2, 0))
    save_rates(store, Rates(device="L4", source="x", peak=1.0, answer_tokens=1.0))
    assert expected_seconds(DIGITS, store, steps, {}, derive(2, 0)) == on_cpus


def test_this_machine_without_gpus_has_cpus_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_machine() == (derive(count_cores(), 0), "")


def test_counted_images_are_those_of_ingest_or_the_expected_ones(tmp_path: Path) -> None:
    store, expected = Store.at(str(tmp_path)), expected_images(DIGITS)
    assert expected is not None
    assert counted_images(DIGITS, graph(DIGITS), store.manifests(graph(DIGITS))) == expected
    for job, gib in ((DIGITS, expected.gib), (UNSEEN, 1.0)):
        artifact = store.artifact(graph(job)[0])
        artifact.complete(COUNTS | {"splits": {"train": 7, "val": 5}, "class_names": ["a", "b"]})
        assert counted_images(job, graph(job), store.manifests(graph(job))) == Expect(
            train=7, val=5, classes=2, gib=gib
        )


def test_counted_images_of_a_split_without_images_are_one(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for job, splits in ((DIGITS, {"val": 5}), (UNSEEN, {"train": 7})):
        store.artifact(graph(job)[0]).complete(COUNTS | {"splits": splits, "class_names": ["a", "b"]})
        counted = counted_images(job, graph(job), store.manifests(graph(job)))
        assert counted is not None
        assert (counted.train, counted.val) == (splits.get("train", 1), splits.get("val", 1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10.0, "0:10"),
        (59.6, "1:00"),
        (125.0, "2:05"),
        (3599.0, "59:59"),
        (3600.0, "1:00:00"),
        (12_000.0, "3:20:00"),
        (359_999.0, "99:59:59"),
        (360_000.0, "100 h"),
        (863_000.0, "240 h"),
        (864_000.0, "10 days"),
        (42_386_400.0, "491 days"),
        (86_400_000.0, "3 years"),
    ],
)
def test_format_clock_shows_tenths_minutes_and_hours(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text
