"""Commands of the guides do what the pages say: the quick ones always, all of them by `make guides`."""

import os
from pathlib import Path

import pytest
from support.documents import ROOT, Block, Sandbox, blocks, guides, missing, sandbox

# A busy machine makes a client late; whether it was is not what these pages are about.
CALM = {"LOADGEN_LAG_LIMIT_MS": "5000"}
QUICK = [page for page in guides() if any(block.quick for block in blocks(page))]
ALL = [page for page in guides() if any(block.runs for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def check(block: Block, box: Sandbox) -> None:
    for command in block.commands:
        status, output = box.run(command.text)

        assert status == block.options.get("status", 0), f"{command.text}\n{output}"
        assert missing(command.shown, output) == [], f"{command.text}\n{output}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", QUICK, ids=name)
def test_quick_commands_do_what_the_page_says(page: Path, tmp_path: Path) -> None:
    with sandbox(tmp_path, **CALM) as box:
        for block in blocks(page):
            if block.quick:
                check(block, box)


@pytest.mark.guides
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("page", ALL, ids=name)
def test_all_commands_do_what_the_page_says(page: Path, tmp_path: Path) -> None:
    with sandbox(tmp_path, **CALM) as box:
        for block in blocks(page):
            if block.runs and (not block.long or os.environ.get("GUIDES_LONG")):
                check(block, box)
