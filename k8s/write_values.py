"""Writes chart/values.schema.json and the table of values in README.md from chart/values.yaml; `--check` only compares.

values.yaml is kept plain: block maps, one key per line, `# --` with the meaning above each value, in one line, and `# @` with
what the default alone does not say of its schema. A `pattern` there has `words`, which say to users what it asks for.
"""
# ruff: noqa: INP001  a script, not a package

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml
from value_definitions import DEFINITIONS, closed, pattern

HERE = Path(__file__).parent
VALUES, SCHEMA, README = HERE / "chart/values.yaml", HERE / "chart/values.schema.json", HERE / "README.md"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
LARGEST = 2**31 - 1  # of a number in Kubernetes' objects


class Value(msgspec.Struct, frozen=True):
    """One leaf of values.yaml."""

    path: tuple[str, ...]
    meaning: str
    extra: dict[str, Any]
    default: Any


def leaves(document_text: str) -> list[Value]:
    """All values with what their comments say, in order.

    Raises:
        ValueError: if a value has no meaning, or a meaning a second line.
    """
    document = yaml.safe_load(document_text)
    found: list[Value] = []
    path: list[str] = []
    meaning, extra = "", {}
    below = -1  # indentation of a value that is itself a map, whose lines are part of its default
    for line in document_text.splitlines():
        indent = len(line) - len(line.lstrip())
        if match := re.fullmatch(r"\s*# -- (.*)", line):
            meaning, below = match[1], -1
        elif match := re.fullmatch(r"\s*# @ (.*)", line):
            extra = yaml.safe_load(match[1])
        elif meaning and line.lstrip().startswith("#"):
            msg = f"a meaning is one line, and this is a second one: {line.strip()}"
            raise ValueError(msg)
        elif (match := re.match(r"\s*(\w+):", line)) and not (0 <= below < indent):
            path = [*path[: indent // 2], match[1]]
            default = _at(document, path)
            if meaning:
                found.append(Value(tuple(path), meaning, extra, default))
                below = indent
            elif not isinstance(default, dict):
                msg = f"{'.'.join(path)} has no '# --' line"
                raise ValueError(msg)
            meaning, extra = "", {}
    return found


def _at(document: Any, path: list[str]) -> Any:
    for key in path:
        document = document[key]
    return document


def schema(values: list[Value]) -> dict[str, Any]:
    """The JSON schema: nothing that is not in values.yaml is accepted, and null takes away nothing that a template needs."""
    root: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", **closed(), "required": []}
    for value in values:
        node = root
        for key in value.path[:-1]:
            if key not in node["properties"]:
                node["properties"][key] = {**closed(), "required": []}
                node["required"].append(key)
            node = node["properties"][key]
        node["properties"][value.path[-1]] = _leaf(value)
        # Null removes a map that another file of values has set; templates do without maps.
        if value.default is not None and not isinstance(value.default, dict):
            node["required"].append(value.path[-1])
    return {**root, "definitions": DEFINITIONS}


def _leaf(value: Value) -> dict[str, Any]:
    named = DEFINITIONS.get(value.extra.get("$ref", "").rpartition("/")[2], {})
    if "properties" in named or "items" in named:  # long; draft 7 ignores whatever stands beside a $ref
        return {"description": value.meaning, "allOf": [value.extra]}
    extra = {key: what for key, what in value.extra.items() if key not in {"$ref", "words"}}
    if "pattern" in extra:
        extra["pattern"] = pattern(value.extra["words"], extra["pattern"].removeprefix("^"))
    leaf = {"description": value.meaning, "type": TYPES.get(type(value.default), "null"), **named, **extra}
    if "integer" in leaf["type"]:
        leaf.setdefault("maximum", LARGEST)
    return leaf


def table(values: list[Value]) -> str:
    rows = [f"| `{'.'.join(value.path)}` | {_shown(value.default)} | {_meaning(value)} |" for value in values]
    return "\n".join(["| value | default | what it does |", "| --- | --- | --- |", *rows])


def _shown(default: Any) -> str:
    return (
        "" if default in ("", None) else f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default}`"
    )


def _meaning(value: Value) -> str:
    choices = value.extra.get("enum", [])
    told = all(choice in value.meaning for choice in choices)
    text = value.meaning if told else f"{value.meaning} (one of {', '.join(choices)})"
    return text.replace("|", "\\|")


def outputs() -> dict[Path, str]:
    """What each written file should hold."""
    values = leaves(VALUES.read_text())
    head, rest = README.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    return {
        SCHEMA: json.dumps(schema(values), indent=2) + "\n",
        README: f"{head}{BEGIN}\n{table(values)}\n{END}{tail}",
    }


def main() -> int:
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        sys.stderr.write("".join(f"{path} is not what chart/values.yaml says\n" for path in stale))
        return int(bool(stale))
    for path, text in outputs().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
