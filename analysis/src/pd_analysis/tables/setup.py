"""How it was measured: what the manifests say, a row a fact, so that a reader can repeat it; what was left out; every definition."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.records.run import Problem
from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words import formulas
from pd_analysis.words.formatting import DASH, listed, number, setting, whole
from pd_contracts.records import EngineInfo, GpuHeader, Workload


def setup(group: Group) -> Table:
    """One column a run; facts that no run has are left out."""
    facts = [_facts(result) for result in group.results]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = tuple(
        (Cell(name), *(Cell(each.get(name) or DASH) for each in facts))
        for name in names
        if any(each.get(name) for each in facts)
    )
    header = ("", *(result.name for result in group.results))
    return Table(title="Set-up", header=header, rows=rows, words=frozenset(range(len(header))), merge=True)


def commands(group: Group) -> dict[str, str]:
    """The command of every run that recorded it, ready for a shell."""
    found = {result.name: shlex.join(result.run.manifest.command) for result in group.results}
    return {name: command for name, command in found.items() if command}


def _facts(result: Result) -> dict[str, str]:
    manifest = result.run.manifest
    deployment = manifest.deployment
    return {
        "Measured": manifest.created,
        "Topology": deployment.topology.value if deployment.topology else "",
        "GPUs": whole(deployment.gpus),
        "Engines": _engines(deployment.engines),
        "Hardware": _boards(result.run.gpu),
        "Power recorder": _recorder(result.run.gpu),
        **_workload(manifest.workload),
        "Schedule hash": manifest.schedule_hash,
        "Load generator": _client(result),
        "Software": _pairs(deployment.software),
        "Host": _pairs(manifest.host),
        "Notes": "; ".join(manifest.notes),
    }


def _pairs(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _workload(load: Workload) -> dict[str, str]:
    burstiness = "" if load.burstiness is None else f" (burstiness {setting(load.burstiness)})"
    limits = ", ".join(f"{name} {setting(limit)} ms" for name, limit in load.goodput.items())
    return {
        "Data": load.dataset,
        "Tokens": f"{whole(load.input_tokens)} in, {whole(load.output_tokens)} out",
        "Model": load.model,
        "Arrivals": f"{load.arrival}{burstiness}, {setting(load.rate)} requests/s for {setting(load.duration_s)} s",
        "Requests": f"{load.requests:,}, after {load.warmup_requests:,} of warm-up",
        "Endpoint": load.endpoint,
        "Goodput limits": limits,
        "Seed": str(load.seed),
    }


def _engines(engines: Sequence[EngineInfo]) -> str:
    """Engines that differ only in name and GPUs are told once."""
    kinds: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    for engine in engines:
        kind = _engine(engine)
        counts[kind] += 1
        kinds.setdefault(kind, []).extend(engine.gpus)
    return "; ".join(f"{counts[kind]} × {kind}{_on(gpus)}" for kind, gpus in kinds.items())


def _engine(engine: EngineInfo) -> str:
    software = " ".join(filter(None, (engine.engine, engine.version)))
    connector = engine.connector.value if engine.connector else ""
    return ", ".join(
        filter(
            None,
            (
                f"{engine.role.value}: {software}".rstrip(": "),
                engine.model,
                connector,
                engine.image,
                engine.image_digest,
            ),
        )
    )


def _on(gpus: Sequence[int]) -> str:
    return f" (GPU {listed(map(str, gpus))})" if gpus else ""


def _boards(header: GpuHeader | None) -> str:
    if header is None:
        return ""
    kinds: dict[str, list[int]] = {}
    for gpu in header.gpus:
        limit = "" if gpu.power_limit_w is None else f", limit {setting(gpu.power_limit_w)} W"
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        kinds.setdefault(f"{gpu.name}{limit}{driver}", []).append(gpu.index)
    return "; ".join(f"{len(indexes)} × {kind}" for kind, indexes in kinds.items())


def _recorder(header: GpuHeader | None) -> str:
    return "" if header is None else f"{header.backend}, every {setting(header.interval_s * 1e3)} ms"


def _client(result: Result) -> str:
    client = result.run.manifest.client
    if client is None:
        return ""
    lag = ", ".join(f"{name} {number(value)} ms" for name, value in client.dispatch_lag_ms.items())
    return f"{'kept up' if client.valid else 'INVALID'}, dispatch lag {lag}"


def left_out(problems: Sequence[Problem]) -> Table | None:
    """Folders that could not be used, with the reason; None if there are none."""
    rows = [[str(problem.path), problem.sentence] for problem in problems]
    return table("Left out", ["Folder", "Reason"], rows, {0, 1}) if rows else None


def definitions() -> Table:
    """Every formula, once."""
    return table("Definitions", ["Number", "Formula"], formulas.ALL.items(), {0, 1})
