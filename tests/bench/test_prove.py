"""Whether the script for the real models runs whole at the tiny size: folders of random weights, every kind of work."""

from pathlib import Path

import pytest

from vlcp_ray.bench import prove
from vlcp_ray.bench.random_models import llava, stable_diffusion
from vlcp_ray.needs import parameters


@pytest.mark.filterwarnings("ignore")  # of the libraries that write the folders
def test_the_tiny_models_are_encoded_trained_and_drawn_with(tmp_path: Path) -> None:
    model = stable_diffusion("tiny", tmp_path)
    assert parameters(model, "unet") == parameters("demo/stable_diffusion", "unet")
    encoded = prove.encode(model, 32)
    assert (encoded["latent"], encoded["train_moments"], encoded["finite"]) == ([1, 4, 4, 4], [1, 2, 8, 4, 4], True)
    tuned = prove.finetune(model, 32)
    assert tuned["moved"] > 0
    assert set(tuned["dtypes"]) == {"weight", "moving average", "exp_avg", "exp_avg_sq"}
    assert prove.generate(model, 32)["image"] == [32, 32, 3]
    assert prove.most_memory() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_a_llava_of_random_weights_describes_through_transformers(tmp_path: Path) -> None:
    from PIL import Image

    from vlcp_ray.config import Caption
    from vlcp_ray.models.captioner import load_captioner

    settings = Caption(engine="transformers", model=llava("tiny", tmp_path), max_tokens=8, max_model_len=128)
    (said,) = load_captioner(settings).describe([Image.new("RGB", (40, 30))], ["what is it"], [0])
    assert isinstance(said, str)
