"""The subcommands: each takes the context and its options, and returns the exit status."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.text import Text

from pd_control.cli import smoke
from pd_control.client import SIMULATED, proxy_stats, served_models, simulated
from pd_control.context import Context
from pd_control.docker import containers
from pd_control.docker.compose import ContainerError, Stack, profile_of
from pd_control.docker.containers import Container
from pd_control.doctor.command import admits
from pd_control.local import processes, readiness
from pd_control.local.processes import Row
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import label, planned_by, topology_of
from pd_control.supervision.state import Running, State, StateError, is_alive
from pd_control.supervision.supervisor import death, last_lines
from pd_control.terminal import Terminal, table_of

COLUMNS = ("name", "role", "state", "pid or container", "port", "up since")
FOLLOW_POLL_S = 0.2


def up(context: Context, options: argparse.Namespace) -> int:
    """Start a deployment and wait until it serves."""
    if options.containers or options.profile or options.engine == "vllm-cpu":
        return _up_containers(context, options)
    planned = planned_by(context.settings, options)
    with context.store.lock():
        running = processes.refuse_second(context, planned)
        if running is not None:
            context.terminal.say(
                f"{label(running.topology, running.shape)} already runs at {running.url}; nothing to do"
            )
        elif not (options.skip_doctor or admits(context, planned.processes, planned.engine, force=options.force)):
            return 1
        else:
            running = processes.launch(context, planned, stall_s=options.patience)
    _show(context.terminal, processes.rows(running.processes, running.url))
    _hint(context.terminal)
    return 0


def _up_containers(context: Context, options: argparse.Namespace) -> int:
    if options.prefill or options.decode or options.combined:
        msg = "compose profiles have fixed numbers of engines: remove --prefill, --decode and --combined, or use processes"
        raise PlanError(msg)
    stack = Stack(context.root, context.environment)
    topology = topology_of(context.settings, options)
    profiles = options.profile or [profile_of(options.engine, topology, context.settings.kv_connector)]
    with context.store.lock():
        fresh = not stack.containers()
        try:
            stack.up(profiles)
            _wait_for_containers(context, stack, options.patience)
        except BaseException:
            if fresh:  # do not remove what ran before this command
                stack.down()
            raise
    found = stack.containers()
    url = containers.url_of(found, context.environment)
    _show(context.terminal, containers.rows(found, proxy_stats(url) if url else None))
    _hint(context.terminal)
    return 0


def _wait_for_containers(context: Context, stack: Stack, stall_s: float) -> None:
    found = stack.containers()
    url = containers.url_of(found, context.environment)
    if url is None:
        return  # dashboards alone: compose has waited for what they need
    with context.terminal.step("engines") as step:
        for seen in readiness.watch(url, containers.expected(found), stack.traces(), stall_s, poll_s=1.0):
            step.waiting_for(seen.waiting)
        step.text = f"engines are ready at {url}"


def down(context: Context, options: argparse.Namespace) -> int:
    """Stop the processes of the state folder and the containers of this clone, whichever there are."""
    stack = Stack(context.root, context.environment)
    stopped = False
    with context.store.lock():
        if not options.containers:
            stopped = processes.down(context)
        found = _containers(stack)
        stack.refuse_others(found)
        if options.containers or found:
            stack.down()
            stopped = True
    if not stopped:
        context.terminal.say("nothing runs")
    return 0


def status(context: Context, _options: argparse.Namespace) -> int:
    """Show everything that runs; 0 if all of it is healthy, 1 if not or if nothing runs."""
    state = context.store.load()
    found = _containers(Stack(context.root, context.environment))
    here = [*(state.processes if state else []), *processes.in_terminals(context.store)]
    url = state.url if state else context.settings.proxy_url
    rows: list[Row] = processes.rows(here, url)
    if found:
        outside = containers.url_of(found, context.environment)
        rows += containers.rows(found, proxy_stats(outside) if outside else None)
        url = outside or url
    if not rows:
        context.terminal.say("nothing runs: `pdctl up` starts a deployment")
        return 1
    if _simulated(url, here):
        context.terminal.caution(SIMULATED)
    _show(context.terminal, rows)
    for process in state.processes if state else []:
        _explain(context.terminal, process)
    return 0 if all(row.ok for row in rows) else 1


def _simulated(url: str, here: Sequence[Running]) -> bool:
    """Whether the deployment at `url`, or an engine that runs without one, is simulated."""
    engines = (f"http://127.0.0.1:{process.port}" for process in here if process.role is not None)
    return any(map(simulated, (url, *engines)))


def _explain(terminal: Terminal, process: Running) -> None:
    if not is_alive(process):
        told = death(process)
        terminal.error(str(told), told.lines[-5:])


def _containers(stack: Stack) -> list[Container]:
    try:
        return stack.containers()
    except ContainerError:
        return []  # without Docker there are no containers, and users of processes need no message


def _show(terminal: Terminal, rows: Iterable[Row]) -> None:
    lines = [
        (row.name, row.role, Text(row.state, "green" if row.ok else "bold red"), row.where, row.port, row.up_since)
        for row in rows
    ]
    terminal.table(table_of(lines, COLUMNS))


def _hint(terminal: Terminal) -> None:
    terminal.note("pdctl smoke tries it, pdctl logs NAME -f shows its log, pdctl down ends it")


def logs(context: Context, options: argparse.Namespace) -> int:
    """The last lines of one or all logs."""
    state = context.store.load()
    stack = Stack(context.root, context.environment)
    found = _containers(stack)
    if options.name is None:
        if options.follow:
            msg = "-f follows one process or container: name it"
            raise StateError(msg)
        return _all_logs(context, state, stack, found, options.lines)
    container = next((c for c in found if options.name in {c.name, c.service, c.instance}), None)
    if container is not None and not (state and options.name in {p.name for p in state.processes}):
        _write(
            stack.follow(container, options.lines) if options.follow else [_joined(stack.log(container, options.lines))]
        )
        return 0
    path = processes.log_of(state, context.store, options.name)
    _write([_joined(last_lines(path, options.lines))])
    if options.follow:
        _follow(path)
    return 0


def _all_logs(context: Context, state: State | None, stack: Stack, found: Sequence[Container], lines: int) -> int:
    texts = {process.name: last_lines(Path(process.log), lines) for process in state.processes} if state else {}
    texts.update({container.name: stack.log(container, lines) for container in found})
    if not texts:
        context.terminal.say("nothing runs; logs of what ran last can be shown by name")
        return 1
    for name, text in texts.items():
        context.terminal.title(name)
        _write([_joined(text)])
    return 0


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _write(chunks: Iterable[bytes]) -> None:
    # Written without the terminal's markup and wrapping, because other programs wrote these lines.
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _follow(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(0, 2)
        while True:
            _write([file.read()])
            time.sleep(FOLLOW_POLL_S)


def run_smoke(context: Context, options: argparse.Namespace) -> int:
    """Send test requests to the deployment; 0 if every check is ok."""
    url = (options.url or _url(context)).rstrip("/")
    model = options.model or served_models(url)[0]
    context.terminal.say(f"{model} at {url}")
    if simulated(url):
        context.terminal.caution(SIMULATED)
    checks = []
    for check in smoke.run(url, model, options.timeout):
        checks.append(check)
        _show_check(context.terminal, check)
    failed = [check.name for check in checks if not check.ok]
    if failed:
        context.terminal.error(f"failed: {', '.join(failed)}")
    else:
        context.terminal.say("ok")
    return 1 if failed else 0


def _show_check(terminal: Terminal, check: smoke.Check) -> None:
    terminal.verdict(check.ok, f"{check.name}: {check.sentence}")
    if check.text:
        terminal.note(repr(check.text))
    if check.tokens:
        terminal.note(f"tokens {' '.join(map(str, check.tokens))}")
    if check.stages is not None:
        terminal.note(smoke.stages_line(check.stages, streamed=check.streamed))


def _url(context: Context) -> str:
    state = context.store.load()
    if state is not None:
        return state.url
    url = containers.url_of(_containers(Stack(context.root, context.environment)), context.environment)
    return url or context.settings.proxy_url
