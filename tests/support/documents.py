"""The documentation as something that can be run: its pages, their commands, and the output that is shown below them.

A block of commands says in a comment above it whether it is run:

    <!-- runs quick -->            by every `make test`; quick blocks of a page must do without its others
    <!-- runs -->                  by `make guides`, which runs all blocks of a page, in their order, in one folder
    <!-- runs long -->             by GUIDES_LONG=1 make guides; the page's other blocks must do without it
    <!-- shown: needs two GPUs --> by no test, with the reason

Behind a comma come options: `status 3` for a command that ends so, `first 4` and `last 20` for how many lines of each command are shown.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from support.control import compose_project

from pd_contracts.free_ports import free_ports

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
GUIDES: Final = (
    "index",
    "beginner",
    "concepts",
    "learning-path",
    "faq",
    "compare",
    "examples",
    "read-report",
    "plan",
    "planning",
    "run",
    "code-guide",
    "configuration",
    "engines",
    "reliability",
    "routing",
)
SHELLS: Final = frozenset({"console", "sh", "bash", "shell"})
FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*$")
DIRECTIVE: Final = re.compile(
    r"^ *<!-- (?P<kind>runs|shown)(?P<pace> quick| long)?(?P<options>(?:, \w+ \d+)*)(?:: (?P<reason>[^>]+))? -->$"
)
FIGURE: Final = re.compile(r"^<!-- figure (?P<name>[\w-]+): (?P<path>\S+) -->$", re.MULTILINE)
PORTS: Final = {
    "HTTP_PROXY_PORT": 10001,
    "PROXY_PORT": 30001,
    "PREFILL_HTTP_PORT": 20003,
    "DECODE_HTTP_PORT": 20005,
    "PREFILL_KV_PORT": 21001,
    "DECODE_KV_PORT": 22001,
    "COMBINED_HTTP_PORT": 8000,
    "MONITOR_PORT": 9835,
    "LOCUST_PORT": 8089,
}
INSTANCES: Final = 4  # the n-th of a role listens n above the first
# What a terminal shows on one line, each over the last.
PROGRESS: Final = re.compile(r"^pd-loadgen: (\d+/\d+ done.*(left|records|answers?)|warming up|idle, .*|writing .*)$")
COMMAND_S: Final = 3600


@dataclass(frozen=True)
class Command:
    """One command of a block, and the output that the page shows below it."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `first` and `last` are line numbers of its inside, from 0."""

    page: Path
    language: str
    first: int
    last: int
    lines: tuple[str, ...]
    directive: re.Match[str] | None

    @property
    def is_shell(self) -> bool:
        return self.language in SHELLS

    @property
    def runs(self) -> bool:
        return self.directive is not None and self.directive["kind"] == "runs"

    @property
    def quick(self) -> bool:
        """True if every `make test` runs it."""
        return self.runs and bool(self.directive and self.directive["pace"] == " quick")

    @property
    def long(self) -> bool:
        """True if it takes so long that it is run on request only."""
        return self.runs and bool(self.directive and self.directive["pace"] == " long")

    @property
    def options(self) -> dict[str, int]:
        """What stands behind the commas."""
        words = (self.directive["options"] if self.directive else "").replace(",", "").split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    @property
    def commands(self) -> list[Command]:
        """Commands after `$ `, with what goes on after a backslash or in a here-document; without a prompt all lines are one script."""
        if self.language != "console":
            return [Command("\n".join(self.lines))]
        return _prompted(self.lines)


def _prompted(lines: Sequence[str]) -> list[Command]:
    found: list[Command] = []
    going_on, end = False, ""
    for line in lines:
        if line.startswith("$ ") and not end:
            found.append(Command(line[2:]))
        elif going_on or end:
            found[-1] = replace(found[-1], text=f"{found[-1].text}\n{line}")
        elif found:
            found[-1] = replace(found[-1], shown=(*found[-1].shown, line))
        opened = re.search(r"<<'?(\w+)'?(?: |$)", line) if line.startswith("$ ") else None
        end = opened[1] if opened else "" if line.strip() == end else end
        going_on = line.endswith("\\") and not end
    return found


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if opened and line.strip() == "```":
            start, head = opened
            inside = tuple(each.removeprefix(head["indent"]) for each in lines[start + 1 : number])
            found.append(Block(page, head["language"], start + 1, number, inside, _directive(lines, start)))
            opened = None
        elif fence and not opened:
            opened = number, fence
    return found


def _directive(lines: Sequence[str], fence: int) -> re.Match[str] | None:
    above = [line for line in lines[max(0, fence - 2) : fence] if line.strip()]
    return DIRECTIVE.match(above[-1]) if above else None


def headings(page: Path) -> list[int]:
    """Levels of a page's headings, in order."""
    levels, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.strip().startswith("```")
        if not inside and (head := re.match(r"(#+) ", line)):
            levels.append(len(head[1]))
    return levels


def translation(page: Path) -> Path:
    """The Chinese page beside an English one."""
    return page.with_name("README.zh.md") if page.name == "README.md" else page.with_suffix(".zh.md")


def guides() -> list[Path]:
    """The pages that are written for users, in English."""
    return [ROOT / "README.md", *(DOCS / f"{name}.md" for name in GUIDES)]


@dataclass(frozen=True)
class Sandbox:
    """A folder that looks like a fresh clone with everything installed, whose deployment meets no other on this machine."""

    folder: Path
    environment: Mapping[str, str]
    ports: Mapping[str, str]

    def run(self, command: str) -> tuple[int, str]:
        """Exit status and output of one command, with the usual ports in both."""
        for usual, own in self.ports.items():
            command = re.sub(rf"\b{usual}\b", own, command)
        with subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=COMMAND_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                raise
        for usual, own in self.ports.items():
            for above in range(INSTANCES):
                output = re.sub(rf"\b{int(own) + above}\b", str(int(usual) + above), output)
        return process.returncode, output.replace(str(self.folder), "/home/you/pdstack").replace(
            str(ROOT), "/home/you/pdstack"
        )


@contextmanager
def sandbox(folder: Path, **extra: str) -> Iterator[Sandbox]:
    """Make one in `folder`; what it started is stopped at the end."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in {path.split("/")[0] for path in listed if path} - {"pdctl"}:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "pdctl").write_text(f'#!/bin/sh\nexec "{ROOT}/.venv/bin/pdctl" "$@"\n')
    (folder / "pdctl").chmod(0o755)
    own = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"MODEL", "VIRTUAL_ENV"}},
        **{name: str(port) for name, port in own.items()},
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
        "MAKEFLAGS": "BOOTSTRAP=:",  # everything is installed
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "COMPOSE_PROJECT_NAME": compose_project(folder),
        **extra,
    }
    made = Sandbox(folder, environment, {str(PORTS[name]): str(port) for name, port in own.items()})
    try:
        yield made
    finally:
        made.run("./pdctl down")


def excerpt(output: str, first: int | None, last: int | None) -> list[str]:
    """The lines that a page shows of a command's output."""
    lines = [line.rstrip() for line in output.replace("\r", "\n").strip("\n").split("\n")]
    lines = [line for line in lines if not PROGRESS.match(line)]
    if first is None and last is None:
        return lines
    head, tail = first or 0, last or 0
    if len(lines) <= head + tail:
        return lines
    return [*lines[:head], "…", *(lines[-tail:] if tail else [])]


def missing(shown: Sequence[str], output: str) -> list[str]:
    """Lines of words alone that a page shows and the command no longer says; numbers, and the frames around them, differ from run to run."""
    said = " ".join(output.split())
    return [
        line
        for line in shown
        if re.search(r"[^\W_]", line) and not re.search(r"\d", line) and " ".join(line.split()) not in said
    ]
