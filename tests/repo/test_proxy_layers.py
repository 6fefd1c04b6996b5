"""The proxy's folders import one way, as its README says: from the top of this list down."""

import ast
from pathlib import Path

PROXY = Path(__file__).parents[2] / "services/proxy/src/pd_proxy"
# Folders of one line know nothing of each other; the files at the bottom are for everybody.
LAYERS = [
    {"__main__"},
    {"processes"},
    {"api"},
    {"background"},
    {"request"},
    {"context"},
    {"upstream", "discovery"},
    {"kv"},
    {"settings", "metrics", "access", "tasks", "engines", "protocol", "errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path: Path) -> str:
    return path.relative_to(PROXY).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    return {name.split(".")[1] for name in names if name.startswith("pd_proxy.")}


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in PROXY.rglob("*.py")} - {"__init__"}

    assert parts == set(LEVEL)


def test_nothing_imports_from_above_or_beside() -> None:
    bottom = len(LAYERS) - 1
    wrong = [
        f"{path.relative_to(PROXY)} imports {name}"
        for path in PROXY.rglob("*.py")
        if (part := part_of(path)) != "__init__"
        for name in imported(path) - {part}
        if LEVEL[name] < LEVEL[part] or LEVEL[name] == LEVEL[part] != bottom
    ]

    assert wrong == []
