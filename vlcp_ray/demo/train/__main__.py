"""Train the tiny base models again: `python -m vlcp_ray.demo.train --out DIR`."""

import argparse
import shutil
import time
from pathlib import Path

DEMO = Path(__file__).parents[1]


def main() -> None:
    """Train the models, and print their measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=DEMO,
        help="folder of llava/, stable_diffusion/ and dit/, by default the package's",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; results differ in their last digits")
    parser.add_argument("--only", choices=("llava", "stable_diffusion", "dit"), help="train one of the models")
    chosen = parser.parse_args()
    _set_threads(chosen.threads)
    start = time.perf_counter()
    if chosen.only in (None, "llava"):
        train_llava(chosen.out / "llava")
    if chosen.only in (None, "stable_diffusion"):
        train_stable_diffusion(chosen.out / "stable_diffusion")
    if chosen.only in (None, "dit"):
        train_dit(chosen.out / "dit", chosen.out / "stable_diffusion")
    print(f"trained in {time.perf_counter() - start:.0f} s")


def train_llava(folder: Path) -> None:
    """Train and write the captioning model; print the share of right words for each property, and by chance."""
    from vlcp_ray.demo import digits
    from vlcp_ray.demo.train import llava, tokens

    tokenizer = tokens.llava_tokenizer()
    processor = llava.build_processor(tokenizer)
    model = llava.train(tokenizer)
    images, labels = digits.load("val")
    captions = llava.answers(model, processor, images, [digits.CLASS_NAMES[label] for label in labels])
    agreement, chance = llava.agreement(captions, images), llava.chance(images)
    for name, share in agreement.items():
        print(f"llava: {name} agrees with {share:.3f} of the validation digits, chance {chance[name]:.3f}")
    shutil.rmtree(folder, ignore_errors=True)
    llava.save(model, processor, folder)


def train_stable_diffusion(folder: Path) -> None:
    """Train and write VAE, text encoder and UNet on printed glyphs; print the error of the VAE on other glyphs."""
    from vlcp_ray.demo.train import glyphs, tokens
    from vlcp_ray.demo.train import unet as unet_training
    from vlcp_ray.demo.train import vae as vae_training

    shutil.rmtree(folder, ignore_errors=True)
    images, names = glyphs.bank(glyphs.COUNT, seed=0)
    vae = vae_training.train(images)
    other_images, _ = glyphs.bank(500, seed=1)
    error = vae_training.mean_squared_error(vae, other_images)
    print(f"vae: mean squared error {error:.5f} on other glyphs, scaling factor {vae.config.scaling_factor}")
    tokenizer = tokens.clip_tokenizer(folder / "tokenizer")
    unet, text_encoder = unet_training.train(vae, tokenizer, images, names)
    unet_training.save(folder, vae, unet, text_encoder, tokenizer)


def train_dit(folder: Path, stable_diffusion: Path) -> None:
    """Train and write the DiT on printed glyphs, with the VAE of the Stable Diffusion in its folder."""
    import torch
    from diffusers import AutoencoderKL

    from vlcp_ray.demo.train import dit, glyphs

    images, names = glyphs.bank(glyphs.COUNT, seed=0)
    vae = AutoencoderKL.from_pretrained(
        stable_diffusion, subfolder="vae", dtype=torch.float32, low_cpu_mem_usage=False
    ).eval()
    network = dit.train(vae, images, names)
    shutil.rmtree(folder, ignore_errors=True)
    dit.save(folder, vae, network)


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
