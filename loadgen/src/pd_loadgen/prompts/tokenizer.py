"""How many tokens a text has: by the model's tokenizer if it is available, else by an estimate.

A tokenizer is read by the library `tokenizers` (`pip install pd-loadgen[tokenizer]`), or by transformers if that is installed. Nothing is
downloaded unless a name at Hugging Face is given by hand.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.token_estimate import estimated_tokens

ESTIMATE: Final = "estimate"
_FILE: Final = "tokenizer.json"
_INSTALL: Final = "install pd-loadgen[tokenizer]"
Count = Callable[[str], int]


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens; `source` says how, for the run's notes."""

    count: Count
    source: str


def find(name: str, model: str) -> TokenCounter:
    """The counter to use.

    Args:
        name: a file, a folder, a name at Hugging Face, or ESTIMATE; empty takes the model's, if it is on this machine.
        model: the served model's name, which may be its folder.

    Raises:
        FileError: if the named tokenizer is not available.
    """
    if name == ESTIMATE:
        return _estimate("")
    if name:
        return TokenCounter(_named(name), f"the tokenizer {Path(name).name if Path(name).exists() else name}")
    folder = _local(model)
    if folder is None:
        return _estimate(f"no tokenizer of {model} on this machine; --tokenizer names one")
    try:
        return TokenCounter(_read(folder), f"the tokenizer of {model}")
    except FileError as error:
        return _estimate(str(error))


def _estimate(reason: str) -> TokenCounter:
    return TokenCounter(estimated_tokens, "an estimate by script" + (f" ({reason})" if reason else ""))


def _local(model: str) -> Path | None:
    """The folder of a model's files: the model's name itself, or Hugging Face's cache."""
    if model and Path(model).is_dir():
        return Path(model)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{model.replace('/', '--')}"
    snapshots = sorted(cache.glob("snapshots/*"), key=lambda found: found.stat().st_mtime)
    return snapshots[-1] if snapshots and model else None


def _named(name: str) -> Count:
    path = Path(name)
    return _read(path) if path.exists() else _fetched(name)


def _read(path: Path) -> Count:
    """A tokenizer's file, or the one in a folder."""
    file = path / _FILE if path.is_dir() else path
    if not file.exists():
        return _by_transformers(str(path))
    tokenizer = _library()
    try:
        read = tokenizer.from_file(str(file))
    except Exception as error:  # the library raises the plain class
        msg = f"{file}: no tokenizer: {error}"
        raise FileError(msg) from error
    return lambda text: len(read.encode(text, add_special_tokens=False).ids)


def _fetched(name: str) -> Count:
    tokenizer = _library()
    try:
        read = tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises the plain class: no network, no such model
        said = " ".join(str(error).split())[:200]
        msg = f"tokenizer {name}: neither a local file or folder nor available from Hugging Face: {said}"
        raise FileError(msg) from error
    return lambda text: len(read.encode(text, add_special_tokens=False).ids)


def _library() -> Any:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  an extra, which only this needs
    except ImportError:
        msg = f"a tokenizer needs its library: {_INSTALL}"
        raise FileError(msg) from None
    return Tokenizer


def _by_transformers(folder: str) -> Count:
    """For models whose tokenizer has a form of its own (SentencePiece, tiktoken)."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  an optional dependency
    except ImportError:
        msg = f"{folder} has no {_FILE}, and other tokenizers need transformers"
        raise FileError(msg) from None
    try:
        read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        msg = f"{folder}: no tokenizer: {' '.join(str(error).split())[:200]}"
        raise FileError(msg) from error
    return lambda text: len(read.encode(text, add_special_tokens=False))
