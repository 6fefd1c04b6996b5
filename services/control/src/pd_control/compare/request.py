"""From the command line to a comparison: given options, presets for the rest, and errors for impossible combinations. Pure."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pd_contracts.latency import parse_goodput
from pd_contracts.settings import SettingsError
from pd_control.compare import loads
from pd_control.compare.deployments import Spec, default, parse
from pd_control.compare.loads import BATCH, MODES, SERVE, Load, Offer, Point, arguments
from pd_control.compare.plan import Comparison
from pd_control.compare.presets import Preset
from pd_control.planning.gpus import PlanError
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.prompts.files import FileError
from pd_loadgen.workload import options as loadgen
from pd_loadgen.workload.plan import PlanError as LoadError
from pd_loadgen.workload.plan import Source, refuse_too_many

# Options that pdctl sets itself for every point, so that they cannot be passed through to the load generator.
_OWN: Final = {
    "url": "--engine chooses what serves",
    "model": "set MODEL",
    "out": "use --out before the --",
    "overwrite": "use --restart before the --",
    "rerun_incomplete": "runs that are complete are kept in any case",
    "label": "labels come from --deployments",
    "gpus": "the proxy reports the GPUs",
    "monitor": "pdctl starts its own monitor",
    "rate": "use --rates, per GPU",
    "duration": "use --duration before the --",
    "seed": "use --seeds",
    "goodput": "use --goodput before the --",
    "mode": "use --modes",
    "input_tokens": "use --input-output",
    "output_tokens": "use --input-output",
    "trace": "use --trace before the --",
}
_BATCHES: Final = "1,1,1,1,2,2,4,4,8,8,16,16,32,32,64,64,128,128,256,256"
_BATCHES_SMALL: Final = "1,1,2,2,4,4,8,8"


def comparison(
    given: argparse.Namespace,
    preset: Preset,
    gpus: Sequence[int],
    *,
    size: int,
    more: Mapping[str, str],
    title: str,
    manner: str = "",
    longest: int | None = None,
) -> Comparison:
    """The whole comparison, after one point of each load passed the load generator's own checks.

    `manner` is that of its combined engines; `longest` is how many tokens of a prompt and its answer an engine takes, if that is known.

    Raises:
        PlanError: with the first thing that cannot work.
    """
    room = len(gpus) // size
    if room < 1:
        msg = f"{len(gpus)} GPUs are too few for an engine with TENSOR_PARALLEL_SIZE={size}: give more GPUs (--gpus) or lower it"
        raise PlanError(msg)
    asked = Comparison(
        engine=given.engine,
        containers=given.containers,
        deployments=parse(given.deployments, room, manner) if given.deployments else _fitting(room, manner),
        offer=_offer(given, preset, more),
        gpus=list(gpus),
        size=size,
        title=given.title or title,
        manner=manner,
    )
    _refuse_too_long(asked.offer, longest)
    _try_points(asked)
    return asked


def _refuse_too_long(offer: Offer, longest: int | None) -> None:
    """Refuse lengths that every engine refuses, which would show only when a deployment is up and all its requests fail."""
    for load in offer.loads:
        lengths = [int(load.options.get(name, 0)) for name in ("input_tokens", "output_tokens")]
        if longest is not None and load.paced and sum(lengths) > longest:
            prompt, answer = (f"{length:,}" for length in lengths)
            msg = f"{prompt} → {answer} tokens are more than MAX_MODEL_LEN={longest}: raise it, or choose shorter lengths (--input-output)"
            raise PlanError(msg)


def _fitting(room: int, manner: str) -> list[Spec]:
    return default(room, manner) if room > 1 else [Spec(combined=1, manner=manner)]


def _offer(given: argparse.Namespace, preset: Preset, more: Mapping[str, str]) -> Offer:
    common = dict(preset.common)
    if more.get("dataset", common.get("dataset")) != common.get("dataset"):
        common.pop("dataset", None)
    modes = _modes(given.modes)
    seeds = loads.seeds(given.seeds)
    _refuse_unused(given, modes)
    goodput = preset.goodput if given.goodput is None else given.goodput
    try:
        parse_goodput([goodput])
    except ValueError as error:
        raise PlanError(str(error)) from error
    if given.trace:
        offered = [_trace(given.trace, given.duration, {**common, **more})]
    else:
        shapes = loads.shapes(given.input_output or preset.input_output)
        offered = loads.with_rates(shapes, given.rates or preset.rates)
    found = Offer(
        loads=offered,
        modes=modes,
        start_rate=given.start_rate or preset.start_rate,
        attainment=given.attainment,
        seeds=seeds,
        duration_s=given.duration if given.duration is not None else preset.duration_s,
        goodput=goodput,
        batch_sizes=given.batch_sizes or (_BATCHES if given.engine != "vllm-cpu" else _BATCHES_SMALL),
        common={**common, **more},
    )
    if found.searches and not goodput:
        msg = 'a search for rates needs limits: give --goodput, for example "ttft:500 tpot:20", or --rates'
        raise PlanError(msg)
    return found


def _refuse_unused(given: argparse.Namespace, modes: Sequence[str]) -> None:
    """Refuse options that would have no effect."""
    if given.trace and (given.rates or given.input_output or given.start_rate):
        msg = "--trace has its own times and lengths: remove --rates, --start-rate and --input-output"
        raise PlanError(msg)
    for mode in modes:
        if given.trace and mode != SERVE:
            msg = f"--modes {mode} needs lengths: use --input-output instead of --trace"
            raise PlanError(msg)
    if given.batch_sizes and BATCH not in modes:
        msg = f"--batch-sizes is for mode batch: add it to --modes ({','.join([*modes, BATCH])})"
        raise PlanError(msg)
    if given.start_rate and given.rates and "find" not in given.rates:
        msg = "--start-rate is for a search of rates: remove --rates or --start-rate"
        raise PlanError(msg)


def _modes(text: str) -> list[str]:
    modes = [mode.strip() for mode in text.split(",") if mode.strip()]
    for mode in modes or [""]:
        if mode not in MODES:
            msg = f"--modes {mode!r}: choose from {', '.join(MODES)}, separated by commas"
            raise PlanError(msg)
    return list(dict.fromkeys(modes))


def _trace(path: str, duration: float | None, common: Mapping[str, str]) -> Load:
    stem = path.rpartition("/")[2].rpartition(".")[0] or path
    name = "trace-" + "".join(char if char.isalnum() else "_" for char in stem)
    options = {"arrival": "replay", "trace": path, "duration": "inf" if duration is None else f"{duration:g}"}
    return Load(name=name, options=options, paced=False, length_s=_length({**common, **options}))


def _length(options: Mapping[str, str]) -> float:
    """Duration of a trace in seconds. It is read now, so that an error shows before engines start.

    Raises:
        PlanError: if it cannot be used, or has no request in this time.
    """
    try:
        requests = Source(loadgen.load(options, {}), "").trace()
        refuse_too_many(requests)
    except (SettingsError, LoadError) as error:
        msg = f"the load generator would refuse this load: {error}"
        raise PlanError(msg) from error
    except FileError as error:
        msg = f"--trace: {error}"
        raise PlanError(msg) from error
    if not requests:
        msg = f"--trace: {options['trace']} has no answered request in this time"
        raise PlanError(msg)
    return requests[-1].offset


def pass_through(words: Sequence[str]) -> dict[str, str]:
    """Options of `pd-loadgen run` after `--`, as texts by field name.

    Raises:
        PlanError: for an option that pdctl sets itself, or that pd-loadgen does not have.
    """
    parser = argparse.ArgumentParser(prog="pd-loadgen", exit_on_error=False, add_help=False)
    loadgen.add_arguments(parser)
    try:
        known, unknown = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        msg = f"after --: {error}"
        raise PlanError(msg) from error
    if unknown:
        msg = f"after --: pd-loadgen run has no option {unknown[0]}"
        raise PlanError(msg)
    chosen = loadgen.given(known)
    for name, instead in _OWN.items():
        if name in chosen:
            msg = f"after --: --{name.replace('_', '-')} is set by pdctl: {instead}"
            raise PlanError(msg)
    return chosen


def _try_points(asked: Comparison) -> None:
    """Refuse now what the load generator would refuse at every point."""
    for load in asked.offer.loads:
        for mode in asked.offer.modes:
            rate = 1.0 if load.paced and mode == SERVE else None
            point = Point(load=load, mode=mode, rate_per_gpu=rate, duration_s=1.0)
            try:
                _refuse_missing_file(loadgen.load(arguments(point, asked.offer, 1), {}))
            except SettingsError as error:
                msg = f"the load generator would refuse this load: {error}"
                raise PlanError(msg) from error


def _refuse_missing_file(read: loadgen.Options) -> None:
    if read.dataset in {Dataset.JSONL, Dataset.SHAREGPT} and not Path(read.dataset_path).is_file():
        msg = f"after --: {read.dataset_path} is not a readable file of prompts (--dataset-path)"
        raise PlanError(msg)
