"""Dataset distillation with vision-language category prototypes, on Ray.

`import vlcp_ray as vr` has the functions of `vlcp_ray.api` (see API.md); they are loaded when the first one is used.
"""

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vlcp_ray.api import distilled, load, run, score, scores, show, table

__version__ = "0.1.0"
__all__ = ["distilled", "load", "run", "score", "scores", "show", "table"]

#: Why nothing runs on this system; empty on Linux.
UNSUPPORTED: Final = (
    ""
    if sys.platform == "linux"
    else "it runs on Linux only: on Windows install it in WSL (the Windows Subsystem for Linux), on macOS in a Linux "
    "container or on another machine"
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if UNSUPPORTED:
        raise RuntimeError(f"vlcp_ray: {UNSUPPORTED}")
    from vlcp_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
