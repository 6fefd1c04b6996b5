"""How it was measured: the facts of the manifests, one per row, so that a reader can repeat it; what was left out; every definition."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from pd_analysis.numbers.evaluation import ROLES, TOPOLOGIES, Group, Result
from pd_analysis.numbers.load import Pace, amount_words, pace_of, spread
from pd_analysis.records.run import Problem
from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words.formatting import DASH, clauses, joined, listed, number, setting, whole
from pd_analysis.words.formulas import ALL, formula
from pd_analysis.words.language import tr
from pd_contracts.records import EngineInfo, GpuHeader, Workload
from pd_contracts.urls import without_secret


def setup(group: Group) -> Table:
    """One column per run; facts that no run has are left out."""
    facts = [_facts(result) for result in group.results]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = tuple(
        (Cell(name), *(Cell(each.get(name) or DASH) for each in facts))
        for name in names
        if any(each.get(name) for each in facts)
    )
    header = ("", *(result.name for result in group.results))
    return Table(title=tr("Set-up"), header=header, rows=rows, words=frozenset(range(len(header))), merge=True)


def commands(group: Group) -> dict[str, str]:
    """The command of every run that recorded it, ready for a shell."""
    found = {result.name: without_secret(shlex.join(result.run.manifest.command)) for result in group.results}
    return {name: command for name, command in found.items() if command}


def _facts(result: Result) -> dict[str, str]:
    manifest = result.run.manifest
    deployment = manifest.deployment
    return {
        tr("Measured"): manifest.created,
        tr("Topology"): tr(TOPOLOGIES[deployment.topology]) if deployment.topology else "",
        tr("GPUs"): whole(deployment.gpus),
        tr("Engines"): _engines(deployment.engines),
        tr("Proxy"): _pairs(deployment.settings),
        tr("Hardware"): _boards(result.run.gpu),
        tr("Power recorder"): _recorder(result.run.gpu),
        **_workload(manifest.workload),
        tr("Schedule hash"): manifest.schedule_hash,
        tr("Load generator"): _client(result),
        tr("Software"): _pairs(deployment.software),
        tr("Host"): _pairs(manifest.host),
        tr("Notes"): clauses(manifest.notes),
    }


def _pairs(facts: Mapping[str, str]) -> str:
    return joined(f"{name} {value}" for name, value in facts.items())


def _workload(load: Workload) -> dict[str, str]:
    limits = joined(f"{name} {setting(limit)} ms" for name, limit in load.goodput.items())
    return {
        tr("Data"): load.dataset,
        tr("Tokens"): _tokens(load),
        tr("Model"): load.model,
        tr("Arrivals"): _arrivals(load),
        tr("Requests"): tr(
            "{count}, after {warmup} of warm-up", count=f"{load.requests:,}", warmup=f"{load.warmup_requests:,}"
        ),
        tr("Endpoint"): load.endpoint,
        tr("Other options of the load"): _pairs(load.options),
        tr("Goodput limits"): limits,
        tr("Seed"): str(load.seed),
    }


def _tokens(load: Workload) -> str:
    if load.input_tokens is None and load.output_tokens is None:
        return spread(load)
    return tr("{prompt} in, {output} out", prompt=whole(load.input_tokens), output=whole(load.output_tokens))


def _arrivals(load: Workload) -> str:
    """What set the pace. Only an open loop has a given rate; the rates of the others are results, which other tables show."""
    asked = amount_words(load)
    if pace_of(load) is not Pace.RATE:
        return tr("{kind}, {amount}", kind=load.arrival, amount=asked)
    kind = load.arrival
    if load.burstiness is not None:
        kind = tr("{arrival} (burstiness {value})", arrival=load.arrival, value=setting(load.burstiness))
    held = "" if load.max_concurrency is None else tr(", at most {count} in flight", count=load.max_concurrency)
    return tr(
        "{kind}, {amount} for {seconds} s{held}", kind=kind, amount=asked, seconds=setting(load.duration_s), held=held
    )


def _engines(engines: Sequence[EngineInfo]) -> str:
    """Engines that differ only in name and GPUs are listed once."""
    kinds: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    for engine in engines:
        kind = _engine(engine)
        counts[kind] += 1
        kinds.setdefault(kind, []).extend(engine.gpus)
    return clauses(f"{counts[kind]} × {kind}{_on(gpus)}" for kind, gpus in kinds.items())


def _engine(engine: EngineInfo) -> str:
    software = " ".join(filter(None, (engine.engine, engine.version)))
    connector = engine.connector.value if engine.connector else ""
    return joined(
        filter(
            None,
            (
                tr("{role}: {software}", role=tr(ROLES[engine.role]), software=software)
                if software
                else tr(ROLES[engine.role]),
                engine.model,
                connector,
                engine.image,
                engine.image_digest,
            ),
        )
    )


def _on(gpus: Sequence[int]) -> str:
    return tr(" (GPU {gpus})", gpus=listed(map(str, gpus))) if gpus else ""


def _boards(header: GpuHeader | None) -> str:
    if header is None:
        return ""
    kinds: dict[str, list[int]] = {}
    for gpu in header.gpus:
        limit = "" if gpu.power_limit_w is None else tr("limit {watts} W", watts=setting(gpu.power_limit_w))
        driver = tr("driver {version}", version=gpu.driver) if gpu.driver else ""
        kinds.setdefault(joined(filter(None, (gpu.name, limit, driver))), []).append(gpu.index)
    return clauses(f"{len(indexes)} × {kind}" for kind, indexes in kinds.items())


def _recorder(header: GpuHeader | None) -> str:
    return (
        ""
        if header is None
        else tr("{backend}, every {interval} ms", backend=header.backend, interval=setting(header.interval_s * 1e3))
    )


def _client(result: Result) -> str:
    client = result.run.manifest.client
    if client is None:
        return ""
    lag = joined(f"{name} {number(value)} ms" for name, value in client.dispatch_lag_ms.items())
    return tr("kept up, dispatch lag {lag}", lag=lag) if client.valid else tr("INVALID, dispatch lag {lag}", lag=lag)


def left_out(problems: Sequence[Problem]) -> Table | None:
    """Folders that could not be used, or only in part, with the reason; None if there are none."""
    rows = [[str(problem.path), problem.sentence] for problem in problems]
    title = tr("Read only in part") if all(problem.kept for problem in problems) else tr("Left out")
    return table(title, [tr("Folder"), tr("Reason")], rows, {0, 1}) if rows else None


def definitions() -> Table:
    return table(tr("Definitions"), [tr("Number"), tr("Formula")], [(tr(name), formula(name)) for name in ALL], {0, 1})
