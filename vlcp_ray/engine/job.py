"""Start a submitted job on the head, or say in one sentence that its Python is not that of the environment.

It imports the standard library only, as anything else may be missing.
"""

import runpy
import sys
from importlib.util import find_spec
from typing import Final

#: Packages that are missing outside the environment.
_NEEDED: Final = ("pydantic", "pyarrow", "ray", "shtab", "torch")
_BAD_ENVIRONMENT: Final = 2


def main() -> int:
    """Run the command line with this process's arguments; returns 2 where packages are missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"vlcp-ray: `python` on the head is {sys.executable}, without {', '.join(missing)}: activate the project's "
            "environment there before `ray start`, or let Ray install it: submit with --env cpu or --env gpu",
            file=sys.stderr,
        )
        return _BAD_ENVIRONMENT
    runpy.run_module("vlcp_ray", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
