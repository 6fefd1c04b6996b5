"""The command `pd-proxy`."""

import sys

from pd_contracts.command import run


def main() -> int:
    """Run the command; returns its exit status."""
    return run("pd_proxy.main")


if __name__ == "__main__":
    sys.exit(main())
