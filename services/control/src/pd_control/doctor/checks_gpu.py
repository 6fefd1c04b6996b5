"""GPUs and what joins them; no I/O."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from pd_contracts.names import Connector, Role
from pd_control.doctor.catalogue import Finding, found, well
from pd_control.doctor.facts import Facts, Gpu, Link, Nvml
from pd_control.planning.plan import ProcessSpec

GIB = 1024**3
# vLLM 0.23's own share, and the engine entry point's for a decode that P2pNcclConnector sends KV to.
DEFAULT_SHARE, DECODE_SHARE = 0.92, 0.7


def gpu_findings(facts: Facts, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    """All findings about GPUs; none if no GPU is needed."""
    nvml = facts.nvml
    if nvml is None:
        return
    if nvml.problem:
        yield found("nvml", "NVML", nvml.problem)
        return
    cuda = f", CUDA {nvml.cuda[0]}.{nvml.cuda[1]}" if nvml.cuda else ""
    yield well("nvml", "driver", f"{nvml.driver}{cuda}, {len(nvml.gpus)} GPUs")
    boards = {gpu.index: gpu for gpu in nvml.gpus}
    yield from _visible(facts, engines)
    for engine in engines:
        for index in engine.gpus:
            yield from _board(facts, engine, index, boards)
    used = {boards[index].name for engine in engines for index in engine.gpus if index in boards}
    if len(used) > 1:
        yield found("gpu-unlike", "GPUs", f"engines are on {' and '.join(sorted(used))}")
    yield from _ways(nvml, engines)


def _visible(facts: Facts, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    visible = facts.variables.get("CUDA_VISIBLE_DEVICES", "")
    if not visible:
        return
    planned = {str(index) for engine in engines for index in engine.gpus}
    if not planned <= {name.strip() for name in visible.split(",")}:
        listed = ",".join(sorted(planned, key=int))
        yield found("visible-devices", "GPUs", f"CUDA_VISIBLE_DEVICES={visible}, and engines are planned on {listed}")


def _board(facts: Facts, engine: ProcessSpec, index: int, boards: Mapping[int, Gpu]) -> Iterator[Finding]:
    subject, gpu = f"GPU {index}", boards.get(index)
    if gpu is None:
        there = ", ".join(map(str, sorted(boards))) or "none"
        yield found("gpu-missing", subject, f"{engine.name} is planned on it, but the GPUs are: {there}")
        return
    if gpu.mig:
        yield found("gpu-mig", subject, f"{gpu.name} is divided by MIG")
        return
    if engine.name not in facts.running:
        yield from _memory(facts, engine, gpu)
    if gpu.tenants:
        told = ", ".join(f"{t.name or 'process'} {t.pid}{_of(t.memory_bytes)}" for t in gpu.tenants)
        yield found("gpu-tenant", subject, f"{told} uses it" if len(gpu.tenants) == 1 else f"{told} use it")
    if gpu.throttled:
        yield found("gpu-throttled", subject, f"clocks are held down: {', '.join(gpu.throttled)}")
    if gpu.power_limit_w and gpu.power_default_w and gpu.power_limit_w < gpu.power_default_w:
        yield found("gpu-capped", subject, f"limited to {gpu.power_limit_w:.0f} W of {gpu.power_default_w:.0f} W")
    if gpu.links_down:
        yield found("nvlink-down", subject, f"{gpu.links_down} of {gpu.links_up + gpu.links_down} NVLinks are down")


def _of(size: int | None) -> str:
    return f" ({size / GIB:.1f} GiB)" if size else ""


def _memory(facts: Facts, engine: ProcessSpec, gpu: Gpu) -> Iterator[Finding]:
    if gpu.free_bytes is None or gpu.memory_bytes is None or facts.option("kv_cache_memory_bytes", ""):
        return  # with a KV cache of fixed size vLLM does not take a share of the memory
    share = share_of(facts, engine)
    free, total = gpu.free_bytes / GIB, gpu.memory_bytes / GIB
    subject = f"GPU {gpu.index}"
    said = f"{free:.0f} of {total:.0f} GiB free, {engine.name} takes {share * total:.0f} ({share:g} of all)"
    yield (found if free < share * total else well)("gpu-memory", subject, f"{gpu.name}: {said}")


def share_of(facts: Facts, engine: ProcessSpec) -> float:
    """Fraction of a GPU's memory that an engine takes at start."""
    told = facts.option("gpu_memory_utilization", "GPU_MEMORY_UTILIZATION")
    try:
        return float(told)
    except ValueError:  # unset, or not a number, which the engine's own settings report
        p2p = engine.env.get("KV_CONNECTOR") == Connector.P2P_NCCL
        return DECODE_SHARE if p2p and engine.role is Role.DECODE else DEFAULT_SHARE


def _ways(nvml: Nvml, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    links = {frozenset((link.a, link.b)): link for link in nvml.links}
    up = {gpu.index: gpu.links_up for gpu in nvml.gpus}
    for a, b in exchanging(engines):
        link = links.get(frozenset((a, b)))
        if link is not None:
            yield _way(link, f"GPU {a} ↔ GPU {b}", min(up.get(a, 0), up.get(b, 0)))


def exchanging(engines: Sequence[ProcessSpec]) -> list[tuple[int, int]]:
    """Pairs of GPUs over which KV goes, or the parts of one engine."""
    of = {role: [gpu for engine in engines if engine.role is role for gpu in engine.gpus] for role in Role}
    between = set(product(of[Role.PREFILL], of[Role.DECODE]))
    within = {(a, b) for engine in engines for a in engine.gpus for b in engine.gpus if a < b}
    return sorted((a, b) for a, b in between | within if a != b)


def _way(link: Link, subject: str, nvlinks: int) -> Finding:
    path = f" ({link.path})" if link.path else ""
    if link.p2p is False:
        return found("p2p", subject, f"no P2P{path}")
    if link.nvlink is False:
        return found("nvlink", subject, f"P2P over PCIe{path}")
    if link.nvlink:
        return well("nvlink", subject, f"P2P over NVLink, {nvlinks} links" if nvlinks else "P2P over NVLink")
    return well("p2p", subject, f"NVML does not report how they are connected{path}")
