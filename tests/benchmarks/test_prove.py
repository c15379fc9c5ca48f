"""Tests of the check of real models, at the tiny size: folders of random weights, and every kind of work."""

from pathlib import Path

import pytest

from tests.benchmarks import prove
from vlcp_ray.bench.measure import peak_gib
from vlcp_ray.bench.random_models import llava, stable_diffusion
from vlcp_ray.models.pretrained import count_parameters


@pytest.mark.filterwarnings("ignore")  # of the libraries that write the folders
def test_encode_finetune_and_generate_run_with_tiny_models(tmp_path: Path) -> None:
    model = stable_diffusion("tiny", tmp_path)
    assert count_parameters(model, "unet") == count_parameters("demo/stable_diffusion", "unet")
    encoded = prove.encode(model, 32)
    assert (encoded["latent"], encoded["train_moments"], encoded["finite"]) == ([1, 4, 4, 4], [1, 2, 8, 4, 4], True)
    trained = prove.finetune(model, 32)
    assert trained["moved"] > 0
    assert set(trained["dtypes"]) == {"weight", "moving average", "exp_avg", "exp_avg_sq"}
    assert prove.generate(model, 32)["image"] == [32, 32, 3]
    assert peak_gib() > 0.1


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
def test_prove_runs_a_process_and_compares_with_the_forecast(tmp_path: Path) -> None:
    (result,) = prove.prove("tiny", tmp_path, ["generate"])
    assert (result["work"], result["image"]) == ("generate", [32, 32, 3])
    assert 0 < result["forecast_gib"] < 0.1


@pytest.mark.filterwarnings("ignore")
def test_llava_with_random_weights_captions_through_transformers(tmp_path: Path) -> None:
    from PIL import Image

    from vlcp_ray.config import Caption
    from vlcp_ray.models.llava import load_captioner

    settings = Caption(engine="transformers", model=llava("tiny", tmp_path), max_tokens=8, max_model_len=128)
    (caption,) = load_captioner(settings).caption([Image.new("RGB", (40, 30))], ["what is it"], [0])
    assert isinstance(caption, str)
