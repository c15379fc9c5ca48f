"""Knows what a Stable Diffusion's configuration says of its latents, without loading a library or a weight."""

import json
from pathlib import Path
from typing import Any

from vlcp_ray.models.folders import folder


def latent_shape(base_model: str, resolution: int) -> tuple[int, int, int]:
    """The shape (c, h, w) of the latent of a `resolution` x `resolution` image."""
    loaded = _vae_config(base_model)
    side = resolution // 2 ** (len(loaded["block_out_channels"]) - 1)
    return int(loaded["latent_channels"]), side, side


def is_local(base_model: str) -> bool:
    """Whether the model is a folder, so that its shapes are known without the hub."""
    return _vae_file(base_model).exists()


def scaling_factor(base_model: str) -> float:
    """What latents are multiplied by so that their variance is about 1."""
    return float(
        _vae_config(base_model).get("scaling_factor", 0.18215)
    )  # Stable Diffusion v1's, which may leave it out


def _vae_config(base_model: str) -> dict[str, Any]:
    path = _vae_file(base_model)
    if not path.exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            path = Path(hf_hub_download(base_model, "vae/config.json"))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ValueError(
                f"base_model: {base_model} cannot be fetched from the hub ({str(error).strip().splitlines()[0]}); "
                "check its name and the network, or give a folder"
            ) from error
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _vae_file(base_model: str) -> Path:
    return Path(folder(base_model)).expanduser() / "vae" / "config.json"
