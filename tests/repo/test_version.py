"""The version is the same in all files."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from support.sources import parsed

ROOT = Path(__file__).parents[2]
MEMBERS = [path for path in ROOT.glob("**/pyproject.toml") if not {".venv", ".tools"} & set(path.parts)]


def version_of(pyproject: Path) -> str:
    return str(tomllib.loads(pyproject.read_text())["project"]["version"])


VERSION = version_of(ROOT / "pyproject.toml")


def dunder_version(package: Path) -> str | None:
    for node in parsed(package).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__version__"]:
            return str(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("pyproject", MEMBERS, ids=lambda path: path.parent.name)
def test_every_member_has_the_repositorys_version(pyproject: Path) -> None:
    assert version_of(pyproject) == VERSION
    told = {dunder_version(package) for package in pyproject.parent.glob("src/pd_*/__init__.py")} - {None}
    assert told <= {VERSION}


def test_the_chart_has_it_too() -> None:
    chart = yaml.safe_load((ROOT / "k8s/chart/Chart.yaml").read_text())

    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_images_are_built_with_the_tag_that_the_chart_wants() -> None:
    tags = re.findall(r"/(?:\$\w+|proxy):(\d+\.\d+\.\d+)", (ROOT / "k8s/README.md").read_text())

    assert tags
    assert set(tags) == {VERSION}


def test_the_changelog_tells_of_it_with_a_date_below_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)", headings[1])
