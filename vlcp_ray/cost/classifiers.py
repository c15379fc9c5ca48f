"""Count the operations and the memory of classifiers on tensors that have a shape and no values.

For the networks of torchvision, of which there are too many for a table of counts: most counts take a second or two.
"""

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.networks import TEACHER_NORM, Norm

_GIB: Final = 2**30
_FULL: Final = 4  # bytes of a number
_MOMENTS: Final = 2  # of each weight, as AdamW has them; SGD has one


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Add up the bytes of all live storages.

    Args:
        live, peak: bytes now, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def add(self, values: Any) -> None:
        """Count tensors that exist already."""
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage()) not in self._seen:
                size = storage.nbytes()
                self._seen[storage] = size
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(result)
        if func is torch.ops.aten.convolution.default:  # cuDNN copies what it reads and writes to channels last
            self.peak = max(self.peak, self.live + args[0].nbytes + result.nbytes)
        return result


def count_operations(call: Callable[[], Any]) -> float:
    """Count the operations of a call that needs no gradient: a multiplication and an addition are two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@cache
def forward_flops(name: str, size: int, classes: int) -> float:
    """Count the operations of a forward pass of a network of torchvision over an image of size x size pixels."""
    network = _build(name, size, 1, classes, TEACHER_NORM).eval()  # its widths and its norms are its own
    return count_operations(lambda: network(torch.empty(1, 3, size, size, device="meta")))


@cache
def training_gib(name: str, size: int, width: int, classes: int, norm: Norm, images: int) -> float:
    """Count the GiB of a training step in float32 on so many images of size x size pixels.

    Weights, gradients, two moments of each weight, and what is alive at the peak of the forward and backward pass.
    """
    network = _build(name, size, width, classes, norm).train()
    with PeakMemory() as memory:
        memory.add(list(network.parameters()))
        logits = network(torch.empty(images, 3, size, size, device="meta"))
        loss = cross_entropy(logits, torch.zeros(images, dtype=torch.long, device="meta"))
        torch.autograd.backward(loss)
    return float(memory.peak + _MOMENTS * _weight_bytes(network)) / _GIB


@cache
def weights_gib(name: str, size: int, width: int, classes: int, norm: Norm) -> float:
    """Count the GiB of the weights of a network in float32."""
    return _weight_bytes(_build(name, size, width, classes, norm)) / _GIB


def _build(name: str, size: int, width: int, classes: int, norm: Norm) -> nn.Module:
    with init_empty_weights():  # not `torch.device("meta")`: RegNet computes its widths with tensors that need values
        network = build_classifier(name, num_classes=classes, input_size=size, width=width, seed=0, norm=norm)
    return network.to("meta")


def _weight_bytes(network: nn.Module) -> int:
    return sum(_FULL * parameter.numel() for parameter in network.parameters())
