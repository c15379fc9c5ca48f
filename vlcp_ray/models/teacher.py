"""The teacher: load it, and compute its soft labels and its features of images."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vlcp_ray.models.batches import Batches
from vlcp_ray.models.classifiers import build_classifier, head_of
from vlcp_ray.models.networks import NETWORKS, TEACHER_NORM
from vlcp_ray.protocols.augment import normalise
from vlcp_ray.protocols.metrics import BATCH
from vlcp_ray.stages.teach import Teach

_BATCHES: Final = Batches(BATCH, "teach.input_size")  # as small as an earlier call of this process needed


def build_teacher(settings: Teach, num_classes: int, input_size: int, seed: int) -> nn.Module:
    """Build the teacher's network, one of ours with batch norm, with initial weights that depend on the seed only."""
    return build_classifier(
        settings.name,
        num_classes=num_classes,
        input_size=input_size,
        width=settings.width,
        seed=seed,
        norm=TEACHER_NORM,
    )


def load_teacher(settings: Teach, state: Mapping[str, Tensor]) -> nn.Module:
    """Load a teacher from its weights: in eval mode, frozen, on the CPU, with as many outputs as the weights have.

    Args:
        settings: network and width.
        state: weights by name.

    Raises:
        ValueError: the weights are of another network than settings.name.
    """
    # safetensors sorts weights by name, so that those of the last layer need not be the last.
    known = NETWORKS[settings.name].head
    head = next((state[name] for name in ([f"{known}.weight"] if known else head_names(state)) if name in state), None)
    if head is None:
        lacking = f"layer {known}" if known else "linear layer"
        raise ValueError(f"teach.network: the weights have no {lacking}, so they are not those of {settings.name}")
    network = build_teacher(settings, len(head), _input_size_for(settings, head.shape[1]), 0)
    versioned = OrderedDict(state)
    # MNASNet refuses weights without the versions of its modules, which safetensors does not keep.
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        network.load_state_dict(versioned)
    except RuntimeError as error:
        norm = "" if NETWORKS[settings.name].own_norm else " with batch norm"
        raise ValueError(
            f"teach.network: the weights are not those of {settings.name}{norm}: {' '.join(str(error).split())}"
        ) from error
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def features(network: nn.Module, pixels: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float32]:
    """Compute the inputs of a teacher's last layer: (n, 3, s, s) uint8 -> (n, d) float32, for coresets.

    Args:
        network: from `load_teacher`; it is moved to the device and set to eval mode.
        pixels: RGB images.
        device: torch device.
    """
    network = network.to(device).eval()
    inputs: list[Tensor] = []
    hook = head_of(network).register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    try:
        return torch.cat([inputs[-1].float().cpu() for _ in _outputs(network, pixels, device)]).numpy()
    finally:
        hook.remove()


@torch.inference_mode()
def soft_labels(network: nn.Module, pixels: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float32]:
    """Compute class probabilities at temperature 1: (n, 3, s, s) uint8 -> (n, classes) float32, each row of sum 1.

    Args:
        network: from `load_teacher`; it is moved to the device and set to eval mode, so that the soft label of an image
            does not depend on the other images.
        pixels: RGB images.
        device: torch device.
    """
    network = network.to(device).eval()
    return torch.cat([logits.float().softmax(1).cpu() for logits in _outputs(network, pixels, device)]).numpy()


def _outputs(network: nn.Module, pixels: npt.NDArray[np.uint8], device: str) -> Iterator[Tensor]:
    """Yield the outputs of one batch of images after the other."""

    def call(rows: range, _: int) -> Tensor:
        outputs: Tensor = network(normalise(torch.tensor(pixels[rows.start : rows.stop], device=device)))
        return outputs

    return _BATCHES.run(len(pixels), call)


def _input_size_for(settings: Teach, inputs: int) -> int:
    """Compute the image size for which a ConvNet's last layer has this many inputs."""
    if not NETWORKS[settings.name].poolings:
        return settings.input_size
    side = max(1, math.isqrt(inputs // settings.width))
    return side << NETWORKS[settings.name].poolings


def head_names(state: Mapping[str, Tensor]) -> list[str]:
    """List the names of the linear layers' weights, starting with the last layer."""
    return [name for name, value in state.items() if name.endswith("weight") and value.ndim == 2][::-1]
