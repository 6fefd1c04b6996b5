"""Checks the prose of the repository: `python docs/check_prose.py`; `--write` puts Markdown into one sentence a line.

Two things: phrases that are hard to read (`PHRASES`, each with what to write instead) are nowhere, and in Markdown every sentence has
its own line, so that a change of one sentence is a change of one line.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PHRASES: Final = {
    r"/s and GPU\b|second and GPU\b": "per GPU",
    r"\d× lower": "a percentage, or 'a third of'",
    r"depends on what you promise": "the choice depends on your goal",
    r"nothing that decides": "none of the deciding measures",
    r"its doubts first": "the doubts come first",
    r"\b(host|machine|engine|image) has not\b(?! \w+(ed|en|own|ne)\b)": "does not have",
    r"\bbelongs? into\b": "belongs in",
    r"\b[Nn]obody's (joules|measure|error|word)": "name the cause",
    r"\brude(ly)? (client|crowd)": "misbehaving clients",
    r"\bpays? the same hop": "use the same extra hop",
    r"to all of these what": "one idea a sentence",
    r"that is a \d\d\d that": "the client gets 400 with the reason",
    r"in the same words at|\bthrice\b": "three times",
    r"\bits wits\b": "it still works",
    r"\b\w+ that (is|are) none\b": "an invalid …",
    r"\bfor ever\b": "forever",
    r"\b(joules|J|row|line|column|key|entry|sample|message|CPU|µs|memory|trip|requests/s|rank|timers) an? (prompt|output|request|run|token|event|sample|line|engine|relayed|chunk|leg|rank|layer|GPU)\b": "per",
    r"\b[Ll]eave (it|them|this|--\w+) away\b": "remove it",
    # Not what is left of a division, as in `version // 100 % 100`, nor the end of a template's tag.
    r"[\d}][ \u00a0\u202f]%(?! \d|[}\d])": "the percent sign without a blank before it, '5%'",
}
BINARY: Final = {".png", ".gz", ".xz", ".tgz", ".lock", ".svg", ".po", ".json", ".jsonl", ".parquet", ".npz"}
# Besides others' words: reports of past measurements, which say what the code said then, and their records.
SKIPPED: Final = (
    *(f"docs/results/{name}/report" for name in ("cpu", "h200", "h200x1", "h200x2")),
    "docs/results/h200/calibration.md",
    "docs/results/h200x1-qwen3-4b/calibration.md",
    "docs/check_prose.py",
    "tests/repo/test_prose.py",
    "loadgen/src/pd_loadgen/data/",
    "tests/data/",
)
ABBREVIATIONS: Final = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.", "No.", "z.B.")
# A sentence ends at these marks, with closing quotes and brackets, before the begin of another.
END: Final = re.compile(
    r"""(?<=[.!?])(?P<close>["”’)\]]*)\s+(?=[A-Z`“"\[(0-9])|(?<=[。！？])(?P<zh>[”’）】]*)\s*(?=[^\s*_”’）】])"""
)
# A line that ends so was broken on purpose.
BROKEN: Final = re.compile(r"""[.!?:;。！？：；]["”’）】)\]*_`]*$""")
# What is not prose: headings, tables, quotes, markup, directives, figures, rules.
MARKUP: Final = re.compile(r"^\s*(#|\||>|<|!!!|\?\?\?|===|---|\*\*\*|\{|!\[|\[[^\]]+\]: )")
ITEM: Final = re.compile(r"^(?P<indent>\s*)(?P<mark>[-*+] (?:\[[ x]\] )?|\d+\. )")


def files() -> list[Path]:
    """Every tracked text file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    kept = [name for name in listed if name and not name.startswith(SKIPPED) and Path(name).suffix not in BINARY]
    return [ROOT / name for name in kept if (ROOT / name).is_file()]


def phrases(path: Path) -> Iterator[str]:
    """A sentence about each phrase of a file that should read otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a font or an archive
    for pattern, instead in PHRASES.items():
        for found in re.finditer(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}: {found[0]!r}: write {instead}"


def reflowed(text: str) -> str:
    """Markdown with one sentence a line; what is not prose stays as it is."""
    out: list[str] = []
    paragraph: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fence = line.lstrip().startswith("```")
        code = (
            not paragraph and line.startswith("    ") and not ITEM.match(line)
        )  # or what belongs to an item or an admonition
        if fence or fenced or code or not line.strip() or MARKUP.match(line) or line.endswith("  "):
            out += _sentences(paragraph)
            paragraph = []
            out.append(line)
            fenced ^= fence
        elif paragraph and (ITEM.match(line) or _indent(line) < _indent(paragraph[0])):
            out += _sentences(paragraph)
            paragraph = [line]
        else:
            paragraph.append(line)
    return "\n".join([*out, *_sentences(paragraph)])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _sentences(paragraph: list[str]) -> list[str]:
    if not paragraph:
        return []
    item = ITEM.match(paragraph[0])
    head = item[0] if item else paragraph[0][: _indent(paragraph[0])]
    text = paragraph[0][len(head) :].strip()
    begun = [text]
    for line in paragraph[1:]:
        if BROKEN.search(begun[-1]):
            begun.append(line.strip())
            continue
        near = re.search(r"[\u3000-\u9fff\uff00-\uffef]$", begun[-1]) and re.match(
            r"\s*[\u3000-\u9fff\uff00-\uffef]", line
        )
        begun[-1] += line.strip() if near else f" {line.strip()}"
    parts = [part for text in begun for part in _parts(text)]
    return [head + parts[0], *(" " * len(head) + part for part in parts[1:])]


def _parts(text: str) -> Iterator[str]:
    begin = 0
    for end in END.finditer(text):
        if not text[begin : end.start()].endswith(ABBREVIATIONS) and not _is_inside(text, end.start()):
            yield text[begin : end.start()] + (end["close"] or end["zh"] or "")
            begin = end.end()
    yield text[begin:]


def _is_inside(text: str, at: int) -> bool:
    """True within code or brackets."""
    return text.count("`", 0, at) % 2 == 1 or text.count("(", 0, at) > text.count(")", 0, at)


def main() -> int:
    """Check, or write; the exit status is 1 if something is to be changed."""
    found = [sentence for path in files() for sentence in phrases(path)]
    for path in (path for path in files() if path.suffix == ".md"):
        text = path.read_text(encoding="utf-8")
        if reflowed(text) == text:
            continue
        if sys.argv[1:] == ["--write"]:
            path.write_text(reflowed(text), encoding="utf-8")
        else:
            found.append(f"{path.relative_to(ROOT)}: not one sentence a line: python docs/check_prose.py --write")
    sys.stdout.write("".join(f"{sentence}\n" for sentence in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
