"""Memory, NCCL's variables, ports and addresses; no I/O."""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pd_contracts.names import Connector
from pd_control.doctor.catalogue import Finding, found, well
from pd_control.doctor.checks_gpu import GIB
from pd_control.doctor.facts import Facts, Machine
from pd_control.planning.plan import ProcessSpec

MIB = 1024**2
# Docker gives 64 MiB by default, and a vLLM engine on the CPU was seen to take 160 MB of it; NCCL takes more for every
# connection that does not go over P2P.
SHM_LEAST, SHM_EASY = 256 * MIB, GIB
MEMORY_AN_ENGINE = 4 * GIB
MEMLOCK_EASY = GIB
INTERFACES: Final = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def machine_findings(facts: Facts, specs: Sequence[ProcessSpec]) -> Iterator[Finding]:
    """All findings about the machine; memory and NCCL only if vLLM is to run."""
    yield from _ports(facts.machine, [spec for spec in specs if spec.name not in facts.running])
    yield from _addresses(facts.machine, specs)
    engines = [spec for spec in specs if spec.role is not None]
    if facts.software is not None and engines:
        yield from _memory(facts, engines)
        yield from _nccl(facts.variables)
        yield from _interfaces(facts)


def _ports(machine: Machine, specs: Sequence[ProcessSpec]) -> Iterator[Finding]:
    listens = [(spec.name, listen) for spec in specs for listen in spec.listens]
    for name, listen in listens:
        if listen.port in machine.taken:
            sentence = f"port {listen.port} of {name} is taken: set {listen.variable} to another port"
            yield found("port-taken", name, sentence)
        elif machine.ephemeral and machine.ephemeral[0] <= listen.port <= machine.ephemeral[1]:
            first, last = machine.ephemeral
            sentence = f"{listen.variable} {listen.port} is within {first} to {last}"
            yield found("port-ephemeral", name, sentence)
    if listens and not machine.taken:
        yield well("port-taken", "ports", f"{len(listens)} ports are free")


def _addresses(machine: Machine, specs: Sequence[ProcessSpec]) -> Iterator[Finding]:
    engine = next((spec for spec in specs if spec.role is not None), None)
    if engine is None:
        return
    proxy = engine.env.get("PROXY_HOST", "")
    if not machine.proxy_address:
        yield found("proxy-host", "PROXY_HOST", f"{proxy!r} does not resolve")
        return
    own = engine.env.get("VLLM_HOST_IP") or machine.own_address
    if _is_loopback(own) and not _is_loopback(machine.proxy_address):
        yield found("address-loopback", "VLLM_HOST_IP", f"{own} would be announced to the proxy at {proxy}")
    elif not own or own in machine.foreign:
        yield found("address-foreign", "VLLM_HOST_IP", f"{own or 'nothing'} is not an address of this host")
    else:
        yield well("address-foreign", "address", f"engines announce {own} to the proxy at {proxy}")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _memory(facts: Facts, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    machine = facts.machine
    if machine.shm_bytes is not None and machine.shm_free_bytes is not None:
        said = f"{_size(machine.shm_free_bytes)} of {_size(machine.shm_bytes)} free in /dev/shm"
        if machine.shm_free_bytes < SHM_LEAST:
            yield found("shm", "shared memory", said)
        elif machine.shm_free_bytes < SHM_EASY:
            yield found("shm-small", "shared memory", said)
        else:
            yield well("shm", "shared memory", said)
    if any(machine.namespaces.values()):
        told = ", ".join(f"{kind} {number}" for kind, number in machine.namespaces.items())
        yield well("p2p", "namespaces", f"{told}; engines of one host need the same for P2P")
    wanted = MEMORY_AN_ENGINE * len(engines)
    if machine.memory_bytes is not None and machine.memory_bytes < wanted:
        sentence = f"{_size(machine.memory_bytes)} for {len(engines)} engines, which take {_size(wanted)} or more"
        yield found("host-memory", "host memory", sentence)
    nixl = any(engine.env.get("KV_CONNECTOR") == Connector.NIXL for engine in engines)
    if nixl and machine.rdma and machine.memlock_bytes is not None and machine.memlock_bytes < MEMLOCK_EASY:
        yield found("memlock", "RLIMIT_MEMLOCK", f"{_size(machine.memlock_bytes)}, and there are RDMA devices")


def _size(size: int) -> str:
    return (
        f"{size / GIB:.0f} GiB"
        if size >= 10 * GIB
        else f"{size / GIB:.1f} GiB"
        if size >= GIB
        else f"{size // MIB} MiB"
    )


def _nccl(variables: Mapping[str, str]) -> Iterator[Finding]:
    off = [
        f"{name}={variables[name]}"
        for name, values in (("NCCL_P2P_DISABLE", {"1"}), ("NCCL_P2P_LEVEL", {"LOC", "0"}))
        if variables.get(name) in values
    ]
    if off and variables.get("NCCL_SHM_DISABLE") == "1":
        yield found("nccl-no-way", "NCCL", f"{off[0]} and NCCL_SHM_DISABLE=1")
    elif off:
        yield found("nccl-p2p-off", "NCCL", " and ".join(off))
    if variables.get("NCCL_CUMEM_ENABLE") == "0":
        yield found("nccl-cumem", "NCCL", "NCCL_CUMEM_ENABLE=0")


def _interfaces(facts: Facts) -> Iterator[Finding]:
    names = facts.machine.interfaces
    for variable in INTERFACES:
        value = facts.variables.get(variable, "")
        if value and not chosen(value, names):
            yield found("interface", variable, f"{value} matches none of {', '.join(names)}")
    # NAME:PORT for an RDMA device, NAME for an interface; "all" for every one.
    listed = [name for name in facts.variables.get("UCX_NET_DEVICES", "").split(",") if name not in ("", "all")]
    for name in listed:
        if name.split(":")[0] not in {*names, *facts.machine.rdma}:
            there = ", ".join([*names, *facts.machine.rdma])
            yield found("interface", "UCX_NET_DEVICES", f"{name} is not one of {there}")


def chosen(value: str, names: Sequence[str]) -> list[str]:
    """The interfaces that NCCL takes: a list of prefixes, of whole names after "=", or of what to leave out after "^"."""
    leave_out, exact = value.startswith("^"), value.lstrip("^").startswith("=")
    parts = [part for part in re.split(r"[,;]", value.lstrip("^=")) if part]
    hit = [name for name in names if any(name == part if exact else name.startswith(part) for part in parts)]
    return [name for name in names if name not in hit] if leave_out else hit
