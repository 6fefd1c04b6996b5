"""What the site does with pages: links that leave docs/ lead to the repository, or, where no address is known, become plain text.

A page that the Chinese site has in English only says so, its links to sections lead to those of Chinese pages, and the search lists it once.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]+)\)")
# A link to a section of another page, and a heading as the table of contents reads it.
SECTION: Final = re.compile(r"(?<=\]\()(?P<page>[\w./-]+)\.md#(?P<anchor>[\w-]+)(?=\))")
HEADING: Final = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
WIDE_END: Final = re.compile(r"([\u3000-\u303f\uff00-\uffef])\n *(?=[^\s<]|<(?:a|code|em|strong)\b)")
# Code in the cells of tables.
CELL: Final = re.compile(r"<td.*?</td>", re.DOTALL)
CODE: Final = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
# A short option or command, which would break at its hyphens.
OPTION: Final = re.compile(r"(?<![\w/.-])(?:--[a-z][a-z-]{0,24}|pd-[a-z]+)(?![\w/-])")
ENGLISH_ONLY: Final = (
    '!!! note "本页只有英文版"\n\n    中文入口见[首页](index.md)；术语见[基本概念](concepts.md#本项目的用词)。\n\n'
)
log: Final = logging.getLogger("mkdocs.plugins.pdstack")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links to files of the repository; one that leads nowhere is a warning, which ends a strict build."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir).relative_to(root).as_posix()
    aside = "（`{}`）" if page.file.src_uri.endswith(".zh.md") else " (`{}`)"

    def replaced(link: re.Match[str]) -> str:
        path, _, anchor = link["target"].partition("#")
        inside = posixpath.normpath(posixpath.join(docs, posixpath.dirname(page.file.src_uri), path))
        if inside.startswith(f"{docs}/"):
            return link[0]
        if not (root / inside).exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, inside)
        if not config.repo_url:
            return link["text"] if inside in link["text"] else f"{link['text']}{aside.format(inside)}"
        return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/main/{inside}{'#' * bool(anchor)}{anchor})"

    return _noted(LINK.sub(replaced, markdown), page)


def _noted(markdown: str, page: Page) -> str:
    """With a note below the title, where a Chinese reader gets the English page."""
    source = page.file.src_uri
    if not page.file.dest_uri.startswith("zh/") or source.endswith(".zh.md"):
        return markdown
    page.meta["search"] = {"exclude": True}  # the same page is in the index under its English address
    folder = Path(str(page.file.abs_src_path)).parent
    title, _, rest = SECTION.sub(lambda link: _chinese_section(link, folder), markdown).partition("\n")
    up = "../" * source.count("/")
    return f"{title}\n\n{ENGLISH_ONLY.replace('](', f']({up}')}{rest}"


def _chinese_section(link: re.Match[str], folder: Path) -> str:
    """A link of an English page whose target is in Chinese on that site: both have the same headings in the same order."""
    english, chinese = (folder / f"{link['page']}{suffix}" for suffix in (".md", ".zh.md"))
    if not chinese.exists():
        return link[0]
    sections = dict(zip(_anchors(english), _anchors(chinese), strict=True))
    return f"{link['page']}.md#{sections.get(link['anchor'], link['anchor'])}"


def _anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, in their order."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [slugify(case="lower")(heading["text"].replace("`", ""), "-") for heading in HEADING.finditer(text)]


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names in tables break at their parts, options not at all; Chinese sentences, one per line in the source, have no blank where a line ends."""
    html = CELL.sub(lambda cell: CODE.sub(_breakable, cell[0]), html)
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else _prose(part, page) for part in parts)


def _prose(html: str, page: Page) -> str:
    html = CODE.sub(lambda code: OPTION.sub(r'<span class="whole">\g<0></span>', code[0]), html)
    return WIDE_END.sub(r"\1", html) if page.file.src_uri.endswith(".zh.md") else html


def _breakable(code: re.Match[str]) -> str:
    """A name that a narrow window may break after `_`, `/` and `.`, and nowhere within a word."""
    return re.sub(r"(?<=\w)[_/.](?=\w)", r"\g<0><wbr>", code[0])
