"""Find pretrained models, and read shapes and sizes from their files without loading a library or a weight."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vlcp_ray.store import io
from vlcp_ray.store.uris import strip_secrets

DEMO: Final = "demo/"
_PACKAGE: Final = Path(__file__).parents[1]

#: Number of parameters of the paper's models, from their files on the hub.
_PARAMETERS: Final[Mapping[tuple[str, str], int]] = {
    ("llava-hf/llava-1.5-7b-hf", ""): 7_063_427_072,
    ("benjamin-paine/stable-diffusion-v1-5", "unet"): 859_520_964,
    ("benjamin-paine/stable-diffusion-v1-5", "vae"): 83_653_863,
    ("benjamin-paine/stable-diffusion-v1-5", "text_encoder"): 123_060_480,
}


def folder(model: str) -> str:
    """Return the argument for `from_pretrained`: the packaged folder of demo/<name>, else the hub id or folder."""
    return str(_PACKAGE / model) if model.startswith(DEMO) else strip_secrets(model)


def check(model: str, field: str) -> None:
    """Refuse a model folder that does not exist, before anything starts.

    Args:
        model: hub id, folder or demo/<name>.
        field: the setting it comes from, for the error.

    Raises:
        ValueError: `model` is written as a path or as demo/<name>, and the folder or its weights do not exist.
    """
    path = Path(folder(model)).expanduser()
    is_path = model.startswith((DEMO, ".", "/", "~")) or model.count("/") != 1  # a hub id is owner/name
    if model.startswith(DEMO) and path.is_dir() and not any(path.rglob("*.safetensors")):
        raise ValueError(f"{field}: the weights of {model} were not sent with this job; send it with vlcp-ray submit")
    if is_path and not path.is_dir():
        raise ValueError(f"{field}: there is no folder {model!r}; give a folder or a hub id such as owner/name")


def content_hash(model: str) -> str:
    """Return what identifies a model in fingerprints: the hash of a folder's contents, or the hub id."""
    path = folder(model)
    return io.content_hash(path) if Path(path).expanduser().exists() else strip_secrets(model)


def latent_shape(base_model: str, resolution: int) -> tuple[int, int, int]:
    """Compute the shape (c, h, w) of the latent of a `resolution` x `resolution` image."""
    config = _vae_config(base_model)
    side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
    return int(config["latent_channels"]), side, side


def scaling_factor(base_model: str) -> float:
    """Return the factor by which latents are multiplied so that their variance is about 1."""
    # Configurations of Stable Diffusion v1 may leave it out; this is theirs.
    return float(_vae_config(base_model).get("scaling_factor", 0.18215))


def _vae_config(base_model: str) -> dict[str, Any]:
    path = _vae_file(base_model)
    if not path.exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            path = Path(hf_hub_download(base_model, "vae/config.json"))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ValueError(
                f"base_model: {base_model} cannot be downloaded from the hub ({str(error).strip().splitlines()[0]}); "
                "check its name and the network, or give a folder"
            ) from error
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _vae_file(base_model: str) -> Path:
    return Path(folder(base_model)).expanduser() / "vae" / "config.json"


def expected_latent_shape(base_model: str, resolution: int) -> tuple[int, int, int]:
    """Compute the shape (c, h, w) of a latent without asking the hub.

    A hub model is assumed to have the four channels and the eighth of the side of every Stable Diffusion.
    """
    if _vae_file(base_model).exists():
        return latent_shape(base_model, resolution)
    return 4, resolution // 8, resolution // 8


def count_parameters(model: str, part: str) -> int | None:
    """Count the parameters of a model or of one of its parts; None for a hub model that is not in `_PARAMETERS`."""
    path = Path(folder(model)).expanduser() / part
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if files:
        return sum(map(_parameters_in, files))
    return _PARAMETERS.get((model, part))


def _parameters_in(file: Path) -> int:
    with file.open("rb") as stream:  # safetensors: 8 bytes of length, then JSON with the shape of every tensor
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def count_pipeline_parameters(base_model: str) -> int | None:
    """Count the parameters of a Stable Diffusion's UNet, VAE and text encoder; None where one is not known."""
    sizes = [count_parameters(base_model, part) for part in ("unet", "vae", "text_encoder")]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
