"""One command that trains both tiny base models again: `python -m vlcp_ray.demo.train --out DIR`."""

import argparse
import shutil
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Reads --out, --threads and --only, trains, and prints what the models reach on the validation digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets llava/ and stable_diffusion/")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (results differ in the last digits)")
    parser.add_argument("--only", choices=("llava", "stable_diffusion"), help="train one of the two models")
    chosen = parser.parse_args()
    _use_threads(chosen.threads)
    began = time.perf_counter()
    if chosen.only != "stable_diffusion":
        train_llava(chosen.out / "llava")
    if chosen.only != "llava":
        train_stable_diffusion(chosen.out / "stable_diffusion")
    print(f"trained in {time.perf_counter() - began:.0f} s")


def train_llava(folder: Path) -> None:
    """Trains and writes the describing model; prints per property its held-out agreement and that of chance."""
    from vlcp_ray.demo import digits, tokens, train_llava

    tokenizer = tokens.llava_tokenizer()
    processor = train_llava.build_processor(tokenizer)
    model = train_llava.train(tokenizer)
    images, labels = digits.load("val")
    descriptions = train_llava.answers(model, processor, images, [digits.CLASS_NAMES[label] for label in labels])
    reached, guessed = train_llava.agreement(descriptions, images), train_llava.chance(images)
    for name, share in reached.items():
        print(f"llava: {name} agrees with {share:.3f} of the validation digits, chance {guessed[name]:.3f}")
    shutil.rmtree(folder, ignore_errors=True)
    train_llava.save(model, processor, folder)


def train_stable_diffusion(folder: Path) -> None:
    """Trains and writes autoencoder, text encoder and UNet; prints the autoencoder's validation error."""
    from vlcp_ray.demo import tokens, train_unet, train_vae

    shutil.rmtree(folder, ignore_errors=True)
    vae = train_vae.train()
    print(f"vae: validation MSE {train_vae.val_mse(vae):.5f}, scaling factor {vae.config.scaling_factor}")
    tokenizer = tokens.clip_tokenizer(folder / "tokenizer")
    unet, text_encoder = train_unet.train(vae, tokenizer)
    train_unet.save(folder, vae, unet, text_encoder, tokenizer)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
