"""Every vLLM release that the connector claims has all that it uses. The records are read out of the wheels; a new release is added by

python tests/support/vllm_contract.py 0.34.0
"""

import ast
import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.sources import parsed
from support.vllm_contract import CACHE, LINES, RECORDS, USED, record, sources

RELEASES: dict[str, Any] = json.loads(RECORDS.read_text())
CONNECTOR = Path(__file__).parents[3] / "services/connector/src/pd_connector"


def test_these_are_the_releases_that_are_claimed() -> None:
    assert list(RELEASES) == [f"0.{minor}.0" for minor in range(23, 34)]


def missing(release: dict[str, Any]) -> list[str]:
    """What a release lacks of all that is used."""
    return [
        f"{name or path}.{member}"
        for path, classes in USED.items()
        for name, members in classes.items()
        for member in members
        if member not in release["classes"].get(name or path, {})
    ] + [
        f"{path}: {line!r}, so that {why}"
        for path, lines in LINES.items()
        for line, why in lines.items()
        if f"{path}: {line}" not in release["lines"]
    ]


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_has_all_that_is_used(version: str) -> None:
    assert missing(RELEASES[version]) == []


def own_methods() -> dict[str, list[str]]:
    """Methods of P2pConnector and their parameters."""
    tree = parsed(CONNECTOR / "connector.py")
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "P2pConnector"]
    return {
        node.name: [one.arg for one in node.args.args]
        + [f"*{one.arg}" for one in (node.args.vararg,) if one]
        + [f"**{one.arg}" for one in (node.args.kwarg,) if one]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }


def misfits(release: dict[str, Any]) -> list[str]:
    """Methods that nobody would call, and parameters that are given and not taken."""
    theirs, found = release["classes"]["KVConnectorBase_V1"], []
    for name, mine in own_methods().items():
        if name not in theirs:
            found.append(f"{name} is no method of a connector, so nobody calls it")
        elif "*args" not in mine and "**kwargs" not in mine:
            found += [f"{name}({one})" for one in theirs[name] if one not in mine and not one.startswith("**")]
    return found


@pytest.mark.parametrize("version", RELEASES)
def test_its_methods_take_what_vllm_gives(version: str) -> None:
    assert misfits(RELEASES[version]) == []


@pytest.mark.parametrize("version", RELEASES)
def test_the_records_are_what_the_wheel_says(version: str) -> None:
    if not (CACHE / version).exists() and not os.environ.get("FETCH_VLLM"):
        pytest.skip(f"the sources of vLLM {version} are not in {CACHE}; FETCH_VLLM=1 fetches the wheel (100 to 340 MB)")
    try:
        folder = sources(version)
    except OSError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")

    assert record(folder) == RELEASES[version]


def test_whatever_a_later_release_lacks_is_named() -> None:
    latest = RELEASES[list(RELEASES)[-1]]
    for name, members in latest["classes"].items():
        for member in members:
            later = copy.deepcopy(latest)
            del later["classes"][name][member]
            assert missing(later) == [f"{name}.{member}"]
    for line in latest["lines"]:
        assert len(missing({**latest, "lines": [one for one in latest["lines"] if one != line]})) == 1


def test_whatever_a_later_release_gives_in_addition_is_named() -> None:
    latest = RELEASES[list(RELEASES)[-1]]
    for name, mine in own_methods().items():
        later = copy.deepcopy(latest)
        later["classes"]["KVConnectorBase_V1"][name].append("news")
        taken = "*args" in mine or "**kwargs" in mine
        assert misfits(later) == ([] if taken else [f"{name}(news)"])
        del later["classes"]["KVConnectorBase_V1"][name]
        assert misfits(later) == [f"{name} is no method of a connector, so nobody calls it"]


def test_a_release_whose_sources_differ_is_noticed(tmp_path: Path) -> None:
    for path in {*USED, *LINES}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("class KVConnectorBase_V1:\n    def get_finished(self, other): ...\n")
    found = record(tmp_path)

    assert found == {
        "classes": {
            "KVConnectorBase_V1": {"get_finished": ["self", "other"]},
            "vllm/distributed/parallel_state.py": {},
        },
        "lines": [],
    }
