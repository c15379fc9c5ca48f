"""Tests of the table of costs that `plan` prints."""

from pathlib import Path

import pytest

from tests.cost.test_estimate import AWS, DIGITS, IMAGENET, measured_rates
from vlcp_ray.cost.rates import CPU, load_rates, save_rates
from vlcp_ray.cost.table import cost_lines, format_clock
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Scale, derive
from vlcp_ray.store.artifact import Store


def test_cost_lines_use_the_rates_that_bench_saved(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert load_rates(store, CPU) is None
    before = list(cost_lines(DIGITS, store, graph(DIGITS), store.manifests(graph(DIGITS)), derive(2, 0)))
    assert "~" in before[2]
    save_rates(store, measured_rates())
    assert load_rates(store, CPU) == measured_rates()
    after = list(cost_lines(DIGITS, store, graph(DIGITS), store.manifests(graph(DIGITS)), derive(2, 0)))
    assert not any("~" in line for line in after)
    assert after[-1] == "rates       measured: here"


def test_cost_lines_show_measured_seconds_beside_the_estimate(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), graph(DIGITS)
    for step in steps:
        facts = {"seconds": 30.0, "splits": {"train": 1297, "val": 500}, "class_names": list("0123456789")}
        if step.stage in ("ingest", "generate"):
            store.artifact(step).complete(facts)
    lines = list(cost_lines(DIGITS, store, steps, store.manifests(steps), derive(2, 0)))
    rows = {line.split()[0]: line.split() for line in lines[1:] if line}
    assert rows["stage"][-1] == "measured"
    assert rows["ingest"][-1] == "0:30"
    assert rows["generate"][-1] == "1:00"  # two sets, each with its share
    assert len(rows["pair"]) < len(rows["generate"])


def test_cost_lines_of_a_scale_with_unnamed_or_unrated_gpus_name_the_setting(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for gpu, message in (("", 'name their kind, e.g. gpu = "L4"'), ("GTX 9", "GPU 'GTX 9'; known: T4")):
        (line,) = cost_lines(IMAGENET, store, graph(IMAGENET), {}, AWS.model_copy(update={"gpu": gpu}))
        assert line.startswith("cost        unknown: gpu: ")
        assert message in line
    with pytest.raises(ValueError, match="no pool has num_gpus"):
        Scale(gpu="L4")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1:00"),
        (125.0, "2:05"),
        (12_000.0, "3:20:00"),
        (11_682_000.0, "3,245 h"),
    ],
)
def test_format_clock_shows_tenths_minutes_and_hours(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text
