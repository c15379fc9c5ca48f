"""Whether a stage is let go when its devices are there, and refused with the cure where they never will be."""

import pytest

from vlcp_ray.flow import devices
from vlcp_ray.scale import Pool, Scale

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of its own settings


def test_what_fits_begins_at_once(ray_session: None) -> None:
    devices.wait_for(Scale(finetune=Pool(num_workers=2)), ("finetune",), "finetune")


def test_a_pool_that_grows_begins_with_its_fewest(ray_session: None) -> None:
    devices.wait_for(Scale(finetune=Pool(num_workers=4096, min_workers=1)), ("finetune",), "finetune")
    devices.wait_for(Scale(caption=Pool(num_workers=4096)), ("caption",), "pair")


@pytest.mark.parametrize(
    "pool", [Pool(num_gpus=1), Pool(num_cpus=4096), Pool(num_workers=4096)], ids=["gpu", "cpus", "ranks"]
)
def test_on_one_machine_nothing_is_waited_for(ray_session: None, monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ValueError, match=r"finetune: the cluster has .* CPU, 0 GPU on one machine, and the stage needs "
    ):
        devices.wait_for(Scale(finetune=pool), ("finetune",), "finetune")


def test_patience_ends_with_a_word_on_what_to_do(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(devices, "_LOOK", 0.05)
    scale = Scale(patience=0.2, generate=Pool(num_gpus=1))
    with pytest.raises(ValueError, match=r"nothing came in 0 s. Add machines, raise patience"):
        devices.wait_for(scale, ("generate",), "generate")
    assert "waits for generate 1 x 1 CPU 1 GPU, batch 32; there are" in capsys.readouterr().out


def test_the_scale_is_told_pool_by_pool(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    devices.tell(Scale(encode=Pool(num_workers=3, min_workers=1, num_gpus=0.2)), ("caption", "encode", "caption"))
    told = " ".join(capsys.readouterr().out.replace("scale", "").split())
    assert told == "caption 1 x 1 CPU, batch 32; encode 1 to 3 x 1 CPU 0.2 GPU, batch 32"
