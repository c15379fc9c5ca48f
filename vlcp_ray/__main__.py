"""Start the command line: `python -m vlcp_ray`, the same as `vlcp-ray`."""

import sys

from vlcp_ray import UNSUPPORTED


def main() -> int:
    """Run a command, or say in one sentence that nothing runs on this system, where other modules do not import."""
    if UNSUPPORTED:
        print(f"vlcp-ray: {UNSUPPORTED}", file=sys.stderr)
        return 2
    from vlcp_ray import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
