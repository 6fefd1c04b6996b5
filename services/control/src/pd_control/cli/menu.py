"""`pdctl menu`: the usual tasks on a GPU node as a numbered list, each with the command that does the same."""

import argparse
import sys
from typing import Final

from rich.text import Text

from pd_control.context import Context
from pd_control.supervision import attached_command
from pd_control.terminal import table_of

COLUMNS: Final = ("", "what", "the same without the menu")
# Each item lists command lines; all of them are run, whatever their exit status.
ITEMS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "1": ("proxy, in this terminal", ("proxy",)),
    "2": ("a prefill engine, in this terminal", ("prefill",)),
    "3": ("a decode engine, in this terminal", ("decode",)),
    "4": ("everything, in the background", ("all",)),
    "5": ("check this machine, test what runs", ("doctor", "status", "smoke")),
    "6": ("show the configuration", ("config",)),
    "7": ("compare plain vLLM with separate prefill and decode", ("compare",)),
    "8": ("the last lines of every log", ("logs",)),
    "9": ("stop everything", ("down",)),
}
WITH_ENGINE: Final = {"prefill", "decode", "all", "doctor", "compare"}
END: Final = "0"


def commands_of(number: str, engine: str) -> list[list[str]]:
    """The command lines of an item."""
    option = [] if engine == "vllm" else ["--engine", engine]
    return [[word, *(option if word in WITH_ENGINE else [])] for word in ITEMS[number][1]]


def run(context: Context, options: argparse.Namespace) -> int:
    """Ask for a number and run its commands, until 0 or the end of input."""
    while True:
        _show(context, options.engine)
        answer = _ask()
        if answer in (END, None):
            return 0
        if answer in ITEMS:
            _do(context, commands_of(answer, options.engine))
        else:
            context.terminal.error(f"{answer!r} is not in the menu: enter a number from 0 to {len(ITEMS)}")


def _show(context: Context, engine: str) -> None:
    rows = [
        (
            Text(number, "bold cyan"),
            what,
            " && ".join(f"pdctl {' '.join(words)}" for words in commands_of(number, engine)),
        )
        for number, (what, _) in ITEMS.items()
    ]
    context.terminal.title("pdctl")
    context.terminal.table(table_of([*rows, (Text(END, "bold cyan"), "leave", "")], COLUMNS))
    context.terminal.note("a second engine of a role: INSTANCE=1 pdctl prefill")


def _ask() -> str | None:
    sys.stdout.write("> ")
    sys.stdout.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _do(context: Context, commands: list[list[str]]) -> None:
    for words in commands:
        context.terminal.title(f"pdctl {' '.join(words)}")
        try:
            status = attached_command.run([sys.executable, "-m", "pd_control", *words], context.own)
        except KeyboardInterrupt:
            context.terminal.say("back in the menu")
            return
        if status != 0:
            context.terminal.note(f"ended with status {status}")
