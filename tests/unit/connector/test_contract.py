"""Every vLLM release that the connector claims has all that it uses. The records are read out of the wheels; a new release is added by

python tests/support/vllm_contract.py 0.34.0
"""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.vllm_contract import CACHE, LINES, RECORDS, USED, record, sources

RELEASES: dict[str, Any] = json.loads(RECORDS.read_text())
CONNECTOR = Path(__file__).parents[3] / "services/connector/src/pd_connector"


def test_these_are_the_releases_that_are_claimed() -> None:
    assert list(RELEASES) == [f"0.{minor}.0" for minor in range(23, 34)]


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_has_all_that_is_used(version: str) -> None:
    missing = [
        f"{name or path}.{member}"
        for path, classes in USED.items()
        for name, members in classes.items()
        for member in members
        if member not in RELEASES[version]["classes"].get(name or path, {})
    ]
    missing += [
        f"{path}: {line!r}, so that {why}"
        for path, lines in LINES.items()
        for line, why in lines.items()
        if f"{path}: {line}" not in RELEASES[version]["lines"]
    ]

    assert missing == []


def own_methods() -> dict[str, list[str]]:
    """Methods of P2pConnector and their parameters."""
    tree = ast.parse((CONNECTOR / "connector.py").read_text())
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "P2pConnector"]
    return {
        node.name: [one.arg for one in node.args.args]
        + [f"*{one.arg}" for one in (node.args.vararg,) if one]
        + [f"**{one.arg}" for one in (node.args.kwarg,) if one]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("version", RELEASES)
def test_its_methods_take_what_vllm_gives(version: str) -> None:
    theirs = RELEASES[version]["classes"]["KVConnectorBase_V1"]
    for name, mine in own_methods().items():
        assert name in theirs, f"{name} is no method of vLLM {version}'s connectors, so nobody calls it"
        if any(parameter.startswith("*") for parameter in mine) and "*args" in mine:
            continue
        for parameter in theirs[name]:
            taken = parameter in mine or "**kwargs" in mine
            assert taken or parameter.startswith("**"), f"{name}({parameter}) of vLLM {version}"


@pytest.mark.parametrize("version", RELEASES)
def test_the_records_are_what_the_wheel_says(version: str) -> None:
    if not (CACHE / version).exists() and not os.environ.get("FETCH_VLLM"):
        pytest.skip(f"the sources of vLLM {version} are not in {CACHE}; FETCH_VLLM=1 fetches the wheel (100 to 340 MB)")
    try:
        folder = sources(version)
    except OSError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")

    assert record(folder) == RELEASES[version]


def test_a_release_that_lacks_something_is_noticed(tmp_path: Path) -> None:
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
