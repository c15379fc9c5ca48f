"""Build Stable Diffusions and a DiT with random weights in the real formats, small enough to load in a second."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16


Family = Literal["1", "2", "xl"]


def tokenizer(**changes: object) -> CLIPTokenizer:
    """Build a CLIP tokenizer without merges: every character is a token, so 80 letters are more than 77 ids."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, **changes)


def text_encoder(words: CLIPTokenizer, kind: Any = CLIPTextModel, **changes: object) -> Any:
    settings = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return kind(CLIPTextConfig(**settings | changes))


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    )


def unet(**changes: object) -> UNet2DConditionModel:
    settings = {
        "sample_size": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (WIDTH, 2 * WIDTH),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | changes)


def scheduler(**changes: object) -> PNDMScheduler:
    """Build the scheduler of Stable Diffusion v1-5."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return PNDMScheduler(**(settings | changes))


def _parts(family: Family) -> dict[str, Any]:
    """Build the parts in which the families differ, as their published models have them."""
    if family == "1":
        words = tokenizer()
        return {"text_encoder": text_encoder(words), "tokenizer": words, "unet": unet(), "scheduler": scheduler()}
    others = tokenizer(pad_token="!")  # the padding of OpenCLIP
    if family == "2":  # OpenCLIP's text encoder, linear projections in the UNet, which predicts the velocity
        encoder = text_encoder(others, hidden_act="gelu", num_attention_heads=4)
        network = unet(use_linear_projection=True, attention_head_dim=(2, 4))
        schedule = scheduler(prediction_type="v_prediction")
        return {"text_encoder": encoder, "tokenizer": others, "unet": network, "scheduler": schedule}
    words, pooled, size = tokenizer(), 12, 4
    network = unet(
        use_linear_projection=True,
        cross_attention_dim=WIDTH + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=size,
        projection_class_embeddings_input_dim=pooled + 6 * size,
    )
    wide = {"hidden_size": 24, "num_attention_heads": 4, "hidden_act": "gelu", "projection_dim": pooled}
    return {
        "text_encoder": text_encoder(words),
        "tokenizer": words,
        "text_encoder_2": text_encoder(others, CLIPTextModelWithProjection, **wide),
        "tokenizer_2": others,
        "unet": network,
        "scheduler": EulerDiscreteScheduler.from_config(dict(scheduler().config), timestep_spacing="leading"),
    }


def build_stable_diffusion(folder: Path, family: Family = "1") -> Path:
    """Write the pipeline's folder: 32 px images, (4, 4, 4) latents, scaling factor 0.5, 77 ids per slice."""
    torch.set_num_threads(1)  # measured: on a busy machine several threads make models this small 10 times slower
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder, parts = vae(), _parts(family)
    if family == "xl":
        pipeline: Any = StableDiffusionXLPipeline(vae=autoencoder, **parts, add_watermarker=False)
    else:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(vae=autoencoder, **parts, **unused)
    pipeline.save_pretrained(folder)
    return folder


#: The classes of the tiny DiT: the first have the names of digits. diffusers' pipeline asks for 1,000.
DIT_NAMES = ("digit zero", "digit one", "digit two", "digit three", *(f"thing {number}" for number in range(996)))


def transformer(**changes: object) -> DiTTransformer2DModel:
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "out_channels": 8, "patch_size": 1}
    return DiTTransformer2DModel(**(settings | {"sample_size": 4, "attention_bias": True} | changes))


def dit_scheduler() -> DDIMScheduler:
    """Build the scheduler of DiT-XL/2."""
    return DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)


def build_dit(folder: Path, **changes: object) -> Path:
    """Write the folder of a DiT for 32 px images, (4, 4, 4) latents and the classes of DIT_NAMES."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = DiTPipeline(transformer(**changes), vae(), dit_scheduler())
    pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(DIT_NAMES)})
    pipeline.save_pretrained(folder)
    return folder
