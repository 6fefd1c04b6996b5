"""The command line: subcommands, their options and their help."""

import argparse
from collections.abc import Sequence

from pd_contracts.names import Role, Topology

_UP = """\
examples:
  pdctl up                                  1 prefill + 1 decode on GPUs 0 and 1, as processes
  pdctl up --engine sim                     the same without GPUs: simulated engines, ready in seconds
  pdctl up disagg --prefill 1 --decode 3    1P3D; or list GPUs: PREFILL_GPUS=0 DECODE_GPUS=1,2,3 pdctl up
  pdctl up combined                         plain vLLM on the same GPUs, behind the same proxy
  pdctl up --containers                     the same through docker compose
  pdctl up --containers --profile cpu       a compose profile by name; may be given several times

Ports, GPUs, model and connector are the variables of .env; what the environment says wins."""

_ALL = """\
examples:
  pdctl all                                             1 prefill + 1 decode, proxy and monitor, in the background
  PREFILL_GPUS=0 DECODE_GPUS=1,2,3 pdctl all            1P3D
  pdctl all combined                                    plain vLLM on the same GPUs
  KV_CONNECTOR=NixlConnector pdctl all                  KV over NIXL instead of P2P NCCL

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

`pdctl up` and `pdctl all` look first, too; docs/operating.md lists every finding."""

_DEMO = """\
examples:
  pdctl demo                                       simulated engines: no GPU, no Docker, under 2 minutes
  pdctl demo --rate 14 --input-tokens 1024         another load
  pdctl demo --engine vllm-cpu --out results/cpu   real vLLM on the CPU, in containers; takes many minutes

Both topologies are offered the same seeded schedule; the report says so with its hash."""

_LOGS = """\
examples:
  pdctl logs                 the last lines of everything
  pdctl logs decode-0 -f     follow one process or container; Ctrl-C ends the view, not the engine"""

_SMOKE = """\
examples:
  pdctl smoke                                   through the deployment that `pdctl up` started
  pdctl smoke --url http://127.0.0.1:10001      through any proxy or vLLM server"""

ENGINES_HERE = ("vllm", "sim")
ENGINES_UP = ("vllm", "sim", "vllm-cpu")
ENGINES_DEMO = ("sim", "vllm-cpu")


def parser() -> argparse.ArgumentParser:
    """All of it."""
    root = argparse.ArgumentParser(
        prog="pdctl", description="Start, watch and compare vLLM with prefill and decode apart, and plain vLLM."
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _up(_command(commands, "up", "start a deployment in the background and wait until it serves", _UP))
    everything = _command(commands, "all", "start a deployment as processes of this machine, as up does", _ALL)
    _up(everything, containers=False)
    for role in Role:
        example = _ONE.format(role, role.upper())
        _one(_command(commands, role.value, f"run one {role} engine in this terminal", example))
    _checked_first(_command(commands, "proxy", "run the proxy in this terminal", _PROXY))
    down = _command(commands, "down", "stop the deployment that runs")
    down.add_argument("--containers", action="store_true", help="only containers (both are looked for otherwise)")
    _command(commands, "status", "what runs: name, role, state, process id or container, port, since when")
    _logs(_command(commands, "logs", "show what processes or containers wrote", _LOGS))
    _smoke(_command(commands, "smoke", "send a completion, a streamed one and a chat, and say how they went", _SMOKE))
    _doctor(
        _command(commands, "doctor", "look whether this machine can run the deployment, and say what to do", _DOCTOR)
    )
    _command(commands, "config", "the variables in force, and where each comes from")
    menu = _command(commands, "menu", "do these things by number, and learn the commands for it")
    menu.add_argument("--engine", choices=ENGINES_HERE, default="vllm", help="what computes (default: vllm)")
    _demo(_command(commands, "demo", "compare both topologies under the same load and render the report", _DEMO))
    return root


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, epilog: str | None = None
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
    parser.add_argument("--force", action="store_true", help="start in spite of errors that pdctl doctor finds")
    parser.add_argument("--skip-doctor", action="store_true", help="do not look at the machine first")


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", type=_lines, metavar="N", help="which of the role, from 0 (INSTANCE, else 0)")
    parser.add_argument("--engine", choices=ENGINES_HERE, default="vllm", help="what computes (default: vllm)")
    _checked_first(parser)


def _what(parser: argparse.ArgumentParser, engines: Sequence[str]) -> None:
    add = parser.add_argument
    add("topology", nargs="?", type=Topology, choices=list(Topology), default=Topology.DISAGG, help="default: disagg")
    only = "; vllm-cpu in containers only" if "vllm-cpu" in engines else ""
    add("--engine", choices=engines, default="vllm", help=f"what computes{only} (default: vllm)")
    add("--prefill", type=_count, metavar="N", help="prefill engines, on consecutive GPUs unless PREFILL_GPUS is set")
    add("--decode", type=_count, metavar="N", help="decode engines, likewise")
    add("--combined", type=_count, metavar="N", help="combined engines; as many as prefill and decode GPUs otherwise")


def _up(parser: argparse.ArgumentParser, *, containers: bool = True) -> None:
    _what(parser, ENGINES_UP if containers else ENGINES_HERE)
    add = parser.add_argument
    if containers:
        add("--containers", action="store_true", help="through docker compose")
        add(
            "--profile",
            action="append",
            metavar="P",
            help="compose profile in place of the one for topology and engine",
        )
    else:
        parser.set_defaults(containers=False, profile=None)
    _checked_first(parser)
    add(
        "--patience",
        type=_positive,
        default=300.0,
        metavar="S",
        help="give up when nothing has moved for S seconds (300)",
    )


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="process or container, as `pdctl status` names it; all if left out")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written next (needs a name)")
    parser.add_argument("-n", "--lines", type=_lines, default=20, metavar="N", help="lines of each to begin with (20)")


def _smoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="where to send it; the running deployment's proxy unless given")
    parser.add_argument("--model", help="the first that is served unless given")
    parser.add_argument("--timeout", type=_positive, default=60.0, metavar="S", help="for each request (60)")


def _demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", choices=ENGINES_DEMO, default="sim", help="simulated, or real vLLM on the CPU (default: sim)")
    add("--out", default="results/demo", metavar="DIR", help="where runs and report go (results/demo)")
    add("--rate", type=_positive, metavar="R", help="requests a second over the whole deployment")
    add("--duration", type=_positive, metavar="S", help="seconds of load for each topology")
    add("--input-tokens", type=_count, metavar="N", help="tokens a prompt")
    add("--output-tokens", type=_count, metavar="N", help="tokens an answer")
    add("--seed", type=int, default=0, metavar="N", help="seed of schedule and prompts (0)")
    add("--dataset", choices=("random", "text"), help="random tokens, or the natural-language text that is shipped")
    add(
        "--patience",
        type=_positive,
        default=600.0,
        metavar="S",
        help="give up when nothing has moved for S seconds (600)",
    )


def _count(text: str) -> int:
    return _checked(int(text), least=1)


def _lines(text: str) -> int:
    return _checked(int(text), least=0)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        msg = f"{text} is not more than 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def _checked(value: int, least: int) -> int:
    if value < least:
        msg = f"{value} is less than {least}"
        raise argparse.ArgumentTypeError(msg)
    return value
