"""Entry point of the engine images: `python3 -m pd_engine` starts the engine, `… plan` prints how.

`… probe` says whether a running one answers, `… probe --admitted` whether the proxy gives it requests, `… probe --alive` whether it
makes progress; `… drain` lets its requests end before it is stopped.
"""

import sys

from pd_contracts.settings import SettingsError, load
from pd_engine import checks
from pd_engine.settings import CheckSettings

USAGE = (
    "usage: python3 -m pd_engine [start|plan|probe [--admitted|--alive]|drain]; settings come from the environment\n"
)


def main() -> int:
    """Start, print, probe or drain, as the arguments say."""
    arguments = sys.argv[1:] or ["start"]
    if arguments not in (["start"], ["plan"], *checks.COMMANDS):
        sys.stderr.write(USAGE)
        return 2
    try:
        if arguments in checks.COMMANDS:
            return checks.run(arguments, load(CheckSettings))
        from pd_engine.start import start  # noqa: PLC0415  probes run every few seconds; what a start needs doubles their cost

        return start(print_only=arguments == ["plan"])
    except SettingsError as error:
        sys.stderr.write(f"pd-engine: {error}\n")
        return 2
