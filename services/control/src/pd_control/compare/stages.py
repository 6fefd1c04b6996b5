"""Starts each deployment in turn, as processes or containers, and always stops it afterwards."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from pd_contracts.free_ports import claim
from pd_control.client import served_models
from pd_control.compare.deployments import Spec, placed
from pd_control.context import Context
from pd_control.docker.compose import PAGES, Stack, profile_of
from pd_control.docker.containers import expected, url_of
from pd_control.doctor.catalogue import Finding
from pd_control.doctor.command import admits, errors, examine
from pd_control.local import readiness
from pd_control.local.processes import launch
from pd_control.planning import free_ports
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import Engine, Plan, plan, port_needs
from pd_control.supervision import supervisor
from pd_control.supervision.state import Running, is_alive
from pd_control.supervision.supervisor import StartError

MONITOR_LIMIT_S = 20.0  # it looks for boards every few seconds


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment that is ready for load.

    Attributes:
        monitor: where power is read; empty without GPUs.
        check: raises StartError if a part of it has died.
    """

    url: str
    model: str
    label: str
    check: Callable[[], object]
    monitor: str = ""


Stage = Callable[[Spec], AbstractContextManager[Target]]


def planned(context: Context, engine: Engine, spec: Spec, gpus: list[int]) -> Plan:
    """The processes of one deployment, at random free ports, so that it collides neither with `pdctl up` nor with another comparison.

    Raises:
        PlanError: for impossible GPUs or ports.
    """
    settings = placed(context.settings, spec, gpus)
    needs = dict(port_needs(plan(settings, spec.topology, engine)))
    usual = {port for ports in needs.values() for port in ports}
    moved = free_ports.choose(needs, lambda port: port not in usual and claim(port))
    return plan(msgspec.structs.replace(settings, **moved), spec.topology, engine)


def unfit(context: Context, engine: Engine, specs: Sequence[Spec], gpus: list[int]) -> dict[str, list[Finding]]:
    """Errors of the machine check, by the label of the deployment that they keep from starting as processes.

    Raises:
        PlanError: for impossible GPUs or ports.
    """
    found = {
        spec.label: errors(examine(context, planned(context, engine, spec, gpus).processes, engine).findings)
        for spec in specs
    }
    return {label: findings for label, findings in found.items() if findings}


def processes(context: Context, engine: Engine, gpus: list[int], *, stall_s: float, force: bool = False) -> Stage:
    """Engines, proxy and monitor as processes that die with this one."""

    @contextmanager
    def stage(spec: Spec) -> Iterator[Target]:
        made = planned(context, engine, spec, gpus)
        simulated = engine is Engine.SIM
        context.terminal.title(f"{spec.label}{' (SIMULATED)' if simulated else ''}")
        if not simulated and not admits(context, made.processes, engine, force=force):
            msg = f"{spec.label}: this machine cannot run it, for the reasons above"
            raise StartError(msg)
        state = launch(context, made, stall_s=stall_s, tethered=True)
        monitor = f"http://127.0.0.1:{made.settings.monitor_port}"
        try:
            with context.terminal.step("monitor sees every GPU"):
                readiness.until_boards(monitor, made.gpus, MONITOR_LIMIT_S)
            yield Target(
                url=state.url,
                model=served_models(state.url)[0],
                label=spec.label,
                check=lambda: _refuse_dead(state.processes),
                monitor=monitor,
            )
        finally:
            with context.terminal.step(f"stop {spec.label}"):
                supervisor.stop(state.processes)
                context.store.forget()

    return stage


def _refuse_dead(running: list[Running]) -> None:
    for process in running:
        if not is_alive(process):
            raise supervisor.death(process)


def project_of(out: Path) -> str:
    """The compose project of a comparison. It is unique per results folder, so a second start finds the containers of a killed one."""
    return f"pdstack-compare-{_number(out)}"


def folder_of(out: Path) -> str:
    """The name of a comparison's folder of logs and locks, unique per results path."""
    return f"compare-{out.resolve().name}-{_number(out)}"


def _number(out: Path) -> str:
    return f"{zlib.crc32(str(out.resolve()).encode()):08x}"


def containers(context: Context, stack: Stack, engine: str, *, stall_s: float) -> Stage:
    """As `processes`, through docker compose, whose profiles have one prefill and one decode engine, or two combined ones."""

    @contextmanager
    def stage(spec: Spec) -> Iterator[Target]:
        profile = profile_of(engine, spec.topology, spec.connector or context.settings.kv_connector)
        context.terminal.title(f"{spec.label} (containers, profile {profile})")
        try:
            with context.terminal.step(f"containers of profile {profile}"):
                stack.up([profile], leave_out=PAGES)
            found = stack.containers()
            url = url_of(found, context.environment)
            if url is None:
                msg = f"compose profile {profile} has no proxy"
                raise StartError(msg)
            traces = stack.traces()
            with context.terminal.step("engines") as step:
                for seen in readiness.watch(url, expected(found), traces, stall_s, poll_s=1.0):
                    step.waiting_for(seen.waiting)
                step.text = f"engines are ready at {url}"
            yield Target(
                url=url,
                model=served_models(url)[0],
                label=spec.label,
                check=traces,
                monitor=_monitor(context) if engine == "vllm" else "",
            )
        finally:
            with context.terminal.step(f"remove containers of profile {profile}"):
                stack.down(volumes=True)

    return stage


def refuse_unfit_for_containers(specs: list[Spec]) -> None:
    """Refuse deployments that compose has no profile for.

    Raises:
        PlanError: for a deployment that no profile has.
    """
    for spec in specs:
        if msgspec.structs.replace(spec, manner="") not in (Spec(combined=2), Spec(prefill=1, decode=1)):
            msg = f"containers run only 1p1d and 2c, not {spec.name}: remove --containers, or name only these in --deployments"
            raise PlanError(msg)


def _monitor(context: Context) -> str:
    return f"http://127.0.0.1:{context.settings.monitor_port}"
