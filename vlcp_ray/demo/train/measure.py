"""Measure the packaged base models on the validation digits: `python -m vlcp_ray.demo.train.measure`."""

import argparse
from pathlib import Path


def main() -> None:
    """Print for each property the share of captions with the right word, and the error of the VAE."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    import torch
    from diffusers import AutoencoderKL
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vlcp_ray.demo import digits
    from vlcp_ray.demo.train import llava
    from vlcp_ray.demo.train import vae as vae_training

    demo = Path(__file__).parents[1]
    model = LlavaForConditionalGeneration.from_pretrained(demo / "llava", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(demo / "llava")
    images, labels = digits.load("val")
    captions = llava.answers(model, processor, images, [digits.CLASS_NAMES[label] for label in labels])
    agreement, chance = llava.agreement(captions, images), llava.chance(images)
    for name, share in agreement.items():
        print(f"{name:<10} {share:6.1%} of {len(images)} val digits, chance {chance[name]:6.1%}")
    vae = AutoencoderKL.from_pretrained(demo / "stable_diffusion", subfolder="vae", low_cpu_mem_usage=False)
    print(f"VAE        mean squared error {vae_training.mean_squared_error(vae, images):.4f} on val, pixels in 0 .. 1")


if __name__ == "__main__":
    main()
