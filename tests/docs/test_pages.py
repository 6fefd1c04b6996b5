"""The guides: equal in both languages, every command is run or says why not, and the site builds."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from support.documents import DOCS, ROOT, blocks, guides, headings, translation

from pd_monitor.settings import Settings

PAGES = guides()
BOTH = [each for page in PAGES for each in (page, translation(page))]
# Every page, since a Chinese reader has them all.
PAIRS = [page for page in sorted(DOCS.glob("**/*.md")) if not page.name.endswith(".zh.md")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAIRS, ids=name)
def test_both_languages_have_the_same_headings(page: Path) -> None:
    assert headings(page) == headings(translation(page))


@pytest.mark.parametrize("page", PAIRS, ids=name)
def test_both_languages_have_the_same_blocks_of_code(page: Path) -> None:
    def shape(path: Path) -> list[tuple[str, tuple[str, ...], bool, bool]]:
        return [(block.language, block.lines, block.runs, block.quick) for block in blocks(path)]

    assert shape(page) == shape(translation(page))


def test_the_first_load_of_the_beginners_guide_records_the_power_of_the_monitor_that_up_has_started() -> None:
    load = next(line for line in (DOCS / "beginner.md").read_text().splitlines() if line.startswith("$ pd-loadgen run"))

    assert f"--monitor http://127.0.0.1:{Settings().monitor_port}" in load


@pytest.mark.parametrize("page", BOTH, ids=name)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    excused = [block for block in blocks(page) if block.is_shell and not block.runs]

    assert [block.lines for block in excused if not (block.directive and block.directive["reason"])] == []


@pytest.mark.parametrize("page", BOTH, ids=name)
def test_a_comment_that_nearly_is_a_directive_is_one(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if line.strip().startswith(("<!-- run", "<!-- shown"))]

    assert len(lines) == sum(block.directive is not None for block in blocks(page))


def _site() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506  plain texts only
    return settings


def _chinese_names() -> dict[str, str]:
    (plugin,) = [each["i18n"] for each in _site()["plugins"] if "i18n" in each]
    (chinese,) = [each["nav_translations"] for each in plugin["languages"] if each["locale"] == "zh"]
    return dict(chinese)


def test_every_entry_of_the_navigation_has_its_chinese_name() -> None:
    assert set(titles(_site()["nav"])) - {"pdctl"} == set(_chinese_names())


def titles(entries: list[Any]) -> Iterator[str]:
    """The names in a navigation, of pages and of groups."""
    for entry in entries:
        if isinstance(entry, dict):
            yield from entry
            for below in entry.values():
                yield from titles(below) if isinstance(below, list) else ()


@pytest.mark.timeout(400)  # half a minute of CPU, and machines differ
def test_the_site_builds_and_every_link_and_anchor_leads_somewhere(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"zh"} <= {path.name for path in tmp_path.iterdir()}
    fetched = [
        (page.name, address)
        for page in pages
        for address in _loaded(page.read_text(encoding="utf-8"))
        if address.startswith(("http:", "https:", "//"))
    ]
    assert fetched == []
    settings = (tmp_path / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "<code>PREFILL_<wbr>HTTP_<wbr>PORT</code>" in settings  # a narrow window breaks a name at its parts only
    assert '<span class="whole">--http-proxy-port</span>' in settings  # and an option nowhere
    assert _dead_ends(tmp_path) == []
    menu = re.findall(r'md-ellipsis">\s*(.*?)\s*<', (tmp_path / "zh" / "index.html").read_text(encoding="utf-8"))
    assert set(_chinese_names().values()) - set(menu) == set()  # a section's first page has its own line, too
    _check_search(tmp_path)


def _dead_ends(site: Path) -> list[tuple[str, str]]:
    """Links to sections that are not there; mkdocs looks at those of the default language only."""
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    anchors = {page: set(map(unquote, re.findall(r'\bid="?([^" >]+)', text))) for page, text in texts.items()}
    found = []
    for page, text in texts.items():
        for path, anchor in re.findall(r'href="(?!\w+:|//)([^"#]*)#([^"]+)"', text):
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if unquote(anchor) not in anchors.get(target, ()):
                found.append((str(page.relative_to(site)), f"{path}#{anchor}"))
    return sorted(found)


def _check_search(site: Path) -> None:
    """Each language finds its own pages, and Chinese words one by one."""
    found = {}
    for home in ("", "zh"):
        page = site / home / "beginner" / "index.html"
        settings = re.search(r'<script id="?__config"?[^>]*>(.*?)</script>', page.read_text(encoding="utf-8"))
        assert settings
        base = (page.parent / json.loads(settings[1])["base"]).resolve()
        assert base == (site / home).resolve()
        index = json.loads((base / "search" / "search_index.json").read_text(encoding="utf-8"))
        assert [entry for entry in index["docs"] if not (base / entry["location"].partition("#")[0]).is_dir()] == []
        found[home] = {word for each in index["docs"] for word in re.split(index["config"]["separator"], each["title"])}
    assert "Beginner's" in found[""]
    assert not {"指南", "报告", "常见问题"} & found[""]
    assert "Beginner's" not in found["zh"]
    assert {"指南", "报告", "常见问题"} <= found["zh"]


def _loaded(page: str) -> list[str]:
    """Addresses that a browser fetches by itself."""
    tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", page)
    passive = ('rel="canonical"', 'rel="alternate"', 'rel="prev"', 'rel="next"')
    return [
        at
        for tag in tags
        if not any(word in tag for word in passive)
        for at in re.findall(r'(?:src|href)="?([^" >]+)', tag)
    ]


CHINESE = [
    *sorted(DOCS.glob("**/*.zh.md")),
    ROOT / "README.zh.md",
    ROOT / "analysis/src/pd_analysis/words/zh.po",
]
# One word for a thing, the one that vLLM's users say: the other, and where it may stand to explain it.
TERMS = {
    "token": "词元|令牌",
    "prefill": "预填充(?!）)",
    "decode": "(?<!推测)解码(?!）)",
    "你": "您",
    "请求": "要求数",
    "吞吐量": "吞吐率",
    "负载生成器": "负载发生器",
    "能量计数器": "能耗计数器|电能计数器",
    "百分位数": "(?<!百)分位数",
    "聚合部署、普通引擎": "合并部署|合并引擎|合并 GPU",
    "GPU": "显卡|板卡",
    "块 GPU": "[每某各]个 GPU(?! 节点)",
    "CPU": "处理器",
}


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_a_thing_has_one_chinese_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert {
        word: re.findall(f".{{0,8}}(?:{other}).{{0,8}}", text)
        for word, other in TERMS.items()
        if re.search(other, text)
    } == {}
