"""`pdctl`: read the command line, run the subcommand, turn every expected failure into one sentence and a status."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from pd_contracts.folders import FolderError
from pd_contracts.names import Role
from pd_contracts.records import RecordError
from pd_contracts.settings import SettingsError
from pd_control.cli import commands, configuration, menu
from pd_control.cli.options import PLAN, parser
from pd_control.client import ClientError
from pd_control.compare.command import compare
from pd_control.compare.command import context as comparison_context
from pd_control.context import Context, open_context
from pd_control.docker.compose import ContainerError
from pd_control.doctor.command import doctor
from pd_control.env_files import complaints
from pd_control.local import single_process
from pd_control.planning.gpus import PlanError
from pd_control.planning.planned_deployment import Planned, in_compose
from pd_control.planning.planned_deployment import read as read_plan
from pd_control.supervision.state import StateError
from pd_control.supervision.supervisor import StartError
from pd_control.terminal import Terminal

COMMANDS = {
    "up": commands.up,
    "all": commands.up,
    "prefill": single_process.run,
    "decode": single_process.run,
    "combined": single_process.run,
    "proxy": single_process.run,
    "down": commands.down,
    "status": commands.status,
    "logs": commands.logs,
    "smoke": commands.run_smoke,
    "doctor": doctor,
    "config": configuration.show,
    "menu": menu.run,
    "compare": compare,
    "demo": compare,
}

# These bring up deployments of their own beside the one that `up` started.
APART = ("compare", "demo")
# These use settings, so they warn about unusable lines of `.env` and `.env.local`.
SETTING = ("up", "all", "prefill", "decode", "combined", "proxy", "doctor", "config", *APART)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _plan(words[1:]) if words[:1] == [PLAN] else _run(words)


def _run(words: Sequence[str]) -> int:
    everything = parser()
    options = everything.parse_args(words)
    if options.command is None:
        everything.print_help()
        return 0
    # A terminated pdctl cleans up like an interrupted one.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return COMMANDS[options.command](_context(options), options)
    except (SettingsError, PlanError) as error:
        Terminal().error(str(error))
        return 2
    except (StartError, ContainerError) as error:
        Terminal().error(str(error), error.lines)
        return 1
    except (StateError, ClientError, FolderError, RecordError) as error:
        Terminal().error(str(error))
        return 1
    except KeyboardInterrupt:
        Terminal().say("interrupted")
        return 130


def _plan(words: Sequence[str]) -> int:
    from pd_planner.main import main as plan  # noqa: PLC0415 - what it needs takes a second that other commands need not wait for

    return plan(words, prog=f"pdctl {PLAN}")


def _context(options: argparse.Namespace) -> Context:
    start, own = Path.cwd(), dict(os.environ)
    planned = _planned(options, own)
    if planned:
        own = in_compose(planned.variables) if options.containers else dict(planned.variables)
    context = comparison_context(start, own, options) if options.command in APART else open_context(start, own)
    if options.command in SETTING:
        for sentence in complaints(context.root, own):
            context.terminal.warn(sentence)
    if planned and planned.cells > 1:
        context.terminal.note(
            f"{planned.label}: this starts one of {planned.cells} cells; start each on its own GPUs, and share the load among their proxies"
        )
    return context


def _planned(options: argparse.Namespace, own: Mapping[str, str]) -> Planned | None:
    """The deployment of `--plan`; its topology replaces that of the command."""
    path = getattr(options, "plan", None)
    if path is None:
        return None
    said = [f"--{role}" for role in Role if getattr(options, role)] + ["--profile"] * bool(options.profile)
    if said:
        msg = f"{said[0]} and --plan exclude each other: the plan determines the engines"
        raise PlanError(msg)
    planned = read_plan(path, own)
    if options.containers and planned.refusal:
        raise PlanError(planned.refusal)
    options.topology = planned.topology
    return planned


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
