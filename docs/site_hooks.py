"""What the site does with pages: links that leave docs/ lead to the repository, or, where no address is known, become plain text.

Each language has an index of its own, so that a search on a Chinese page finds Chinese pages.
"""

import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]+)\)")
WIDE_END: Final = re.compile(r"([\u3000-\u303f\uff00-\uffef])\n *(?=[^\s<]|<(?:a|code|em|strong)\b)")
# Code in the cells of tables.
CELL: Final = re.compile(r"<td.*?</td>", re.DOTALL)
CODE: Final = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
# A short option or command, which would break at its hyphens.
OPTION: Final = re.compile(r"(?<![\w/.-])(?:--[a-z][a-z-]{0,24}|pd-[a-z]+)(?![\w/-])")
# The folder to which the addresses in a search index belong; the page's search looks for the index there.
BASE: Final = re.compile(r'(?<="base": "\.\.)/\.\.(?=["/])|(?<="base": ")\.\.(?=")')
CHINESE: Final = "zh/"
INDEX: Final = "search/search_index.json"
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

    return LINK.sub(replaced, markdown)


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


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """A Chinese page searches from the folder of its language."""
    if not page.file.src_uri.endswith(".zh.md"):
        return output
    return BASE.sub(lambda base: "." if base[0] == ".." else "", output, count=1)


@event_priority(-200)  # after the i18n plugin has written what all languages have together
def on_post_build(config: MkDocsConfig) -> None:
    """Divide the search index by language; a build within the build, of one language, has nothing to divide."""
    site = Path(config.site_dir)
    whole = json.loads((site / INDEX).read_text(encoding="utf-8"))
    parts: dict[str, list[dict[str, str]]] = {"": [], CHINESE: []}
    for entry in whole["docs"]:
        folder = CHINESE if entry["location"].startswith(CHINESE) else ""
        parts[folder].append({**entry, "location": entry["location"].removeprefix(folder)})
    for folder, entries in parts.items():
        path = site / folder / INDEX
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**whole, "docs": entries}, ensure_ascii=False), encoding="utf-8")
