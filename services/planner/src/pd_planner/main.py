"""`pd-plan`: which deployment for a traffic, before a GPU is bought."""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from pd_analysis.words.language import in_language, mark, tr
from pd_contracts.folders import FolderError
from pd_planner.cli import calibrate, check, plan
from pd_planner.cli.failure import CommandError
from pd_planner.cli.parser import NOTHING, Parser, RawDescription, language_of

# Anything else is a question.
COMMANDS: Final[dict[str, ModuleType]] = {"calibrate": calibrate, "check": check}
DESCRIPTION: Final = mark(
    "Find the XpYd deployment for your traffic, or plain vLLM: every deployment is simulated, in seconds, from a measured profile."
)
OTHERS: Final = mark(
    "other commands: pd-plan calibrate RUNS (make a profile), pd-plan check PLAN RUNS (compare a plan with measurements)"
)


def main(arguments: Sequence[str] | None = None, prog: str = "pd-plan") -> int:
    """Run a subcommand; without a subcommand, make a plan."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with in_language(language_of(words)):
        return _main(words, prog)


def _main(words: list[str], prog: str) -> int:
    command = COMMANDS.get(words[0]) if words else None
    try:
        if command is not None:
            parser = Parser(prog=f"{prog} {words[0]}", description=tr(command.DESCRIPTION))
            command.add_arguments(parser)
            return int(command.run(parser.parse_args(words[1:])))
        return _plan(words, prog)
    except FolderError as error:
        print(f"{prog}: {tr(error.message, **error.holes)}", file=sys.stderr)
    except CommandError as error:
        print(f"{prog}: {error}", file=sys.stderr)
    return NOTHING


def _plan(words: list[str], prog: str) -> int:
    description = f"{tr(DESCRIPTION)}\n\n{tr(OTHERS)}"
    heading = tr("examples:")
    examples = f"{heading}\n{plan.EXAMPLES}"
    parser = Parser(prog=prog, description=description, epilog=examples, formatter_class=RawDescription)
    plan.add_arguments(parser)
    if not words:
        hint = tr("{program} --help lists the options", program=prog)
        print(f"{description}\n\n{examples}\n{hint}")
        return 0
    if not words[0].startswith("-"):
        parser.error(
            tr(
                "there is no command {name}; there are {commands}, and options of a question",
                name=repr(words[0]),
                commands=", ".join(COMMANDS),
            )
        )
    return plan.run(parser.parse_args(words), words)
