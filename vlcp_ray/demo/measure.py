"""One command that says what the packaged base models reach on val: `python -m vlcp_ray.demo.measure`."""

from pathlib import Path


def main() -> None:
    """Prints per property the share of val digits that the tiny LLaVA describes rightly, and the VAE's error."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vlcp_ray.demo import digits, train_llava, train_vae

    here = Path(__file__).parent
    model = LlavaForConditionalGeneration.from_pretrained(here / "llava", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(here / "llava")
    images, labels = digits.load("val")
    said = train_llava.answers(model, processor, images, [digits.CLASS_NAMES[label] for label in labels])
    reached, guessed = train_llava.agreement(said, images), train_llava.chance(images)
    for name, share in reached.items():
        print(f"{name:<10} {share:6.1%} of {len(images)} val digits, chance {guessed[name]:6.1%}")
    vae = AutoencoderKL.from_pretrained(here / "stable_diffusion", subfolder="vae", low_cpu_mem_usage=False)
    print(f"VAE        mean squared error {train_vae.val_mse(vae):.4f} on val, pixels in 0 .. 1")


if __name__ == "__main__":
    main()
