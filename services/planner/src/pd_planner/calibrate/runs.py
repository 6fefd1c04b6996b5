"""Reads run folders as `Measured` runs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from pd_analysis.energy.joules import Energy
from pd_analysis.energy.window import energy_of
from pd_analysis.numbers.deployments import manner
from pd_analysis.records.reader import load_tree
from pd_analysis.records.run import Run
from pd_analysis.words.language import tr
from pd_contracts.deployment import with_manner
from pd_contracts.latency import succeeded
from pd_contracts.names import Connector, Role
from pd_contracts.records import REQUESTS, EngineInfo, RequestRecord
from pd_planner.calibrate.measured import Measured, Stream
from pd_planner.des.deployment import Route, round_robin
from pd_planner.traffic.load import Load
from pd_routing.names import Routing
from pd_routing.view import Objectives
from pd_simulator.steps.engines import Engines, Order

# At most this share of the prompt tokens may come from a prefix cache; with more, a run does not show the cost of a prompt.
_MOST_CACHED = 0.02


def read(
    paths: Sequence[Path], *, kv_tokens: int, batched: Iterable[str] = (), adaptive: bool = False
) -> tuple[list[Measured], list[str]]:
    """All runs below `paths` that can be used, and a sentence about each that cannot.

    Args:
        paths: run folders or trees of them.
        kv_tokens: room of one engine's KV cache.
        adaptive: whether runs with ROUTING=adaptive can be used; no profile can be fitted to them.
        batched: labels of P2pNcclConnector deployments that sent KV in one message per request; their manifests do not say.
    """
    loaded = load_tree(paths)
    problems = [f"{problem.path}: {problem.sentence}" for problem in loaded.problems]
    labels, runs = frozenset(batched), []
    for run in loaded.runs:
        refusal = _refusal(run, adaptive=adaptive)
        if refusal:
            problems.append(tr("{path}: left out: {reason}", path=run.path, reason=refusal))
        else:
            runs.append(_measured(run, kv_tokens, batched=run.manifest.deployment.label in labels))
    return sorted(runs, key=lambda run: (run.label, run.sizes, run.per_gpu, run.seed)), problems


def _refusal(run: Run, *, adaptive: bool) -> str:
    """Why a run cannot be used; empty if it can."""
    roles = {engine.role for engine in run.manifest.deployment.engines}
    routed = adaptive and _objectives(run) is not None
    cached = 0.0 if routed else _cached_share(run)  # answers that stay where their prompt was computed count as hits
    reasons = (
        (run.path.is_file(), tr("a result file without records of each token")),
        (not roles, tr("its manifest names no engine")),
        (Role.COMBINED in roles and len(roles) > 1, tr("plain engines beside prefill and decode")),
        (manner(run) == Routing.ADAPTIVE and not adaptive, tr("ROUTING=adaptive: no profile is fitted to it (pd-plan check simulates it)")),
        (bool(found := manner(run)) and not routed, tr("its engines serve otherwise than plain vLLM ({manner}), which is not simulated", manner=found)),
        (roles in ({Role.PREFILL}, {Role.DECODE}), tr("only {roles} engines", roles=", ".join(roles))),
        (cached > _MOST_CACHED, tr("{share} of its prompt tokens came from a prefix cache; measure with prompts that share no prefix", share=f"{cached:.0%}")),
        (len(run.requests.served) < 2, tr("fewer than two requests were served")),
    )  # fmt: skip
    return next((sentence for applies, sentence in reasons if applies), "")


def _objectives(run: Run) -> Objectives | None:
    """Those that an adaptive run's proxy had; its records may hold only the limits of the requests. None for other runs."""
    if manner(run) != Routing.ADAPTIVE:
        return None
    settings, limits = run.manifest.deployment.settings, run.manifest.workload.goodput
    found = [float(settings.get(f"{name.upper()}_SLO_MS") or limits.get(name, 0.0)) for name in ("ttft", "tpot")]
    return Objectives(*found) if all(found) else None


def _cached_share(run: Run) -> float:
    """Share of the prompt tokens that came from prefix caches; 0 if the engines did not report it."""
    hits = asked = 0.0
    for name in {tokens.name for tokens in run.engines}:
        own = [tokens for tokens in run.engines if tokens.name == name and tokens.prompt is not None]
        if len(own) > 1 and own[-1].cache_hits is not None and own[0].cache_hits is not None:
            hits += own[-1].cache_hits - own[0].cache_hits
            asked += (own[-1].prompt or 0.0) - (own[0].prompt or 0.0)
    return hits / asked if asked else 0.0


def _measured(run: Run, kv_tokens: int, *, batched: bool) -> Measured:
    lines = (run.path / REQUESTS).read_bytes()
    records = sorted(msgspec.json.Decoder(RequestRecord).decode_lines(lines), key=lambda record: record.scheduled)
    every = [record for record in records if succeeded(record)]
    good = [record for record in every if not record.warmup]
    manifest = run.manifest
    objectives = _objectives(run)
    engines = _engines(manifest.deployment.engines, kv_tokens, batched=batched, order=_order(good))
    if objectives is not None:
        engines = replace(engines, connector=Connector.P2P, order=_order_of_moved(good))
    sizes = (manifest.workload.input_tokens, manifest.workload.output_tokens)
    prompts = [_prompt(record, sizes[0]) for record in good]
    outputs = [record.output_tokens or sum(count for _, count in record.chunks) for record in good]
    first = np.array([record.chunks[0][0] for record in good])
    last = np.array([record.chunks[-1][0] for record in good])
    due = np.array([record.scheduled for record in good])
    gaps = np.array(outputs) - 1
    energy = energy_of(run)
    gpus = manifest.deployment.gpus or engines.prefills + engines.others
    return Measured(
        path=run.path,
        label=with_manner(manifest.deployment.label or _shape(engines), manner(run)),
        engines=engines,
        gpus=gpus,
        load=Load.of(due - due[0], prompts, outputs),
        route=_route(engines, good),
        ttft_ms=(first - due) * 1e3,
        tpot_ms=np.where(gaps > 0, (last - first) * 1e3 / np.maximum(gaps, 1), np.nan),
        answered_ms=np.array([_answered(record) for record in good]),
        streams=_streams(every, engines, sizes[0]),
        watts=_watts(energy, engines),
        idle_w=_idle_w(energy),
        window_s=run.window[1] - run.window[0],
        limit_w=run.gpu.gpus[0].power_limit_w if run.gpu and run.gpu.gpus else None,
        goodput=manifest.workload.goodput,
        per_gpu=manifest.workload.rate / gpus,
        seed=manifest.workload.seed,
        simulated=run.simulated,
        model=manifest.workload.model,
        engine=_engine(manifest.deployment.engines),
        board=run.gpu.gpus[0].name if run.gpu and run.gpu.gpus else "",
        objectives=objectives,
    )


def _shape(engines: Engines) -> str:
    """What a deployment without a label is called, as `pdctl compare` calls it."""
    return f"{engines.prefills}P{engines.others}D" if engines.prefills else f"{engines.others} combined"


def _prompt(record: RequestRecord, stated: int | None) -> int:
    return max(1, record.prompt_tokens or stated or 1)


def _engine(engines: Sequence[EngineInfo]) -> str:
    return " ".join(filter(None, (engines[0].engine, engines[0].version)))


def _order(records: Sequence[RequestRecord]) -> Order:
    """How P2pConnector's requests were sent, by most of them."""
    handed_off = sum(record.stages is not None and record.stages.first_token == Role.PREFILL for record in records)
    return Order.HAND_OFF if 2 * handed_off > len(records) else Order.AT_ONCE


def _order_of_moved(records: Sequence[RequestRecord]) -> Order:
    """Who wrote the first token of answers that moved, where roles are adaptive; decode is asked after prefill in either case."""
    writers = {record.stages.first_token for record in records if record.stages is not None}
    return Order.HAND_OFF if Role.PREFILL in writers else Order.AFTER


def _engines(infos: Sequence[EngineInfo], kv_tokens: int, *, batched: bool, order: Order) -> Engines:
    prefills = [info for info in infos if info.role is Role.PREFILL]
    connector = prefills[0].connector if prefills else None
    return Engines(
        prefills=len(prefills),
        others=len(infos) - len(prefills),
        connector=connector,
        kv_tokens=kv_tokens,
        batched=batched and connector is Connector.P2P_NCCL,
        order=order if connector is Connector.P2P else Order.AFTER,
    )


def _answered(record: RequestRecord) -> float:
    """From the schedule to prefill's answer, milliseconds."""
    if record.stages is None or not record.stages.prefill_instance or record.sent is None:
        return float("nan")
    return (record.sent - record.scheduled) * 1e3 + record.stages.queue + record.stages.prefill


def _route(engines: Engines, records: Sequence[RequestRecord]) -> Route:
    """As the proxy told it; else in turn."""
    names = [record.stages for record in records]
    if any(stages is None for stages in names):
        return round_robin(engines, len(records))
    prefills = sorted({stages.prefill_instance for stages in names if stages})
    others = sorted({stages.decode_instance for stages in names if stages})
    if len(prefills) > max(1, engines.prefills) or len(others) > engines.others:
        return round_robin(engines, len(records))
    return Route(
        np.array([prefills.index(stages.prefill_instance) for stages in names if stages], np.int64),
        np.array([others.index(stages.decode_instance) for stages in names if stages], np.int64),
    )


def _streams(records: Sequence[RequestRecord], engines: Engines, stated: int | None) -> dict[str, list[Stream]]:
    """Answers whose tokens came one by one, by engine; none if it is unknown which engine wrote which answer."""
    streams: dict[str, list[Stream]] = {}
    for record in records:
        if record.stages is None and engines.others > 1:
            return {}
        name = record.stages.decode_instance if record.stages else "engine"
        # A token that prefill wrote belongs to no decode step; decode continues after it.
        before = int(record.stages is not None and record.stages.first_token == Role.PREFILL)
        stamps = np.array([time for time, _ in record.chunks[before:]])
        if stamps.size and all(count == 1 for _, count in record.chunks):
            streams.setdefault(name, []).append(Stream(_prompt(record, stated) + before, record.scheduled, stamps))
    return streams


def _watts(energy: Energy | None, engines: Engines) -> dict[Role, float]:
    """Mean power of the boards of each role over the measured window, where the recording holds it and no other boards of that role."""
    if energy is None:
        return {}
    watts = {}
    for role, expected in engines.boards.items():
        joules, boards = energy.of(role), sum(gpu.role is role for gpu in energy.gpus)
        if joules is not None and boards == expected:
            watts[role] = joules / boards / energy.window_s
    return watts


def _idle_w(energy: Energy | None) -> dict[Role, float]:
    found: dict[Role, list[float]] = {}
    for gpu in energy.gpus if energy else ():
        if gpu.role is not None and gpu.idle_w is not None:
            found.setdefault(gpu.role, []).append(gpu.idle_w)
    return {role: float(np.median(watts)) for role, watts in found.items()}
