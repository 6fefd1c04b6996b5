"""The options by subject, for the start form and for `--help`."""

from collections.abc import Iterable
from typing import Final

from pd_contracts.settings import Field

MAIN: Final = "Load"
REST: Final = "Results"
# The options that most runs set come first; those under no other subject are about the results.
_SUBJECTS: Final = {
    MAIN: (
        "url", "model", "endpoint", "dataset", "input_tokens", "output_tokens", "arrival", "rate", "duration", "warmup", "seed",
        "goodput", "label",
    ),
    "Prompts": (
        "dataset_path", "dataset_split", "dataset_column", "tokenizer", "range_ratio", "prefix_tokens", "prefixes", "turns", "answers", "think_time", "images",
        "image_size", "audios", "audio_seconds", "vocab_size",
    ),
    "Pace": (
        "mode", "requests", "max_concurrency", "burstiness", "start_rate", "steps", "trace", "time_scale", "batch_sizes",
        "timeout", "processes",
    ),
    "Sampling": (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "ignore_eos", "return_token_ids", "extra_body",
    ),
    "Server": ("path", "headers", "api_key_file", "ca_file", "insecure", "ready_timeout", "engine_profile", "profile_urls"),
}  # fmt: skip


def by_subject(fields: Iterable[Field]) -> dict[str, list[Field]]:
    """The fields under their subjects, the main ones first; a subject without a field is left out."""
    left = {field.name: field for field in fields}
    groups = {title: [left.pop(name) for name in names if name in left] for title, names in _SUBJECTS.items()}
    groups[REST] = list(left.values())
    return {title: found for title, found in groups.items() if found}
