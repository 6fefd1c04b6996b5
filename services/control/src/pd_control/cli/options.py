"""The command line: subcommands, their options and their help."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pd_contracts.arguments import Parser
from pd_contracts.names import Role
from pd_control.cli import values

_UP = """\
examples:
  pdctl up                                  1 prefill + 1 decode on GPUs 0 and 1, as processes
  pdctl up --engine sim                     the same without GPUs: simulated engines, ready in seconds
  pdctl up disagg --prefill 1 --decode 3    1P3D; or list GPUs: PREFILL_GPUS=0 DECODE_GPUS=1,2,3 pdctl up
  pdctl up combined                         plain vLLM on the same GPUs, behind the same proxy
  pdctl up --plan plan/plan.json            the deployment of pdctl plan, or one cell of it
  pdctl up --containers                     the same through docker compose
  pdctl up --containers --profile cpu       a compose profile by name; may be given several times

Ports, GPUs, model and connector are variables in .env; the environment takes precedence."""

_ALL = """\
examples:
  pdctl all                                             1 prefill + 1 decode, proxy and monitor, in the background
  PREFILL_GPUS=0 DECODE_GPUS=1,2,3 pdctl all            1P3D
  pdctl all combined                                    plain vLLM on the same GPUs
  KV_CONNECTOR=NixlConnector pdctl all                  KV over NIXL instead of P2pConnector

The same as `pdctl up` without containers."""

_ONE = """\
examples:
  pdctl {0}                            on its role's first GPU ({1}_GPUS)
  INSTANCE=1 pdctl {0}                 on the second, one port further on
  pdctl {0} --instance 1 --engine sim  the same, simulated
  PROXY_HOST=10.0.0.1 pdctl {0}        for a proxy on another host (docs/operating.md)

It writes into this terminal, and Ctrl-C ends it; `pdctl down` elsewhere does too."""

_PROXY = """\
examples:
  pdctl proxy                                engines join at PROXY_PORT, clients talk to HTTP_PROXY_PORT
  HTTP_PROXY_PORT=11001 PROXY_PORT=31001 pdctl proxy    a second one beside it"""

_DOCTOR = """\
examples:
  pdctl doctor                          for 1 prefill + 1 decode, as `pdctl all` would start them
  pdctl doctor combined                 for plain vLLM on the same GPUs
  pdctl doctor --json                   for scripts: exit status 1 if there is an error

`pdctl up` and `pdctl all` check this first, too; docs/operating.md lists every finding."""

_COMPARE = """\
examples:
  MODEL=Qwen/Qwen3-4B pdctl compare                    plain vLLM against every XpYd that fits, on all GPUs of this machine
  pdctl compare --engine sim                           the same with simulated engines, without a GPU
  pdctl compare --deployments combined,1p1d,1p1d:nixl --input-output 512:64 --rates 2,8,16 --duration 300
  pdctl compare --deployments 1c --modes serve,phase-split,batch          one plain engine: the classic single-instance tests
  pdctl compare --trace azure.csv -- --time-scale 0.5  a recorded trace, twice as fast; after -- come options of pd-loadgen run
  pdctl compare --dry-run                              only show what would be done, and how long it takes

Every deployment is started once, on the same GPUs, and gets the same seeded schedules. Ctrl-C keeps what was measured; the same
command continues from there."""

_DEMO = """\
examples:
  pdctl demo                                       simulated engines: no GPU, no Docker, under 2 minutes
  pdctl demo --rates 7 --input-output 1024:64      another load
  pdctl demo --engine vllm-cpu --out results/cpu   real vLLM on the CPU, in containers; takes many minutes

The shortest form of pdctl compare: one load (4,096 → 64 tokens, 2.5 requests/s per GPU, 30 s), measured anew each time."""

_PLAN = """\
examples:
  pdctl plan --input-tokens 2048 --output-tokens 128 --rate 300 --goodput "ttft:500 tpot:15" --out plan
  pdctl plan --help                         all options
  pdctl plan check plan/plan.json results   compare the plan with measurements
  pdctl up --plan plan/plan.json            start the planned deployment

The same as pd-plan."""

_LOGS = """\
examples:
  pdctl logs                 the last lines of everything
  pdctl logs decode-0 -f     follow one process or container; Ctrl-C ends the view, not the engine"""

_SMOKE = """\
examples:
  pdctl smoke                                   through the deployment that `pdctl up` started
  pdctl smoke --url http://127.0.0.1:10001      through any proxy or vLLM server"""

PLAN = "plan"
ENGINES_HERE = ("vllm", "sim")
ENGINES_UP = ("vllm", "sim", "vllm-cpu")
ENGINES_DEMO = ("sim", "vllm-cpu")


def parser() -> argparse.ArgumentParser:
    root = Parser(
        prog="pdctl", description="Start, watch and compare vLLM with separate prefill and decode, and plain vLLM."
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    _up(_command(commands, "up", "start a deployment in the background and wait until it serves", _UP))
    everything = _command(commands, "all", "start a deployment as processes of this machine, as up does", _ALL)
    _up(everything, containers=False)
    for role in Role:
        example = _ONE.format(role, role.upper())
        _one(_command(commands, role.value, f"run one {role} engine in this terminal", example))
    _checked_first(_command(commands, "proxy", "run the proxy in this terminal", _PROXY))
    down = _command(commands, "down", "stop the deployment that this clone started")
    down.add_argument("--containers", action="store_true", help="only containers (default: processes and containers)")
    _command(commands, "status", "list what runs: name, role, state, process id or container, port, start time")
    _logs(_command(commands, "logs", "show the logs of processes or containers", _LOGS))
    _smoke(
        _command(
            commands,
            "smoke",
            "send a completion, a streamed completion and a chat request, and report the results",
            _SMOKE,
        )
    )
    _doctor(
        _command(
            commands,
            "doctor",
            "check whether this machine can run the deployment, with a remedy for each problem",
            _DOCTOR,
        )
    )
    _command(commands, "config", "show the variables in force and where each comes from")
    menu = _command(commands, "menu", "choose tasks from a numbered menu, which shows their commands")
    menu.add_argument("--engine", choices=ENGINES_HERE, default="vllm", help="kind of engine (default: vllm)")
    _compare(
        _command(
            commands, "compare", "measure several deployments under the same loads, and render the report", _COMPARE
        ),
        ENGINES_UP,
    )
    demo = _command(
        commands, "demo", "run a two-minute comparison with simulated engines, and render its report", _DEMO
    )
    _compare(demo, ENGINES_DEMO)
    demo.set_defaults(engine="sim", out="results/demo", restart=True)
    # Its options are those of pd-plan: the arguments are passed on before anything here is parsed.
    _command(
        commands, PLAN, "find the deployment that suits your traffic before you buy a GPU: simulated, in seconds", _PLAN
    )
    return root


def _command(
    commands: "argparse._SubParsersAction[Parser]", name: str, summary: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _doctor(parser: argparse.ArgumentParser) -> None:
    _what(parser, ENGINES_HERE)
    parser.add_argument("--json", action="store_true", help="findings and the facts behind them as JSON")


def _checked_first(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="start even if pdctl doctor finds errors")
    parser.add_argument("--skip-doctor", action="store_true", help="do not check the machine first")


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instance",
        type=values.natural,
        metavar="N",
        help="number of the engine within its role, from 0 (default: INSTANCE, else 0)",
    )
    parser.add_argument("--engine", choices=ENGINES_HERE, default="vllm", help="kind of engine (default: vllm)")
    _checked_first(parser)


def _what(parser: argparse.ArgumentParser, engines: Sequence[str]) -> None:
    add = parser.add_argument
    add(
        "topology",
        nargs="?",
        type=values.topology,
        metavar="disagg|combined",
        help="default: combined if only --combined or COMBINED_GPUS is set, else disagg",
    )
    only = "; vllm-cpu in containers only" if "vllm-cpu" in engines else ""
    add("--engine", choices=engines, default="vllm", help=f"kind of engine (default: vllm){only}")
    add(
        "--prefill",
        type=values.count,
        metavar="N",
        help="number of prefill engines, on consecutive GPUs unless PREFILL_GPUS is set",
    )
    add("--decode", type=values.count, metavar="N", help="number of decode engines, likewise")
    add(
        "--combined",
        type=values.count,
        metavar="N",
        help="number of combined engines (default: one for each prefill and decode GPU)",
    )


def _up(parser: argparse.ArgumentParser, *, containers: bool = True) -> None:
    _what(parser, ENGINES_UP if containers else ENGINES_HERE)
    add = parser.add_argument
    add(
        "--plan",
        type=Path,
        metavar="PLAN.json",
        help="start the deployment in this file, written by pdctl plan --out, or one cell of it",
    )
    if containers:
        add("--containers", action="store_true", help="run containers, through docker compose")
        add(
            "--profile",
            action="append",
            metavar="P",
            help="compose profile to use instead of the one for the topology and engine",
        )
    else:
        parser.set_defaults(containers=False, profile=None)
    _checked_first(parser)
    add(
        "--patience",
        type=values.positive,
        default=300.0,
        metavar="S",
        help="give up after S seconds without progress (default: 300)",
    )


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="process or container, as `pdctl status` names it; all if left out")
    parser.add_argument("-f", "--follow", action="store_true", help="follow the log (needs a name)")
    parser.add_argument(
        "-n", "--lines", type=values.natural, default=20, metavar="N", help="lines of each log to show first (20)"
    )


def _smoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="address to send to (default: the running deployment's proxy)")
    parser.add_argument("--model", help="model to ask (default: the first that is served)")
    parser.add_argument(
        "--timeout", type=values.positive, default=60.0, metavar="S", help="time-out of each request (60)"
    )


def _compare(parser: argparse.ArgumentParser, engines: Sequence[str]) -> None:
    _compared(parser, engines)
    _offered(parser)
    _executed(parser)


def _compared(parser: argparse.ArgumentParser, engines: Sequence[str]) -> None:
    what = parser.add_argument_group("deployments").add_argument
    what("--engine", choices=engines, default="vllm", help="kind of engine (default: %(default)s)")
    what("--containers", action="store_true", help="use docker compose; always the case for vllm-cpu")
    what(
        "--gpus",
        metavar="N,…",
        help="GPUs to use, or the number of simulated GPUs (default: all of this machine; simulated: 2)",
    )
    what(
        "--deployments",
        metavar="D,…",
        help="combined (plain engines on all GPUs), 2c, 1p1d, 1p3d:nixl, … (default: combined and every XpYd that fits)",
    )


def _offered(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load").add_argument
    load("--input-output", metavar="I:O,…", help="prompt and answer lengths in tokens, 512:64,2048:128")
    load("--trace", metavar="FILE", help="recorded trace with arrivals and lengths, instead of lengths and rates")
    load(
        "--rates",
        metavar="R,…",
        help="requests per second per GPU; 2,8/1,4 for two loads; find searches for them (the default on GPUs)",
    )
    load(
        "--start-rate", type=values.positive, metavar="R", help="first rate of the search, requests per second per GPU"
    )
    load(
        "--duration",
        type=values.positive,
        metavar="S",
        help="seconds per point (default: 60 to 300, as its p99 needs)",
    )
    load("--seeds", default="0", metavar="N,…", help="measure every point with each of these seeds (default: 0)")
    load("--goodput", metavar="LIMITS", help='limits in ms that requests should meet, "ttft:500 tpot:20"')
    load(
        "--attainment",
        type=values.share,
        default=0.9,
        metavar="X",
        help="share of requests that must meet them (default: 0.9)",
    )
    load(
        "--modes",
        default="serve",
        metavar="M,…",
        help="serve, phase-split, batch; the last two on one plain engine (default: serve)",
    )
    load("--batch-sizes", metavar="N,…", help="mode batch: requests at once, one batch after the other")
    load("loadgen", nargs="*", metavar="-- OPTION", help="after --: options of pd-loadgen run, for every point")


def _executed(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("execution").add_argument
    run("--out", default="results/compare", metavar="DIR", help="where runs and report go (default: %(default)s)")
    run("--title", default="", metavar="TEXT", help="title of the report")
    run("--lang", choices=("en", "zh"), default="en", help="language of report and verdict (default: en)")
    run("--dry-run", action="store_true", help="only show what would be done, and how long it takes")
    run("--restart", action="store_true", help="delete the results of an earlier comparison in --out")
    run(
        "--stop-after",
        type=values.positive,
        metavar="S",
        help="start no point that would end later than this; the same command continues later",
    )
    run(
        "--no-report", dest="report", action="store_false", help="only measure; pd-analysis report DIR renders it later"
    )
    run("--force", action="store_true", help="start even if pdctl doctor finds errors")
    run(
        "--patience",
        type=values.positive,
        default=600.0,
        metavar="S",
        help="give up on engines after S seconds without progress (default: 600)",
    )
