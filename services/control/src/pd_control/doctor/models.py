"""The contents of a model's directory, read without any machine-learning library."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.libraries import plain
from pd_control.doctor.facts import Model

WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
INDEX: Final = "*.index.json"


def look(name: str, environment: Mapping[str, str]) -> Model:
    """Read the directory that MODEL names, or that Hugging Face's cache on this machine has for the name."""
    path = Path(name).expanduser()
    local = bool(name) and (path.exists() or name.startswith(("/", ".", "~")))
    if not local:
        cached = _cached(name, environment)
        if cached is None:
            return Model(name=name)
        path = cached
    if not (path / "config.json").is_file():
        return Model(name=name, local=True, exists=path.exists())
    try:
        config = _read(path / "config.json")
        size = _tokenizer_vocabulary(path)
        missing = list(_missing(path))
    except (OSError, ValueError) as error:
        return Model(name=name, local=True, exists=True, config=True, problem=str(error))
    told = {**config, **(config.get("text_config") or {})}
    return Model(
        name=name,
        local=True,
        exists=True,
        config=True,
        vocabulary=told.get("vocab_size"),
        tokenizer=any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")),
        tokenizer_vocabulary=size,
        longest=None if told.get("rope_scaling") else told.get("max_position_embeddings"),
        heads=told.get("num_attention_heads"),
        weights=sum(1 for pattern in WEIGHTS for _ in path.glob(pattern)),
        missing=missing,
    )


def _cached(name: str, environment: Mapping[str, str]) -> Path | None:
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    found = hub.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json") if name else ()
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return newest and newest.parent


def _read(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: naming the file, for anything else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        msg = f"{path}: {plain(error)}"
        raise ValueError(msg) from error


def _tokenizer_vocabulary(path: Path) -> int | None:
    """One more than the highest id; None if only a tokenizer library could read it."""
    ids = list(_ids(path))
    return max(ids) + 1 if ids else None


def _ids(path: Path) -> Iterator[int]:
    fast, plain = path / "tokenizer.json", path / "vocab.json"
    if fast.is_file():
        told = _read(fast)
        vocabulary = (told.get("model") or {}).get("vocab") or {}
        # Unigram models list their tokens in order instead of numbering them.
        yield from vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        yield from (token["id"] for token in told.get("added_tokens") or [])
    elif plain.is_file():
        yield from _read(plain).values()
        if (path / "added_tokens.json").is_file():
            yield from _read(path / "added_tokens.json").values()


def _missing(path: Path) -> Iterator[str]:
    for index in sorted(path.glob(INDEX)):
        named = set((_read(index).get("weight_map") or {}).values())
        yield from sorted(name for name in named if not (path / name).exists())
