"""Python sources as syntax trees."""

import ast
import gc
from pathlib import Path


def parsed(path: Path) -> ast.Module:
    """The file's syntax tree.

    Python 3.11 fails with a SystemError if an object that is collected meanwhile prints a traceback, which parses the line at fault.
    """
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()
