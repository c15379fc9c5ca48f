"""Tests of `vlcp-ray bench`: what it prints and the rates that it saves."""

from pathlib import Path

import pytest

from tests.bench.test_run import JOB, SCALE
from vlcp_ray.bench import command
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates, load_rates, save_rates
from vlcp_ray.store.artifact import Store


def test_bench_of_one_work_keeps_the_rates_of_an_earlier_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Rates(
        device=CPU, source="now", peak=2.0, overheads=Overheads(plan=1.5), rates={"ingest": Rate(per_second=20.0)}
    )
    monkeypatch.setattr(command, "measure_overheads", lambda scale: Overheads(plan=1.5))  # tested in engine/
    monkeypatch.setattr(command, "measured", lambda *_: iter([*measured.rates.items(), (CPU, measured)]))  # in test_run
    store = Store.at(str(tmp_path))
    earlier = {"caption": Rate(per_second=5.0), "ingest": Rate(per_second=0.001)}
    save_rates(store, Rates(device=CPU, source="earlier", peak=1.0, answer_tokens=33, rates=earlier))
    assert command.bench(JOB, store, set(), SCALE, ["ingest"], random=False) == 0
    rates = load_rates(store, CPU)
    assert rates is not None
    assert rates.rates["caption"] == earlier["caption"]
    assert rates.rates["ingest"] == measured.rates["ingest"]
    assert (rates.answer_tokens, rates.overheads.plan) == (33, 1.5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["bench", "Ray", "ingest"]
    assert lines[3].endswith(f"{tmp_path}/rates/cpu.json")
