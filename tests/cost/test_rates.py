"""Tests of the rates of devices: published, measured, and the names of GPUs."""

from pathlib import Path

import pytest

from vlcp_ray.cost.rates import CPU, Rates, gpu_kind, load_rates, published
from vlcp_ray.settings import ConfigError
from vlcp_ray.store.artifact import Store


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("Tesla T4", "T4"), ("X", "X")],
)
def test_kind_of_a_gpu_name_is_its_short_name(name: str, kind: str) -> None:
    assert gpu_kind(name) == kind


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
