# ruff: noqa: INP001 - a script for the images of vLLM, which have none of our development tools
"""Add the options of the vLLM in this image to pd_engine's table of them, and print the table.

docker run --rm -v "$PWD:/src:ro" --entrypoint python3 vllm/vllm-openai:v0.23.0 /src/services/engine/record_options.py > table
"""

import argparse
import importlib
import sys
from pathlib import Path

TABLE = Path(__file__).parent / "src/pd_engine/vllm_options.txt"
# Where vLLM has kept its parser: 0.23, 0.32, 0.33.
HOMES = ("openai.cli_args", "launchers.cli_args", "common.cli_args")
VERSIONS = "# Recorded from vLLM "

Row = tuple[str, str]


def parser() -> argparse.ArgumentParser:
    make = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
    for home in HOMES:
        try:
            module = importlib.import_module(f"vllm.entrypoints.{home}")
        except ModuleNotFoundError:
            continue  # another version's home
        found: argparse.ArgumentParser = module.make_arg_parser(make())
        return found
    msg = f"vLLM's parser is in none of {', '.join(HOMES)}: look for make_arg_parser, and add its home"
    raise SystemExit(msg)


def options_of(found: argparse.ArgumentParser) -> dict[Row, set[str]]:
    """(name, number of values) to spellings; what is accepted but hidden from help counts, too."""
    rows: dict[Row, set[str]] = {}
    for spelling, action in found._option_string_actions.items():  # noqa: SLF001  argparse offers no other way
        if action.dest != "help":
            arity = "1" if action.nargs is None else str(action.nargs)
            rows.setdefault((action.dest, arity), set()).add(spelling)
    return rows


def table(text: str, version: str, found: dict[Row, set[str]]) -> str:
    """The table with what was found added."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, arity, *spellings = line.split()
            found.setdefault((name, arity), set()).update(spellings)
    versions = {v for line in head if line.startswith(VERSIONS) for v in line.removeprefix(VERSIONS).split()} | {
        version
    }
    kept = [line for line in head if not line.startswith(VERSIONS)]
    rows = [" ".join([*row, *sorted(spellings)]) for row, spellings in sorted(found.items())]
    return "\n".join([*kept, VERSIONS + " ".join(sorted(versions)), *rows, ""])


def main() -> None:
    version = importlib.import_module("vllm.version").__version__
    text = TABLE.read_text() if TABLE.exists() else ""
    sys.stdout.write(table(text, version, options_of(parser())))


if __name__ == "__main__":
    main()
