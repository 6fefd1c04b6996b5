"""The schema allows no unknown values, and agrees with values.yaml, as does the README's table."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.chart import CHART, ROOT

sys.path.insert(0, str(ROOT / "k8s"))

from value_definitions import pattern
from write_values import leaves

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from objects(value, f"{path}/{index}")


def test_schema_and_table_are_written_from_values_yaml() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "k8s/write_values.py", "--check"], check=False, capture_output=True, text=True
    )

    assert check.returncode == 0, f"{check.stderr}run python k8s/write_values.py"


def patterns(node: Any) -> Iterator[str]:
    """Every pattern of the schema."""
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from patterns(below)


def test_every_pattern_begins_with_what_it_asks_for() -> None:
    found = list(patterns(SCHEMA))

    assert len(found) > 50
    assert [it for it in found if not re.match(r"\^\([a-zA-Z][^()]{8,}\)\{0\}", it)] == []


@pytest.mark.parametrize("words", ["a (b)", "a+", "a|b", "a[b]", "2^3", "a?"])
def test_words_of_a_pattern_mean_nothing_in_it(words: str) -> None:
    with pytest.raises(ValueError, match="cannot be in the words of a pattern"):
        pattern(words, "x")


def test_a_meaning_of_two_lines_is_refused_and_not_cut() -> None:
    text = "# -- what it does, and\n# more of it\n# @ {minimum: 1}\ncount: 1\n"

    with pytest.raises(ValueError, match="one line, and this is a second one: # more of it"):
        leaves(text)

    [value] = leaves(text.replace("# more of it\n", ""))
    assert (value.path, value.meaning, value.extra) == (("count",), "what it does, and", {"minimum": 1})


def test_no_object_takes_unknown_keys() -> None:
    found = dict(objects(SCHEMA))

    assert len(found) > 20
    assert [path for path, node in found.items() if "additionalProperties" not in node] == []
    # Maps, whose keys are the user's, say what their values are.
    free = [path for path, node in found.items() if node["additionalProperties"] is not False]
    assert all(
        "type" in found[path]["additionalProperties"] or "$ref" in found[path]["additionalProperties"] for path in free
    )


def test_the_schema_knows_exactly_the_keys_of_values_yaml() -> None:
    def keys(schema: dict[str, Any], values: Any, path: str) -> None:
        if values and "properties" in schema:  # {} is a value: what may be in it is Kubernetes' own
            assert set(schema["properties"]) == set(values), path
            for key, node in schema["properties"].items():
                keys(node, values[key], f"{path}.{key}")

    keys(SCHEMA, yaml.safe_load((CHART / "values.yaml").read_text()), "")


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())

    def names(schema: dict[str, Any]) -> Iterator[str]:
        for key, node in schema.get("properties", {}).items():
            yield key
            if "required" in node:  # else it is a value: what may be in it is Kubernetes' own
                yield from names(node)

    # prefillHttp and the like are put together from the role.
    together = {"prefillHttp", "decodeHttp", "combinedHttp", "prefillKv", "decodeKv", "combinedKv"}
    assert [name for name in names(SCHEMA) if name not in together and f".{name}" not in templates] == []
