"""LoRA (Hu et al. 2022): train matrices of a low rank beside the attention layers of a frozen UNet, through peft."""

from typing import Any, Final

import torch

from vlcp_ray.models import stable_diffusion
from vlcp_ray.stages.finetune import LORA

#: The layers beside which matrices are trained.
LAYERS: Final = tuple(LORA["layers"])


def add_matrices(unet: Any, rank: int, seed: int) -> Any:
    """Freeze a UNet and add two matrices of a rank to each of its attention projections, whose product is zero.

    Their scale is that of the layer (peft's alpha equals the rank).

    Args:
        unet: on the CPU, in float32, so that the first matrices are the same on every device.
        rank: of the matrices.
        seed: that their first values follow from.
    """
    from peft import LoraConfig, inject_adapter_in_model

    unet.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=LORA["scale"] * rank,
        init_lora_weights=LORA["init_lora_weights"],
        target_modules=LORA["layers"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inject_adapter_in_model(config, unet)


@torch.no_grad()
def merge(unet: Any, base_model: str) -> Any:
    """Return the UNet of the base model with the trained matrices added to its weights, in float32 on the CPU."""
    from peft.tuners.lora import LoraLayer

    plain = stable_diffusion.load_unet(base_model, "cpu")
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):
            change = layer.get_delta_weight("default")
            plain.get_submodule(name).weight.add_(change.to("cpu", torch.float32))
    return plain
