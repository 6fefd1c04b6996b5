"""What the site does with links that leave docs/: they lead to the repository, or, where no address is known, become plain text."""

import logging
import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]+)\)")
WIDE_END: Final = re.compile(r"([\u3000-\u303f\uff00-\uffef])\n *(?=[^\s<]|<(?:a|code|em|strong)\b)")
log: Final = logging.getLogger("mkdocs.plugins.pdstack")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links to files of the repository; one that leads nowhere is a warning, which ends a strict build."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir).relative_to(root).as_posix()

    def replaced(link: re.Match[str]) -> str:
        path, _, anchor = link["target"].partition("#")
        inside = posixpath.normpath(posixpath.join(docs, posixpath.dirname(page.file.src_uri), path))
        if inside.startswith(f"{docs}/"):
            return link[0]
        if not (root / inside).exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, inside)
        if not config.repo_url:
            return f"{link['text']} (`{inside}`)" if inside not in link["text"] else link["text"]
        return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/main/{inside}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Chinese sentences, one a line in the source, without the blank that a line's end becomes."""
    if not page.file.src_uri.endswith(".zh.md"):
        return html
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else WIDE_END.sub(r"\1", part) for part in parts)
