"""The comparison: each topology in turn gets the same load, then the report is rendered from both."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from pd_contracts.names import Topology
from pd_contracts.records import MANIFEST, write_json
from pd_control.client import proxy_stats, served_models
from pd_control.context import Context
from pd_control.demo.load import CLIENT_LATE, VERDICTS, Load, LoadError, Target, command, refuse_unequal
from pd_control.docker.compose import PROFILES, Stack
from pd_control.docker.containers import engine_infos, expected, url_of
from pd_control.local import readiness
from pd_control.local.processes import launch
from pd_control.planning import free_ports, manifest_facts
from pd_control.planning.plan import Engine, plan, port_needs
from pd_control.supervision import attached_command, supervisor
from pd_control.supervision.supervisor import StartError

Stage = Callable[[Topology], AbstractContextManager[Target]]

ORDER = (Topology.DISAGG, Topology.COMBINED)
MONITOR_LIMIT_S = 20.0  # it looks for boards every few seconds
DEPLOYMENT_FILE = "deployment-{}.json"


def run(context: Context, stage: Stage, load: Load, out: Path, title: str) -> int:
    """Measure both topologies into `out` and render the report there; the exit status says whether it may be believed.

    Raises:
        StartError, ContainerError: if a deployment does not come up.
        LoadError: if a load fails or the two differ.
        KeyboardInterrupt: after everything was stopped.
    """
    clear(out)
    late = []
    for topology in ORDER:
        with stage(topology) as target:
            status = attached_command.run(command(load, target, out / topology), context.environment)
        if status == CLIENT_LATE:
            late.append(topology)
        elif status != 0:
            msg = f"{topology}: {VERDICTS.get(status, f'pd-loadgen ended with status {status}')}"
            raise LoadError(msg)
    context.terminal.title("Report")
    with context.terminal.step("the same schedule for both") as step:
        step.text = f"both were offered the same schedule, {refuse_unequal([out / topology for topology in ORDER])}"
    render(context, out, title)
    if late:
        context.terminal.error(
            f"the client was late in {', '.join(late)}: these runs are INVALID; lower --rate or free some cores"
        )
    return CLIENT_LATE if late else 0


def clear(out: Path) -> None:
    """Make room for new runs, without removing anything that is no run.

    Raises:
        LoadError: if a folder that a run would go to holds something else.
    """
    for topology in ORDER:
        folder = out / topology
        if folder.exists() and any(folder.iterdir()):
            if not (folder / MANIFEST).exists():
                msg = f"{folder} holds something that is no run: choose another --out"
                raise LoadError(msg)
            shutil.rmtree(folder)


def render(context: Context, out: Path, title: str) -> None:
    """Write report.html, report.md and plots into `out`, and the closing table to the terminal.

    Raises:
        LoadError: if the report cannot be made.
    """
    runs = [str(out / topology) for topology in ORDER]
    analysis = [sys.executable, "-m", "pd_analysis"]
    # Plotting libraries tell of their font caches at INFO, in the middle of the steps.
    environment = {**context.environment, "LOG_LEVEL": context.environment.get("LOG_LEVEL") or "WARNING"}
    with context.terminal.step(f"report in {out}") as step:
        step.text = f"report.html, report.md and plots in {out}"
        status = attached_command.run(
            [*analysis, "report", *runs, "--out", str(out), "--title", title], context.environment, quiet=True
        )
        if status != 0:
            msg = f"pd-analysis report ended with status {status}"
            raise LoadError(msg)
    attached_command.run([*analysis, "compare", *runs], environment)


def process_stage(context: Context, stall_s: float) -> Stage:
    """Simulated engines, proxy and monitor as processes that die with this one, at default ports or else free ones."""

    @contextmanager
    def stage(topology: Topology) -> Iterator[Target]:
        settings = context.settings
        planned = plan(settings, topology, Engine.SIM)
        moved = free_ports.choose(dict(port_needs(planned)), supervisor.is_free)
        planned = plan(msgspec.structs.replace(settings, **moved), topology, Engine.SIM)
        label = manifest_facts.label(topology, planned.shape)
        context.terminal.title(f"{label} (SIMULATED)")
        state = launch(context, planned, stall_s=stall_s, tethered=True)
        monitor = f"http://127.0.0.1:{planned.settings.monitor_port}"
        try:
            with context.terminal.step("monitor sees every board"):
                readiness.until_boards(monitor, planned.gpus, MONITOR_LIMIT_S)
            described = manifest_facts.of_processes(planned, proxy_stats(state.url))
            yield Target(
                url=state.url,
                model=served_models(state.url)[0],
                label=described.label,
                deployment=_written(context, topology, described),
                monitor=monitor,
            )
        finally:
            with context.terminal.step(f"stop {label}"):
                supervisor.stop(state.processes)
                context.store.forget()

    return stage


def container_stage(context: Context, stack: Stack, stall_s: float) -> Stage:
    """Real vLLM on the CPU in containers; there is no GPU, so no monitor and no power."""

    @contextmanager
    def stage(topology: Topology) -> Iterator[Target]:
        profile = PROFILES["vllm-cpu", topology]
        context.terminal.title(f"{topology} (vLLM on the CPU, profile {profile})")
        try:
            with context.terminal.step(f"containers of profile {profile}"):
                stack.up([profile])
            containers = stack.containers()
            url = url_of(containers, context.environment)
            if url is None:
                msg = f"compose profile {profile} has no proxy"
                raise StartError(msg)
            with context.terminal.step("engines") as step:
                for seen in readiness.watch(url, expected(containers), stack.traces(), stall_s, poll_s=1.0):
                    step.waiting_for(seen.waiting)
                step.text = f"engines are ready at {url}"
            engines = engine_infos(stack.containers())
            described = manifest_facts.of_containers(topology, engines, proxy_stats(url), stack.engine_version())
            yield Target(
                url=url,
                model=served_models(url)[0],
                label=described.label,
                deployment=_written(context, topology, described),
            )
        finally:
            with context.terminal.step(f"remove containers of profile {profile}"):
                stack.down(volumes=True)

    return stage


def _written(context: Context, topology: Topology, described: object) -> Path:
    path = context.store.folder / DEPLOYMENT_FILE.format(topology)
    write_json(path, described)
    return path.resolve()
