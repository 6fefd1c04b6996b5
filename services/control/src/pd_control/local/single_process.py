"""`pdctl prefill`, `decode`, `combined` and `proxy`: one process in this terminal, which pdctl becomes."""

import argparse
import os
import shlex

from pd_contracts.names import Role
from pd_control.context import Context
from pd_control.doctor.command import admits
from pd_control.local import processes
from pd_control.planning.plan import Engine, ProcessSpec, plan_one, proxy_spec
from pd_control.supervision import identity
from pd_control.supervision.state import StateError, begun, is_alive
from pd_control.supervision.supervisor import StartError, environment_of

TOGETHER_S = 10.0  # parts are often started in several terminals at once, and each locks the folder for a moment


def run(context: Context, options: argparse.Namespace) -> int:
    """Start one process in the foreground; returns only by raising, because the process replaces pdctl (exec).

    Raises:
        PlanError: if it has no GPU or port.
        StateError: if it already runs.
        StartError: if its program does not exist.
    """
    spec = spec_of(context, options)
    with context.store.lock(TOGETHER_S):
        processes.clear_terminals(context.store)
    refuse_running(context, spec.name)
    engine = Engine(getattr(options, "engine", Engine.SIM))
    if not (options.skip_doctor or admits(context, [spec], engine, force=options.force)):
        return 1
    context.terminal.say(f"{spec.name} on port {spec.port}; Ctrl-C ends it")
    context.terminal.note(shlex.join(spec.argv))
    with context.store.lock(TOGETHER_S):
        # Process id and start time stay what they are when the process becomes another program.
        context.store.record(begun(spec, os.getpid(), log=""))
    try:
        variables = {
            **context.environment,
            **identity.variables(context.store.folder, context.settings, context.environment),
        }
        return os.execvpe(spec.argv[0], spec.argv, environment_of(spec, variables))  # noqa: S606  a list, no shell
    except OSError as error:
        msg = f"{spec.name}: {spec.argv[0]}: {error.strerror}"
        raise StartError(msg) from error


def spec_of(context: Context, options: argparse.Namespace) -> ProcessSpec:
    """What is to run.

    Raises:
        PlanError: if it has no GPU or port.
    """
    if options.command == "proxy":
        return proxy_spec(context.settings)
    number = context.settings.instance if options.instance is None else options.instance
    return plan_one(context.settings, Engine(options.engine), Role(options.command), number)


def refuse_running(context: Context, name: str) -> None:
    """Refuse if it already runs.

    Raises:
        StateError: if it does.
    """
    state = context.store.load()
    background = state.processes if state else []
    for process in (*background, *context.store.terminals()):
        if process.name == name and is_alive(process):
            msg = f"{name} already runs as process {process.pid}: `pdctl down` ends it; --instance starts another"
            raise StateError(msg)
