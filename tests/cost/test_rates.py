"""Tests of the rates of devices: published, measured, and the names of GPUs."""

from pathlib import Path

import pytest

from vlcp_ray.cost.rates import CPU, Rate, Rates, load_rates, published, save_rates
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.stage import Work
from vlcp_ray.store.artifact import Store


def test_published_rates_of_an_unknown_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"GPU 'GTX 9'; known: T4.*measure: vlcp-ray bench"):
        published("GTX 9")
    assert published("L4").peak == 121e12
    assert published(CPU).source.startswith("assumed")


def test_load_rates_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rates").mkdir()
    content = Rates(device=CPU, source="x", peak=1.0).model_dump_json().replace('"peak"', '"top"')
    (tmp_path / "rates" / "cpu.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cpu\.json"):
        load_rates(Store.at(str(tmp_path)), CPU)


def test_published_rates_are_shares_of_the_peak_of_the_device() -> None:
    work = Work("w", "generate", "", on_cpu=(0.5, 4.0), on_gpu=(0.25, 5.0))
    assert published(CPU).rate(work, None) == Rate(per_second=0.5 * 60e9, start=4.0, basis="assumed")
    assert published("A100").rate(work, None) == Rate(per_second=0.25 * 312e12, start=5.0, basis="assumed")
    assert published("A100").bandwidth == 0.8 * 1555e9
    assert published(CPU).bandwidth == 10e9
    assert Rates(device="GTX 9", source="x", peak=1.0).bandwidth == 0.8 * 500e9
    images = Work("i", "ingest", "", unit="images", images_per_second=100.0)
    assert published("A100").rate(images, None) == Rate(per_second=100.0, basis="assumed")
    assert published("L40S").source == "published: L40S 362 TFLOPS (NVIDIA), shares of it as the stages cite or assume"


def test_measured_rates_are_those_of_the_same_model_only() -> None:
    work, other = Work("w", "generate", ""), Work("x", "generate", "")
    rates = Rates(device=CPU, source="x", peak=1e9, rates={"w": Rate(per_second=7.0, start=2.0, model=3)})
    assert rates.rate(work, 3) == Rate(per_second=7.0, start=2.0, model=3)
    assumed = Rate(per_second=1e9, basis="assumed")
    assert rates.rate(work, 4) == rates.rate(other, 3) == rates.rate(other, None) == assumed


def test_save_rates_returns_the_path_that_load_rates_reads(tmp_path: Path) -> None:
    store, rates = Store.at(str(tmp_path)), Rates(device="L4", source="x", peak=1.0)
    path = save_rates(store, rates)
    assert path == str(tmp_path / "rates" / "L4.json")
    assert Rates.model_validate_json(Path(path).read_text()) == load_rates(store, "L4") == rates
    assert load_rates(store, CPU) is None
