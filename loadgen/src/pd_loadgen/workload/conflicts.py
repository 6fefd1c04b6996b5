"""Combinations of options that cannot work, each with its sentence. Pure."""

from collections.abc import Iterator
from typing import Final

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import Answers, Dataset
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.option_fields import OptionFields
from pd_loadgen.workload.schedule import Arrival

_TAKE_IDS: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.SGLANG})
_CONVERSE: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.CHAT})


def conflicts(chosen: OptionFields) -> Iterator[tuple[bool, str]]:
    """Combinations that cannot work, each with its sentence."""
    files = chosen.dataset in (Dataset.JSONL, Dataset.SHAREGPT, Dataset.HUGGINGFACE)
    hub = chosen.dataset is Dataset.HUGGINGFACE
    served = chosen.answers is Answers.SERVED
    rising = chosen.arrival in (Arrival.RAMP, Arrival.STEP)
    serve = chosen.mode is Mode.SERVE
    yield (
        chosen.dataset is Dataset.RANDOM and chosen.endpoint not in _TAKE_IDS,
        f"dataset random sends token ids, which the {chosen.endpoint} endpoint does not take: use dataset text or endpoint completions",
    )
    yield (
        chosen.burstiness != 1 and chosen.arrival is not Arrival.GAMMA,
        f"burstiness {chosen.burstiness:g} needs arrival gamma",
    )
    yield files and not chosen.dataset_path, f"dataset {chosen.dataset} needs its file: --dataset-path"
    yield bool(chosen.dataset_path) and not files, f"dataset {chosen.dataset} reads no file: leave --dataset-path out"
    yield (
        files and bool(chosen.range_ratio or chosen.prefix_tokens or chosen.turns > 1),
        "range-ratio, prefix-tokens and turns are for made prompts: use dataset random or text",
    )
    yield (
        chosen.turns > 1 and bool(chosen.range_ratio or chosen.prefix_tokens or chosen.trace),
        "turns have lengths and prefixes of their own: leave range-ratio, prefix-tokens and trace out",
    )
    yield chosen.prefixes > 1 and not chosen.prefix_tokens, "prefixes need --prefix-tokens"
    yield chosen.start_rate > 0 and not rising, f"start-rate is for arrival ramp or step, not {chosen.arrival}"
    yield (chosen.arrival is Arrival.REPLAY) != bool(chosen.trace), "arrival replay and --trace need each other"
    yield chosen.time_scale != 1 and not chosen.trace, "time-scale needs a trace"
    yield (
        bool(chosen.trace) and bool(chosen.range_ratio or chosen.prefix_tokens),
        "a trace has the lengths: leave range-ratio and prefix-tokens out",
    )
    yield (
        serve and chosen.arrival is Arrival.CLOSED and not (chosen.requests and chosen.max_concurrency),
        "arrival closed needs --max-concurrency and --requests",
    )
    yield (
        chosen.mode is Mode.PHASE_SPLIT and not chosen.requests,
        "mode phase-split needs --requests: how many prompts to send twice",
    )
    yield (
        chosen.mode is Mode.PHASE_SPLIT and chosen.output_tokens < 2,
        "mode phase-split needs at least 2 output tokens",
    )
    yield (
        not serve and bool(chosen.trace or chosen.max_concurrency or chosen.turns > 1),
        f"mode {chosen.mode} has an order of its own: leave trace, max-concurrency and turns out",
    )
    yield (
        chosen.processes > 1 and not serve,
        f"mode {chosen.mode} has an order that only one process can keep: leave processes out",
    )
    yield (
        0 < chosen.max_concurrency < chosen.processes,
        f"max-concurrency {chosen.max_concurrency} leaves some of {chosen.processes} processes without a place",
    )
    yield chosen.mode is Mode.BATCH and not chosen.batch_sizes, "mode batch needs --batch-sizes"
    yield (
        bool(chosen.ca_file or chosen.insecure) and not chosen.url.startswith("https:"),
        "ca-file and insecure are for an https address",
    )
    yield bool(chosen.ca_file) and chosen.insecure, "insecure checks no certificate: leave it or --ca-file out"
    yield bool(chosen.profile_urls) and not chosen.engine_profile, "profile-urls need --profile"
    yield bool(chosen.path) and not chosen.path.startswith("/"), f"path {chosen.path!r} must begin with /"
    yield (
        not hub and (bool(chosen.dataset_column) or chosen.dataset_split != "train"),
        f"dataset {chosen.dataset} has no splits and columns: leave dataset-split and dataset-column out",
    )
    yield (
        bool(chosen.images or chosen.audios) and not _shows(chosen),
        "images and audios need dataset text, endpoint chat and one turn",
    )
    yield (
        served and not (serve and chosen.turns > 1 and chosen.dataset is Dataset.TEXT and chosen.endpoint in _CONVERSE),
        "answers served needs --turns above 1, dataset text, and endpoint chat or completions",
    )
    yield chosen.think_time > 0 and not served, "think-time is for answers served"


def _shows(chosen: OptionFields) -> bool:
    return chosen.dataset is Dataset.TEXT and chosen.endpoint is Endpoint.CHAT and chosen.turns == 1
