"""Import diffusers without the optional packages that it would import too, which take a quarter of its time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: What diffusers and transformers import where it is installed, for functions that are not used here. LoRA, 8-bit
#: optimisers and 8-bit captioners import these packages themselves.
UNUSED: Final = ("bitsandbytes", "peft", "sklearn")


@contextmanager
def without_optional_packages() -> Iterator[None]:
    """Let the packages of `UNUSED` look as if they were not installed, unless they were imported before.

    Python refuses to import a name whose entry in `sys.modules` is None.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
