"""Writes chart/values.schema.json and the table of values in README.md from chart/values.yaml; `--check` only compares.

values.yaml is kept plain: block maps, one key per line, `# --` with the meaning above each value and `# @` with what the
default alone does not say of its schema.
"""
# ruff: noqa: INP001  a script, not a package

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

HERE = Path(__file__).parent
VALUES, SCHEMA, README = HERE / "chart/values.yaml", HERE / "chart/values.schema.json", HERE / "README.md"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}

QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {"type": "object", "additionalProperties": {"$ref": "#/definitions/quantity"}}


def closed(**properties: Any) -> dict[str, Any]:
    """An object that takes these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


LIST = {"type": "array"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
SELECTOR = closed(matchLabels={"$ref": "#/definitions/strings"})
DEFINITIONS: dict[str, Any] = {
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "quantity": QUANTITY,
    "strings": STRINGS,
    "resources": closed(requests=QUANTITIES, limits=QUANTITIES),
    "tolerations": {
        "type": "array",
        "items": closed(
            key={"type": "string"},
            operator={"enum": ["Exists", "Equal"]},
            value={"type": "string"},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            tolerationSeconds={"type": "integer"},
        ),
    },
    "affinity": closed(
        nodeAffinity=closed(**{REQUIRED: closed(nodeSelectorTerms=LIST), PREFERRED: LIST}),
        podAffinity=closed(**{REQUIRED: LIST, PREFERRED: LIST}),
        podAntiAffinity=closed(**{REQUIRED: LIST, PREFERRED: LIST}),
    ),
    "peers": {
        "type": "array",
        "items": {
            "minProperties": 1,
            **closed(
                namespaceSelector=SELECTOR,
                podSelector=SELECTOR,
                ipBlock={
                    "required": ["cidr"],
                    **closed(cidr={"type": "string"}, **{"except": {"type": "array", "items": {"type": "string"}}}),
                },
            ),
        },
    },
}


class Value(msgspec.Struct, frozen=True):
    """One leaf of values.yaml."""

    path: tuple[str, ...]
    meaning: str
    extra: dict[str, Any]
    default: Any


def leaves(text: str) -> list[Value]:
    """All values with what their comments say, in order.

    Raises:
        ValueError: if a value has no meaning.
    """
    document = yaml.safe_load(text)
    found: list[Value] = []
    path: list[str] = []
    meaning, extra = "", {}
    below = -1  # indentation of a value that is itself a map, whose lines are part of its default
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if match := re.fullmatch(r"\s*# -- (.*)", line):
            meaning, below = match[1], -1
        elif match := re.fullmatch(r"\s*# @ (.*)", line):
            extra = yaml.safe_load(match[1])
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
    """The JSON schema: nothing that is not in values.yaml is accepted."""
    root: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", **closed()}
    for value in values:
        node = root
        for key in value.path[:-1]:
            node = node["properties"].setdefault(key, closed())
        node["properties"][value.path[-1]] = _leaf(value)
    return {**root, "definitions": DEFINITIONS}


def _leaf(value: Value) -> dict[str, Any]:
    if "$ref" in value.extra:  # draft 7 ignores whatever stands beside a $ref
        return {"description": value.meaning, "allOf": [value.extra]}
    return {"description": value.meaning, "type": TYPES.get(type(value.default), "null"), **value.extra}


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
