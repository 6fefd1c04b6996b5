"""Combinations of options that cannot work: a table of rules, each with its sentence. Pure."""

from collections.abc import Callable
from math import isinf
from string import Formatter
from typing import Final

from pd_contracts.sentences import Clause, SentenceError, mark
from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Answers, Dataset
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.option_fields import OptionFields
from pd_loadgen.workload.pace import endless, not_finite, too_many
from pd_loadgen.workload.schedule import Arrival

_TAKE_IDS: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.SGLANG})
_CONVERSE: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.CHAT})
_FROM_FILES: Final = frozenset({Dataset.JSONL, Dataset.SHAREGPT, Dataset.HUGGINGFACE})
_RATE: Final = OptionFields().rate
_RISING: Final = frozenset({Arrival.RAMP, Arrival.STEP})


class UnfitError(SentenceError, ValueError):
    """Options that cannot work together."""


def conflict(chosen: OptionFields) -> Clause | None:
    """Why the options cannot work together, in one sentence; None if they can."""
    if name := not_finite(chosen):
        return Clause("{name} must be a finite number", name=name)
    found = next((message for applies, message in RULES if applies(chosen)), None)
    return None if found is None else said(found, chosen)


def said(message: str, chosen: OptionFields) -> Clause:
    """A rule's message about these options, whose values fill its holes."""
    values = {name: getattr(chosen, name) for _, name, _, _ in Formatter().parse(message) if name}
    return Clause(message, **{name: f"{one:g}" if isinstance(one, float) else one for name, one in values.items()})


def _can_converse(o: OptionFields) -> bool:
    return o.mode is Mode.SERVE and o.turns > 1 and o.dataset is Dataset.TEXT and o.endpoint in _CONVERSE


def _can_show(o: OptionFields) -> bool:
    return o.dataset is Dataset.TEXT and o.endpoint is Endpoint.CHAT and o.turns == 1


# Whether it applies, and what it says: `{rate}` is the option's value.
RULES: Final[tuple[tuple[Callable[[OptionFields], bool], str], ...]] = (
    (
        lambda o: isinf(o.rate) and o.arrival in _RISING,
        mark("arrival {arrival} rises to a rate: give one that is finite"),
    ),
    (
        lambda o: o.overwrite and o.rerun_incomplete,
        mark("--overwrite replaces every run, and --rerun-incomplete keeps a complete one: give one of them"),
    ),
    (
        lambda o: o.rerun_incomplete and not o.out,
        mark("--rerun-incomplete looks for a run in the folder: give --out"),
    ),
    (
        lambda o: isinf(o.duration) and o.arrival in _RISING,
        mark("arrival {arrival} rises over a duration: give one that is finite"),
    ),
    (
        lambda o: endless(o) and isinf(o.rate),
        mark("rate inf sends all requests at once: say how many with --requests"),
    ),
    (endless, mark("duration inf has no end: say how many with --requests")),
    (
        too_many,
        mark("these requests are too many or too long to be held in memory: lower rate, duration or --requests"),
    ),
    (
        lambda o: o.dataset is Dataset.RANDOM and o.endpoint not in _TAKE_IDS,
        mark(
            "dataset random sends token ids, which the {endpoint} endpoint does not take: use dataset text or endpoint completions"
        ),
    ),
    (
        lambda o: o.burstiness != 1 and o.arrival is not Arrival.GAMMA,
        mark("burstiness {burstiness} needs arrival gamma"),
    ),
    (
        lambda o: o.dataset in _FROM_FILES and not o.dataset_path,
        mark("dataset {dataset} needs its file: --dataset-path"),
    ),
    (
        lambda o: bool(o.dataset_path) and o.dataset not in _FROM_FILES,
        mark("dataset {dataset} reads no file: leave --dataset-path out"),
    ),
    (
        lambda o: o.dataset in _FROM_FILES and bool(o.range_ratio or o.prefix_tokens or o.turns > 1),
        mark("range-ratio, prefix-tokens and turns are for generated prompts: use dataset random or text"),
    ),
    (
        lambda o: o.turns > 1 and bool(o.range_ratio or o.prefix_tokens or o.trace),
        mark("turns define their own lengths and prefixes: leave out range-ratio, prefix-tokens and trace"),
    ),
    (lambda o: o.prefixes > 1 and not o.prefix_tokens, mark("prefixes need --prefix-tokens")),
    (
        lambda o: o.start_rate > 0 and o.arrival not in _RISING,
        mark("start-rate is for arrival ramp or step, not {arrival}"),
    ),
    (lambda o: o.arrival is Arrival.REPLAY and not o.trace, mark("arrival replay needs a --trace")),
    (
        lambda o: bool(o.trace) and o.arrival is not Arrival.REPLAY,
        mark("--trace needs --arrival replay, not {arrival}"),
    ),
    (
        lambda o: bool(o.trace) and o.rate != _RATE,
        mark("a trace has its own rate: leave --rate out; --time-scale 0.5 sends it twice as fast"),
    ),
    (lambda o: o.time_scale != 1 and not o.trace, mark("time-scale needs a trace")),
    (
        lambda o: bool(o.trace) and bool(o.range_ratio or o.prefix_tokens),
        mark("a trace has the lengths: leave range-ratio and prefix-tokens out"),
    ),
    (
        lambda o: o.mode is Mode.SERVE and o.arrival is Arrival.CLOSED and not (o.requests and o.max_concurrency),
        mark("arrival closed needs --max-concurrency and --requests"),
    ),
    (
        lambda o: o.mode is Mode.PHASE_SPLIT and not o.requests,
        mark("mode phase-split needs --requests: how many prompts to send twice"),
    ),
    (
        lambda o: o.mode is Mode.PHASE_SPLIT and o.output_tokens < 2,
        mark("mode phase-split needs at least 2 output tokens"),
    ),
    (
        lambda o: o.mode is not Mode.SERVE and bool(o.trace or o.max_concurrency or o.turns > 1),
        mark("mode {mode} has its own order: leave out trace, max-concurrency and turns"),
    ),
    (
        lambda o: o.processes > 1 and o.mode is not Mode.SERVE,
        mark("mode {mode} has an order that only one process can keep: leave processes out"),
    ),
    (
        lambda o: 0 < o.max_concurrency < o.processes,
        mark("max-concurrency {max_concurrency} is less than the {processes} processes"),
    ),
    (lambda o: o.mode is Mode.BATCH and not o.batch_sizes, mark("mode batch needs --batch-sizes")),
    (
        lambda o: bool(o.ca_file or o.insecure) and not o.url.startswith("https:"),
        mark("ca-file and insecure are for an https address"),
    ),
    (lambda o: bool(o.ca_file) and o.insecure, mark("insecure checks no certificate: remove it or --ca-file")),
    (lambda o: bool(o.profile_urls) and not o.engine_profile, mark("profile-urls need --profile")),
    (lambda o: bool(o.path) and not o.path.startswith("/"), mark("path {path} must begin with /")),
    (
        lambda o: o.dataset is not Dataset.HUGGINGFACE and (bool(o.dataset_column) or o.dataset_split != "train"),
        mark("dataset {dataset} has no splits and columns: leave dataset-split and dataset-column out"),
    ),
    (
        lambda o: bool(o.images or o.audios) and not _can_show(o),
        mark("images and audios need dataset text, endpoint chat and one turn"),
    ),
    (
        lambda o: o.answers is Answers.SERVED and not _can_converse(o),
        mark("answers served needs --turns above 1, dataset text, and endpoint chat or completions"),
    ),
    (
        lambda o: o.think_time > 0 and o.answers is not Answers.SERVED,
        mark("think-time is for answers served"),
    ),
)
