"""The command `pd-loadgen`."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pd_contracts import log
from pd_contracts.arguments import Parser
from pd_contracts.settings import SettingsError
from pd_loadgen import __version__
from pd_loadgen.client.access import keep_secret
from pd_loadgen.commands import add as add_commands
from pd_loadgen.workload import options
from pd_loadgen.workload.vllm_names import ForeignOptionError, translated

LOCUST: Final = "locust"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit statuses are in the help of `run`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == [LOCUST]:
        return _locust(words[1:])
    try:
        given = _parser().parse_args(translated(words) if words[:1] in (["run"], ["search"]) else words)
    except ForeignOptionError as error:
        sys.stderr.write(f"pd-loadgen: {error}\n")
        return 2
    if given.execute is not None:
        return int(given.execute(given))
    try:
        chosen = options.given(given)
        read = options.load(chosen)
        keep_secret(options.address(chosen).secret)
        log.set_up(os.environ.get("LOG_LEVEL") or "INFO")
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"pd-loadgen: {error}\n")
        return 2
    logging.getLogger("locust").setLevel(logging.WARNING)  # it reports users and ramps, of which there are none
    # Importing Locust patches this process's sockets, threads and signals: only a process that sends load may do that.
    from pd_loadgen.live import headless  # noqa: PLC0415

    return headless.execute(read, ["pd-loadgen", *words])


def _locust(words: list[str]) -> int:
    """Be Locust, with the locustfile of this package: for its page, and for its help, which Locust alone prints without a locustfile."""
    import locust  # noqa: PLC0415  it patches the process, as above
    import locust.main  # noqa: PLC0415

    if {"-h", "--help"}.intersection(words):
        from pd_loadgen.live.ui.form import listen  # noqa: PLC0415

        listen(locust.events)
    sys.argv = [LOCUST, "-f", str(Path(__file__).with_name("locustfile.py")), *words]
    locust.main.main()  # type: ignore[no-untyped-call]
    return 0


def _parser() -> Parser:
    parser = Parser(prog="pd-loadgen", description="Open-loop streaming load for LLM servers.")
    parser.add_argument("--version", action="version", version=f"pd-loadgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="offer one load and write a run folder",
        epilog="Options of vllm bench serve (--request-rate, --num-prompts, --random-input-len, …) are accepted under their own names, too. Exit status: 0 complete and valid; 2 bad options, or the server cannot be used; 3 the client was late, so the "
        "run is INVALID; 4 every request failed; 130 stopped early (the records are kept).",
    )
    options.add_arguments(run)
    run.set_defaults(execute=None)
    add_commands(commands)
    commands.add_parser(
        LOCUST, help="start Locust's page, or Locust with its own options and those of run", add_help=False
    )
    return parser
