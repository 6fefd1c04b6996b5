"""Running pdctl in a test: free ports, a state folder of its own, and a look at what it leaves behind."""

import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import msgspec
import psutil

from pd_contracts.free_ports import claim
from pd_contracts.names import Role, Topology
from pd_control.planning import free_ports
from pd_control.planning.plan import Engine, Listen, Plan, ProcessSpec, plan, port_needs
from pd_control.settings import ControlSettings


def settings(**changes: object) -> ControlSettings:
    """Settings without any environment."""
    return msgspec.convert({**msgspec.to_builtins(ControlSettings()), **changes}, ControlSettings)


def free_variables(prefill: int = 2, decode: int = 2) -> dict[str, str]:
    """Environment variables that move every port of pdstack to free ones, for as many engines."""
    counts = {Role.PREFILL: prefill, Role.DECODE: decode, Role.COMBINED: prefill + decode}
    plans = [plan(settings(), topology, Engine.SIM, counts) for topology in Topology]
    needs = dict(need for planned in plans for need in port_needs(planned))
    own = set(chain.from_iterable(needs.values()))  # other tests may run beside this one and find them just as free
    moved = free_ports.choose(needs, lambda port: port not in own and claim(port))
    return {field.upper(): str(port) for field, port in moved.items()}


def environment(state_dir: Path, **more: str) -> dict[str, str]:
    """What a test gives to pdctl: the machine's own variables without pdstack's, free ports, its own state folder and
    compose project.
    """
    own = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFILL_", "DECODE_", "COMBINED_", "SIM_"))
    }
    apart = {"STATE_DIR": str(state_dir), "COMPOSE_PROJECT_NAME": compose_project(state_dir)}
    return {**own, **free_variables(), "BIND_HOST": "127.0.0.1", **apart, **more}


def compose_project(folder: Path) -> str:
    """A compose project of a test's own: `pdctl down` also ends containers, and these must not be of somebody who works here."""
    return f"pdstack-test-{zlib.crc32(str(folder).encode()):08x}"


def pdctl(*arguments: str, env: Mapping[str, str], cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run pdctl to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pd_control", *arguments],
        env={**env, "COLUMNS": "160"},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def script(name: str, code: str, role: Role | None = None) -> ProcessSpec:
    """A process that runs a line of Python."""
    return ProcessSpec(name=name, role=role, argv=[sys.executable, "-c", code], env={}, listens=[Listen(1, "NO_PORT")])


def replaced(planned: Plan, *processes: ProcessSpec) -> Plan:
    """The plan with other processes in place of its own."""
    return msgspec.structs.replace(planned, processes=list(processes))


def alive(pid: int) -> bool:
    """True if a process with this id runs and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
    except psutil.NoSuchProcess:
        return False
