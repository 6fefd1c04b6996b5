"""Combinations of options that cannot work: a table of rules, each with its sentence. Pure."""

from collections.abc import Callable
from math import isinf
from typing import Final

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Answers, Dataset
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.option_fields import OptionFields
from pd_loadgen.workload.pace import endless, not_finite, too_many
from pd_loadgen.workload.schedule import Arrival

_TAKE_IDS: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.SGLANG})
_CONVERSE: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.CHAT})
_FROM_FILES: Final = frozenset({Dataset.JSONL, Dataset.SHAREGPT, Dataset.HUGGINGFACE})
_RISING: Final = frozenset({Arrival.RAMP, Arrival.STEP})


def conflict(chosen: OptionFields) -> str:
    """Why the options cannot work together, in one sentence; empty if they can."""
    if name := not_finite(chosen):
        return f"{name} must be a finite number"
    return next((sentence.format(chosen) for applies, sentence in RULES if applies(chosen)), "")


def _can_converse(o: OptionFields) -> bool:
    return o.mode is Mode.SERVE and o.turns > 1 and o.dataset is Dataset.TEXT and o.endpoint in _CONVERSE


def _can_show(o: OptionFields) -> bool:
    return o.dataset is Dataset.TEXT and o.endpoint is Endpoint.CHAT and o.turns == 1


# Whether it applies, and what it says: `{0.rate}` is the option's value.
RULES: Final[tuple[tuple[Callable[[OptionFields], bool], str], ...]] = (
    (
        lambda o: isinf(o.rate) and o.arrival in _RISING,
        "arrival {0.arrival} rises to a rate: give one that is finite",
    ),
    (
        lambda o: isinf(o.duration) and o.arrival in _RISING,
        "arrival {0.arrival} rises over a duration: give one that is finite",
    ),
    (
        lambda o: endless(o) and isinf(o.rate),
        "rate inf sends all requests at once: say how many with --requests",
    ),
    (endless, "duration inf has no end: say how many with --requests"),
    (
        too_many,
        "these requests are too many or too long to be held in memory: lower rate, duration or --requests",
    ),
    (
        lambda o: o.dataset is Dataset.RANDOM and o.endpoint not in _TAKE_IDS,
        "dataset random sends token ids, which the {0.endpoint} endpoint does not take: use dataset text or endpoint completions",
    ),
    (
        lambda o: o.burstiness != 1 and o.arrival is not Arrival.GAMMA,
        "burstiness {0.burstiness:g} needs arrival gamma",
    ),
    (
        lambda o: o.dataset in _FROM_FILES and not o.dataset_path,
        "dataset {0.dataset} needs its file: --dataset-path",
    ),
    (
        lambda o: bool(o.dataset_path) and o.dataset not in _FROM_FILES,
        "dataset {0.dataset} reads no file: leave --dataset-path out",
    ),
    (
        lambda o: o.dataset in _FROM_FILES and bool(o.range_ratio or o.prefix_tokens or o.turns > 1),
        "range-ratio, prefix-tokens and turns are for generated prompts: use dataset random or text",
    ),
    (
        lambda o: o.turns > 1 and bool(o.range_ratio or o.prefix_tokens or o.trace),
        "turns define their own lengths and prefixes: leave out range-ratio, prefix-tokens and trace",
    ),
    (lambda o: o.prefixes > 1 and not o.prefix_tokens, "prefixes need --prefix-tokens"),
    (
        lambda o: o.start_rate > 0 and o.arrival not in _RISING,
        "start-rate is for arrival ramp or step, not {0.arrival}",
    ),
    (lambda o: o.arrival is Arrival.REPLAY and not o.trace, "arrival replay needs a --trace"),
    (lambda o: bool(o.trace) and o.arrival is not Arrival.REPLAY, "--trace needs --arrival replay"),
    (lambda o: o.time_scale != 1 and not o.trace, "time-scale needs a trace"),
    (
        lambda o: bool(o.trace) and bool(o.range_ratio or o.prefix_tokens),
        "a trace has the lengths: leave range-ratio and prefix-tokens out",
    ),
    (
        lambda o: o.mode is Mode.SERVE and o.arrival is Arrival.CLOSED and not (o.requests and o.max_concurrency),
        "arrival closed needs --max-concurrency and --requests",
    ),
    (
        lambda o: o.mode is Mode.PHASE_SPLIT and not o.requests,
        "mode phase-split needs --requests: how many prompts to send twice",
    ),
    (
        lambda o: o.mode is Mode.PHASE_SPLIT and o.output_tokens < 2,
        "mode phase-split needs at least 2 output tokens",
    ),
    (
        lambda o: o.mode is not Mode.SERVE and bool(o.trace or o.max_concurrency or o.turns > 1),
        "mode {0.mode} has its own order: leave out trace, max-concurrency and turns",
    ),
    (
        lambda o: o.processes > 1 and o.mode is not Mode.SERVE,
        "mode {0.mode} has an order that only one process can keep: leave processes out",
    ),
    (
        lambda o: 0 < o.max_concurrency < o.processes,
        "max-concurrency {0.max_concurrency} is less than the {0.processes} processes",
    ),
    (lambda o: o.mode is Mode.BATCH and not o.batch_sizes, "mode batch needs --batch-sizes"),
    (
        lambda o: bool(o.ca_file or o.insecure) and not o.url.startswith("https:"),
        "ca-file and insecure are for an https address",
    ),
    (lambda o: bool(o.ca_file) and o.insecure, "insecure checks no certificate: remove it or --ca-file"),
    (lambda o: bool(o.profile_urls) and not o.engine_profile, "profile-urls need --profile"),
    (lambda o: bool(o.path) and not o.path.startswith("/"), "path {0.path!r} must begin with /"),
    (
        lambda o: o.dataset is not Dataset.HUGGINGFACE and (bool(o.dataset_column) or o.dataset_split != "train"),
        "dataset {0.dataset} has no splits and columns: leave dataset-split and dataset-column out",
    ),
    (
        lambda o: bool(o.images or o.audios) and not _can_show(o),
        "images and audios need dataset text, endpoint chat and one turn",
    ),
    (
        lambda o: o.answers is Answers.SERVED and not _can_converse(o),
        "answers served needs --turns above 1, dataset text, and endpoint chat or completions",
    ),
    (
        lambda o: o.think_time > 0 and o.answers is not Answers.SERVED,
        "think-time is for answers served",
    ),
)
