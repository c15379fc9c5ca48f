"""Let torchvision import beside a CPU build of torch, with which its compiled library does not load.

`vlcp-ray doctor --fix` copies this file into the environment's site-packages, where a `.pth` file runs `install` at the
start of every Python process. Nothing in this package imports it: an environment that needs no repair never runs it.
"""

import sys
from typing import Final

# At import torchvision registers fake versions of these operators; the schema is that of torchvision/csrc/ops/nms.cpp.
SCHEMA: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS: Final = ("nms", "qnms")


class Finder:
    """Define the operators after torchvision has tried to load its library and before it registers fakes.

    An import hook that is called at every import and never finds a module itself.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.startswith("torchvision.") and self._library_failed():
            sys.meta_path.remove(self)
            define()

    def _library_failed(self) -> bool:
        # A library that loads defines the operators itself, and to define them again would be an error.
        has_operators = getattr(sys.modules.get("torchvision.extension"), "_has_ops", None)
        return has_operators is not None and not has_operators()


def define() -> None:
    """Define the operators that are not defined in this process."""
    import torch

    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SCHEMA)


def install() -> None:
    """Add the import hook to this process; imports nothing."""
    if not any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
