"""The command `pdctl`."""

import sys

from pd_contracts.command import run


def main() -> int:
    """Run the command; returns its exit status."""
    return run("pd_control.main")


if __name__ == "__main__":
    sys.exit(main())
