"""The folders of each member import one way, as its README says, and no module takes part in an import circle."""

import ast
from functools import cache
from pathlib import Path

import pytest
from support.sources import parsed

ROOT = Path(__file__).parents[2]
SOURCES = {
    package.name: package
    for package in (path for folder in ROOT.glob("**/pyproject.toml") for path in folder.parent.glob("src/pd_*"))
    if ".venv" not in package.parts
}
# From the top down. Parts of one line know nothing of each other; the parts at the bottom are for everybody.
LAYERS: dict[str, list[set[str]]] = {
    "pd_proxy": [
        {"__main__"},
        {"main"},
        {"processes"},
        {"api"},
        {"background"},
        {"request", "supervisor"},
        {"context"},
        {"upstream", "discovery"},
        {"kv"},
        {"settings"},
        {"router"},
        {"metrics", "access", "tasks", "refused", "shortage", "sparing", "uploads", "engines", "protocol", "errors"},
    ],
    "pd_loadgen": [
        {"__main__"},
        {"main", "locustfile"},
        {"live", "commands"},
        {"series"},
        {"results", "target"},
        {"workload"},
        {"client"},
        {"prompts", "verdict"},
    ],
    "pd_loadgen.live": [
        {"headless"},
        {"ui"},
        {"user"},
        {"run"},
        {"instruments"},
        {"processes"},
        {"sending"},
        {"terminal"},
    ],
    "pd_analysis": [
        {"__main__"},
        {"main"},
        {"report"},
        {"plots", "conclusions"},
        {"tables", "doubts"},
        {"numbers"},
        {"energy"},
        {"records", "words", "settings"},
    ],
    "pd_control": [
        {"__main__"},
        {"main"},
        {"cli"},
        {"compare"},
        {"docker"},
        {"local"},
        {"doctor"},
        {"context"},
        {"supervision"},
        {"planning"},
        {"settings", "env_files", "client", "terminal"},
    ],
    "pd_planner": [
        {"__main__"},
        {"main"},
        {"cli"},
        {"report"},
        {"emit"},
        {"confidence"},
        {"search", "calibrate"},
        {"des"},
        {"profile", "traffic", "cores"},
    ],
    "pd_routing": [
        {"adaptive", "reject", "books"},
        {"predict", "pace"},
        {"costs", "view", "names"},
    ],
    "pd_simulator": [
        {"__main__"},
        {"main"},
        {"server"},
        {"api"},
        {"engine"},
        {"steps", "transfer"},
        {"settings", "profile", "faults", "errors", "clock", "tokenizer", "kv_blocks"},
    ],
    "pd_connector": [
        {"connector"},
        {"engine"},
        {"net"},
        {"core", "memory"},
        {"wire", "settings"},
    ],
}


@cache
def modules(member: str) -> dict[str, Path]:
    """Every module of a member by its dotted name."""
    root = SOURCES[member]
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(member: str) -> dict[str, set[str]]:
    """Which modules of its member each module imports, in functions and under TYPE_CHECKING too."""
    known = modules(member)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        wanted: set[str] = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= inner & set(known) or {node.module}
        found[name] = wanted & set(known) - {name}
    return found


def part_of(module: str, package: str) -> str | None:
    """The part of a package that a module belongs to; None for the package itself and for what lies outside."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing, or only such modules, are taken away again and again."""
    left = dict(arrows)
    while free := [name for name, wanted in left.items() if not wanted & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("package", LAYERS)
def test_every_part_has_its_place(package: str) -> None:
    parts = {part_of(name, package) for name in modules(package.split(".", maxsplit=1)[0])} - {None}

    assert parts == set().union(*LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_nothing_imports_from_above_or_beside(package: str) -> None:
    level = {name: number for number, names in enumerate(LAYERS[package]) for name in names}
    bottom = len(LAYERS[package]) - 1
    wrong = [
        f"{name} imports {other}"
        for name, wanted in imports(package.split(".", maxsplit=1)[0]).items()
        for other in wanted
        if (part := part_of(name, package)) and (beside := part_of(other, package)) and part != beside
        if level[beside] < level[part] or level[beside] == level[part] != bottom
    ]

    assert wrong == []


@pytest.mark.parametrize("member", sorted(SOURCES))
def test_no_module_is_part_of_an_import_circle(member: str) -> None:
    assert len(modules(member)) > 1

    assert circles(imports(member)) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
