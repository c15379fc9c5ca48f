"""Start the command line: `python -m vlcp_ray`, the same as `vlcp-ray`."""

import sys

from vlcp_ray import UNSUPPORTED


def main() -> int:
    """Run a command; or say in one sentence that nothing runs on this system, or which package is missing; return 2."""
    if UNSUPPORTED:
        print(f"vlcp-ray: {UNSUPPORTED}", file=sys.stderr)
        return 2
    try:
        from vlcp_ray import cli
    except ModuleNotFoundError as error:
        print(
            f"vlcp-ray: the package {error.name} is not installed in the environment of {sys.executable}: "
            "run `make setup` in a checkout, or pip install vlcp-ray again",
            file=sys.stderr,
        )
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
