"""Options of the traffic: those of the load generator, so that a plan is for the load that will be offered."""

import argparse
from typing import Final

from pd_analysis.words.language import told, tr
from pd_contracts.settings import SettingsError, fields
from pd_loadgen.workload import options as loadgen
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.pace import MOST_TOKENS
from pd_loadgen.workload.plan import PlanError
from pd_planner.cli.failure import CommandError
from pd_planner.cli.parser import translated
from pd_planner.cli.values import count, positive
from pd_planner.traffic.source import FEWEST, Traffic, TrafficError, traffic_of

# Of all options of `pd-loadgen run` these are shown; any other goes after --.
SHOWN: Final = (
    "input_tokens",
    "output_tokens",
    "range_ratio",
    "dataset",
    "dataset_path",
    "arrival",
    "burstiness",
    "seed",
)
_LENGTHS: Final = ("input_tokens", "output_tokens")
LEAST_RATE: Final = 0.001
MOST_RATE: Final = 1_000_000  # requests/s: less or more is a slip of the keyboard
# Requests that are drawn if the load is endless; fewer if they are too long for the load generator's memory.
REQUESTS, TOKENS = 12_000, 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Lengths and rate, or a trace."""
    add = parser.add_argument_group(tr("traffic")).add_argument
    add(
        "--rate",
        type=positive,
        metavar="R",
        help=tr("requests per second to serve (default: as many as the GPUs carry)"),
    )
    add(
        "--trace",
        metavar="FILE",
        help=tr("recorded traffic with its times and lengths: Mooncake, BurstGPT or Azure"),
    )
    add(
        "--speed",
        type=positive,
        metavar="X",
        help=tr("with --trace: 2 replays it twice as fast, like --time-scale 0.5 of pd-loadgen"),
    )
    known = {field.name: field for field in fields(Options)}
    for name in SHOWN:
        add(
            known[name].option,
            dest=name,
            type=count if name in _LENGTHS else str,
            default=None,
            metavar="X",
            help=tr(loadgen.help_of(known[name])).replace("%", "%%"),
        )
    add(
        "loadgen",
        nargs="*",
        metavar="-- OPTION",
        help=tr("after --: any other option of pd-loadgen run, such as --prefix-tokens 512"),
    )


def chosen(given: argparse.Namespace, longest: int) -> Traffic:
    """The traffic that was asked for, without requests of more than `longest` tokens, which vLLM refuses.

    Raises:
        CommandError: if it makes none.
    """
    values = {name: str(getattr(given, name)) for name in SHOWN if getattr(given, name) is not None} | _more(
        given.loadgen
    )
    for name in {"rate", "trace"} & values.keys():
        raise CommandError(
            tr("after --: {option} is an option of pd-plan, too: write it before --", option=f"--{name}")
        )
    if given.trace is not None:
        found = _traffic(_of_trace(given, values), longest, wanted=None, recorded=True, name=given.trace)
        if found.rate > MOST_RATE:
            raise CommandError(
                tr(
                    "{name} comes at {rate} requests/s at this speed, and {most} are the most: choose a lower --speed",
                    name=given.trace,
                    rate=f"{found.rate:g}",
                    most=f"{MOST_RATE:,}",
                )
            )
        return found
    if (given.rate or 0) > MOST_RATE:
        raise CommandError(tr("--rate: at most {most}, got {rate}", most=f"{MOST_RATE:,}", rate=f"{given.rate:g}"))
    if given.rate is not None and given.rate < LEAST_RATE:
        raise CommandError(tr("--rate: at least {least}, got {rate}", least=LEAST_RATE, rate=f"{given.rate:g}"))
    if given.speed is not None:
        raise CommandError(tr("--speed needs --trace: lengths have no times; give their rate with --rate"))
    if (given.input_tokens or 1) * FEWEST > MOST_TOKENS:
        raise CommandError(
            tr(
                "--input-tokens {tokens}: no engine has room for such prompts; {most} tokens are the most that can be planned for",
                tokens=given.input_tokens,
                most=f"{MOST_TOKENS // FEWEST:,}",
            )
        )
    tokens = (given.input_tokens or 1) + (given.output_tokens or 1)
    drawn = {**values, "rate": "1", "duration": str(min(REQUESTS, max(FEWEST, TOKENS // tokens)))}
    lengths = values.get("dataset_path") or tr(
        "{prompt} → {answer} tokens",
        prompt=_thousands(values.get("input_tokens", "512")),
        answer=_thousands(values.get("output_tokens", "64")),
    )
    return _traffic(drawn, longest, wanted=given.rate, recorded=False, name=lengths)


def _thousands(tokens: str) -> str:
    """2,048 for 2048; what is no number stays, because the load generator says what is wrong with it."""
    return f"{int(tokens):,}" if tokens.isdecimal() else tokens


def _of_trace(given: argparse.Namespace, values: dict[str, str]) -> dict[str, str]:
    if given.rate is not None:
        raise CommandError(tr("--trace has its own rate; --speed 2 makes it twice as fast"))
    for name in ("input_tokens", "output_tokens", "range_ratio", "arrival", "burstiness"):
        if name in values:
            raise CommandError(
                tr("--trace has its own times and lengths: remove {option}", option=f"--{name.replace('_', '-')}")
            )
    if given.speed is not None and "time_scale" in values:
        raise CommandError(tr("--speed and --time-scale say the same in two ways: give one of them"))
    scale = {} if given.speed is None else {"time_scale": f"{1 / given.speed:.9g}"}
    return {"duration": "1e9", **values, **scale, "arrival": "replay", "trace": given.trace}


def _traffic(values: dict[str, str], longest: int, *, wanted: float | None, recorded: bool, name: str) -> Traffic:
    try:
        return traffic_of(loadgen.load(values, {}), values, longest, wanted=wanted, recorded=recorded, name=name)
    except TrafficError as error:
        raise CommandError(str(error)) from error
    except (SettingsError, PlanError) as error:
        raise CommandError(tr("the load generator would refuse this load: {reason}", reason=told(error))) from error


def _more(words: list[str]) -> dict[str, str]:
    """Arguments after `--`."""
    parser = argparse.ArgumentParser(prog="pd-loadgen", exit_on_error=False, add_help=False)
    loadgen.add_arguments(parser)
    try:
        known, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise CommandError(tr("after --: {reason}", reason=translated(str(error)))) from error
    if unknown:
        raise CommandError(tr("after --: pd-loadgen run has no option {option}", option=unknown[0]))
    return loadgen.given(known)
