"""Runs the commands of a guide and writes what they say into the page and its translation: `python docs/write_outputs.py examples`.

How blocks are marked is in tests/support/documents.py. Those that take long keep their text and figures, unless `--long` comes first.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.documents import DOCS, FIGURE, ROOT, Block, Sandbox, blocks, excerpt, sandbox, translation

from pd_analysis.plots.svg import themed

FIGURES = DOCS / "assets/examples"


class PageError(Exception):
    """A page says what is not so; the message is for whoever writes it."""


def replaced(block: Block, box: Sandbox) -> list[str]:
    """The block's commands, each with what it says now.

    Raises:
        PageError: if a command ends otherwise than the page says.
    """
    options = block.options
    lines: list[str] = []
    for command in block.commands:
        sys.stderr.write(f"$ {command.text}\n")
        status, output = box.run(command.text)
        if status != options.get("status", 0):
            raise PageError(f"{block.page.name}: exit status {status}: {command.text}\n{output}")
        lines += f"$ {command.text}".split("\n")
        if output.strip() and options.get("last", 1) + options.get("first", 0):
            lines += excerpt(output, options.get("first"), options.get("last"))
    return lines if block.language == "console" else list(block.lines)


def write(page: Path, *, long: bool = False) -> list[PageError]:
    """Run the page's blocks from the top, and write what they say into both languages; what fails keeps its text and is returned."""
    written: dict[int, list[str]] = {}
    errors: list[PageError] = []
    left_out = [command.text for block in blocks(page) if block.long and not long for command in block.commands]
    with tempfile.TemporaryDirectory() as folder, sandbox(Path(folder)) as box:
        for place, block in enumerate(blocks(page)):
            if block.runs and (long or not block.long):
                try:
                    written[place] = replaced(block, box)
                except PageError as error:
                    errors.append(error)
        for figure in FIGURE.finditer(page.read_text(encoding="utf-8")):
            results, *_ = figure["path"].split("/plots/")
            if any(f"--out {results} " in f"{text} " for text in left_out):
                continue
            try:
                save(figure["name"], box.folder, figure["path"])
            except PageError as error:
                errors.append(error)
    for each in (page, translation(page)):
        insert(each, written)
    return errors


def insert(page: Path, written: dict[int, list[str]]) -> None:
    """Replace the insides of blocks, by their places."""
    lines = page.read_text(encoding="utf-8").split("\n")
    for place, block in reversed(list(enumerate(blocks(page)))):
        if place in written:
            lines[block.first : block.last] = written[place]
    page.write_text("\n".join(lines), encoding="utf-8")


def save(name: str, folder: Path, pattern: str) -> None:
    """A report's figure, one file per theme.

    Raises:
        PageError: if there is none.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise PageError(f"{pattern}: there is no such figure")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        text = themed(found[0].read_text(encoding="utf-8"), dark=theme == "dark")
        (FIGURES / f"{name}.{theme}.svg").write_text(text, encoding="utf-8")


def main() -> int:
    """Write the pages that are named; README is one of them."""
    names = sys.argv[1:]
    long = names[:1] == ["--long"]
    errors = [
        error
        for name in names[long:]
        for error in write(ROOT / "README.md" if name == "README" else DOCS / f"{name}.md", long=long)
    ]
    for error in errors:
        sys.stderr.write(f"{error}\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
