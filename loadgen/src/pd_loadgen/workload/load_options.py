"""Which options make a load, besides those that records have fields for: two loads are the same only if these are equal too. Pure."""

from pathlib import Path
from typing import Final

from pd_contracts.settings import fields, shown
from pd_loadgen.workload.option_fields import OptionFields

_PROMPTS: Final = (
    "dataset_path", "dataset_split", "dataset_column", "tokenizer", "range_ratio", "prefix_tokens", "prefixes", "turns", "answers", "think_time",
    "images", "image_size", "audios", "audio_seconds", "vocab_size",
)  # fmt: skip
_PACE: Final = ("start_rate", "steps", "trace", "time_scale")
# How a server is asked to answer a prompt.
ASKED: Final = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "extra_body", "ignore_eos", "return_token_ids",
)  # fmt: skip
# Paths are left out: the same file may lie elsewhere on another machine.
_FILES: Final = frozenset({"dataset_path", "trace"})


def load_options(options: OptionFields, *, known: bool) -> dict[str, str]:
    """The options that are not at their defaults, as texts by name; where requests are not all of the options' lengths, these too."""
    names = (*_PROMPTS, *_PACE, *ASKED, *(() if known else ("input_tokens", "output_tokens")))
    return _chosen(options, names)


def asked(options: OptionFields) -> dict[str, str]:
    """Those of them that do not show in the prompts."""
    return _chosen(options, ASKED)


def _chosen(options: OptionFields, names: tuple[str, ...]) -> dict[str, str]:
    every = {field.name: field for field in fields(type(options))}
    values = {name: getattr(options, name) for name in names}
    return {
        name: Path(value).name if name in _FILES else shown(value)
        for name, value in values.items()
        if value != every[name].default
    }
