"""Knows how torchvision is made to import beside a CPU build of torch that its compiled library does not load with.

`vlcp-ray doctor --fix` copies this file into the environment's site-packages, where a `.pth` file runs `install` at the
start of every Python process. Nothing in this package imports it: an environment that needs no cure never runs it.
"""

import sys
from typing import Final

# torchvision registers fake versions of these while it is imported; the schemas are torchvision/csrc/ops/nms.cpp's.
SCHEMA: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS: Final = ("nms", "qnms")


class Finder:
    """Sees every import, finds nothing, and acts after torchvision tried its library and before it registers."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.startswith("torchvision.") and self._library_failed():
            sys.meta_path.remove(self)
            define()

    def _library_failed(self) -> bool:
        # torchvision's own verdict: a library that loads brings the operators, and a second schema would be an error.
        has_operators = getattr(sys.modules.get("torchvision.extension"), "_has_ops", None)
        return has_operators is not None and not has_operators()


def define() -> None:
    """Give torch the schemas of the operators that nobody has defined in this process."""
    import torch

    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SCHEMA)


def install() -> None:
    """Wait for torchvision, from the start of this process on; imports nothing."""
    if not any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
