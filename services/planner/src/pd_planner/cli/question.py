"""Options of a question, and the question that they ask."""

import argparse
from pathlib import Path
from typing import Final

from pd_analysis.words.language import tr
from pd_contracts.latency import LimitError, parse_goodput
from pd_contracts.names import Connector, Role
from pd_planner.cli import profiles, traffic
from pd_planner.cli.failure import CommandError
from pd_planner.cli.parser import add_language
from pd_planner.cli.values import count, percent, positive, share
from pd_planner.confidence.draws import DRAWS
from pd_planner.des.limits import Limits
from pd_planner.search.candidates import LARGEST_CELL, NAMES, USUAL, WORDS, EngineLimits, name_of
from pd_planner.search.capacity import Setting
from pd_planner.search.question import Objective, Question
from pd_simulator.profile import Profile
from pd_simulator.steps.engines import Order

GPUS: Final = 8
MOST_GPUS: Final = 1_000_000
MOST_DRAWS: Final = 1000
CELL: Final = 8
LIMITS: Final = "ttft:500 tpot:20"
HEADROOM: Final = 0.1
# Who writes the first token with P2pConnector.
WRITERS: Final = {Role.PREFILL.value: Order.HAND_OFF, Role.DECODE.value: Order.AT_ONCE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a question and of its answer."""
    traffic.add_arguments(parser)
    profiles.add_arguments(parser, tr("GPU and model"))
    add = parser.add_argument_group(tr("limits")).add_argument
    add(
        "--goodput",
        nargs="+",
        metavar="METRIC:MS",
        help=tr('limits of ttft, tpot and e2el in milliseconds (default "{limits}")', limits=LIMITS),
    )
    add(
        "--attainment",
        type=share,
        default=0.9,
        metavar="X",
        help=tr("share of requests that must meet the limits (default 0.9)"),
    )
    add = parser.add_argument_group(tr("deployment")).add_argument
    add(
        "--gpus",
        type=count,
        metavar="N",
        help=tr("maximum number of GPUs (default: {gpus} without --rate, else as many as needed)", gpus=GPUS),
    )
    add(
        "--connectors",
        default=None,
        metavar="C,…",
        help=tr(
            "connectors to try, of {names} (default: {usual}, as far as the profile has them)",
            names=", ".join(NAMES),
            usual=",".join(map(name_of, USUAL)),
        ),
    )
    add(
        "--first-token",
        choices=list(WRITERS),
        default="prefill",
        help=tr(
            "role that writes the first token with P2pConnector, as the proxy's FIRST_TOKEN (default prefill, for requests whose answers stay the same)"
        ),
    )
    add(
        "--cell",
        type=count,
        default=CELL,
        metavar="N",
        help=tr(
            "maximum number of engines that hand over to each other (default {cell}, at most {largest})",
            cell=CELL,
            largest=LARGEST_CELL,
        ),
    )
    add("--tensor-parallel", type=count, default=1, metavar="N", help=tr("GPUs per engine (default 1)"))
    add(
        "--kv-tokens",
        type=count,
        metavar="N",
        help=tr("size of an engine's KV cache in tokens (default: the profile's)"),
    )
    add(
        "--max-model-len",
        type=count,
        metavar="N",
        help=tr("longest prompt with its answer, tokens, as vLLM's option (default: the model's)"),
    )
    add("--max-num-seqs", type=count, default=256, metavar="N", help=tr("vLLM's option (default 256)"))
    add("--max-num-batched-tokens", type=count, default=8192, metavar="N", help=tr("vLLM's option (default 8192)"))
    add(
        "--prefix-caching",
        action="store_true",
        help=tr("engines reuse the KV of shared prompt prefixes, if the traffic names them"),
    )
    answer = parser.add_argument_group(tr("answer"))
    add = answer.add_argument
    add("--objective", choices=[each.value for each in Objective], metavar="O", help=tr("gpus: the fewest GPUs (default with --rate); goodput: the most goodput (default without); energy: the least energy per token"))  # fmt: skip
    add(
        "--headroom",
        type=percent,
        default=HEADROOM,
        metavar="PERCENT",
        help=tr("share of the capacity that stays free at --rate, percent (default 10)"),
    )
    add("--power-cap-w", type=positive, metavar="W", help=tr("maximum power of all GPUs at --rate, W"))
    add(
        "--any-topology",
        action="store_true",
        help=tr("rank deployments of unmeasured topologies like measured ones"),
    )
    add(
        "--draws",
        type=count,
        default=DRAWS,
        metavar="N",
        help=tr("number of random draws of the profile's uncertain numbers (default {draws})", draws=DRAWS),
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help=tr("write plan.json, plan.html, plan.md, .env and values.yaml there, with the break-even map"),
    )
    add_language(answer)
    add("--quiet", action="store_true", help=tr("print only the answer"))


def question_of(options: argparse.Namespace) -> Question:
    """The question.

    Raises:
        CommandError: if the options do not ask one.
    """
    profile = profiles.chosen(options)
    engine = _engine(options, profile)
    offered = traffic.chosen(options, engine.longest(profile.max_model_len))
    setting = Setting(
        profile=profile,
        traffic=offered,
        limits=Limits(_limits(options.goodput), options.attainment),
        engine=engine,
        prefix_caching=options.prefix_caching,
    )
    rate = offered.rate if offered.recorded else offered.wanted
    if rate is None and options.power_cap_w is not None:
        raise CommandError(tr("--power-cap-w needs --rate or --trace: what boards draw depends on the load"))
    if rate is None and options.objective == Objective.GPUS:
        raise CommandError(tr("--objective gpus needs --rate or --trace: the fewest GPUs for how many requests?"))
    if (options.gpus or 0) > MOST_GPUS:
        raise CommandError(tr("--gpus: at most {most}, got {gpus}", most=f"{MOST_GPUS:,}", gpus=options.gpus))
    if options.draws > MOST_DRAWS:
        raise CommandError(tr("--draws: at most {most}, got {draws}", most=f"{MOST_DRAWS:,}", draws=options.draws))
    if options.cell > LARGEST_CELL:
        raise CommandError(tr("--cell: at most {largest}, got {cell}", largest=LARGEST_CELL, cell=options.cell))
    default = Objective.GOODPUT if rate is None else Objective.GPUS
    return Question(
        setting=setting,
        connectors=_connectors(options.connectors, profile),
        objective=Objective(options.objective) if options.objective else default,
        gpus=options.gpus if options.gpus or rate is not None else GPUS * options.tensor_parallel,
        rate=rate,
        headroom=options.headroom,
        power_cap_w=options.power_cap_w,
        cell=options.cell,
        tensor_parallel=options.tensor_parallel,
        any_topology=options.any_topology,
        p2p=WRITERS[options.first_token],
    )


def _limits(given: list[str] | None) -> dict[str, float]:
    try:
        limits = parse_goodput(given or [LIMITS])
    except LimitError as error:
        raise CommandError(tr(error.message, **error.holes)) from error
    if not limits:
        raise CommandError(tr('--goodput is empty: write limits such as "{limits}"', limits=LIMITS))
    return limits


def _engine(options: argparse.Namespace, profile: Profile) -> EngineLimits:
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise CommandError(
            tr(
                "--max-num-batched-tokens {tokens} is below --max-num-seqs {sequences}, which vLLM refuses",
                tokens=options.max_num_batched_tokens,
                sequences=options.max_num_seqs,
            )
        )
    room = options.kv_tokens or profile.memory.kv_tokens
    if options.max_model_len and options.max_model_len > room:
        raise CommandError(
            tr(
                "--max-model-len {most} is more than the KV cache of an engine holds, {room} tokens: vLLM would not start",
                most=options.max_model_len,
                room=room,
            )
        )
    return EngineLimits(room, options.max_num_seqs, options.max_num_batched_tokens, options.max_model_len)


def _connectors(given: str | None, profile: Profile) -> list[Connector]:
    """The connectors of --connectors, else the usual ones that the profile has."""
    if given is None:
        return [connector for connector in USUAL if connector in profile.handoff]
    names = [name.strip().lower() for name in given.split(",") if name.strip()]
    for name in names or [""]:
        if name not in NAMES:
            raise CommandError(
                tr(
                    "--connectors {name}: choose from {names}, separated by commas",
                    name=repr(name),
                    names=", ".join(NAMES),
                )
            )
        if NAMES[name] not in profile.handoff:
            raise CommandError(
                tr(
                    "the profile has no measurements of {connector}: measure it and calibrate, or remove {name} from --connectors",
                    connector=tr(WORDS[NAMES[name]]),
                    name=name,
                )
            )
    return [NAMES[name] for name in dict.fromkeys(names)]
