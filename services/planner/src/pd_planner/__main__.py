"""`pd-plan`: which deployment for a traffic, before a GPU is bought."""

import argparse
import sys
from collections.abc import Sequence

from pd_planner.cli import calibrate
from pd_planner.cli.failure import CommandError

NOTHING = 2  # exit status: bad options, or nothing to work with


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="pd-plan", description="Which XpYd for a traffic, simulated in seconds.")
    commands = parser.add_subparsers(dest="command", required=True)
    calibrate.add(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except CommandError as error:
        print(f"pd-plan: {error}", file=sys.stderr)
        return NOTHING
    return status


if __name__ == "__main__":
    sys.exit(main())
