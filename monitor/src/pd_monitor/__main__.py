"""The command `pd-monitor`."""

import sys

from pd_contracts.command import run


def main() -> int:
    """Run the command; returns its exit status."""
    return run("pd_monitor.main")


if __name__ == "__main__":
    sys.exit(main())
