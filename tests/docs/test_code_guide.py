"""The worked changes of the code guide are code that runs, with tests that pass."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from support.documents import DOCS, Block, blocks

WORKED = [block for block in blocks(DOCS / "code-guide.md") if block.language == "python"]


@pytest.mark.parametrize("block", WORKED, ids=lambda block: f"line {block.first}")
def test_a_worked_change_does_what_its_test_says(block: Block, tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "worked"}
    exec(compile("\n" * block.first + "\n".join(block.lines), str(block.page), "exec"), names)  # noqa: S102  our own page
    tests = [each for name, each in names.items() if name.startswith("test_")]

    assert tests
    for test in tests:
        test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))
