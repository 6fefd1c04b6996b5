"""Runs with their numbers and names, put in groups that may be compared."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pd_analysis.energy.attribution import RoleEnergy, attribution_of, summed_attribution
from pd_analysis.energy.repeats import summed
from pd_analysis.energy.window import Energy, TokenEnergy, energy_of, per_token
from pd_analysis.numbers.metrics import Metrics, measure, measure_all
from pd_analysis.records.columns import Requests, pooled
from pd_analysis.records.run import Run
from pd_analysis.words.formatting import clauses, setting, sizes
from pd_analysis.words.language import mark, ntr, tr
from pd_contracts.names import Role, Topology

ROLES: Final = {Role.PREFILL: mark("prefill"), Role.DECODE: mark("decode"), Role.COMBINED: mark("combined")}
TOPOLOGIES: Final = {Topology.COMBINED: mark("combined"), Topology.DISAGG: mark("disagg")}


@dataclass(frozen=True)
class Result:
    """One load on one deployment, measured; `name` is unique in its group.

    Attributes:
        distinction: what the name says besides the label, because another result of the group has the same label.
        run: the run, or the first of several that repeat the load with other seeds.
        requests: those of all repeats; the metrics are over them, and energy and tokens are sums over the repeats.
        repeats: each repeat on its own; empty of a load that was offered once.
        attribution: the energy by role, phase and request; empty without power.
    """

    run: Run
    requests: Requests
    metrics: Metrics
    energy: Energy | None
    tokens: TokenEnergy | None
    repeats: tuple["Result", ...] = ()
    attribution: tuple[RoleEnergy, ...] = ()
    distinction: str = ""

    @property
    def name(self) -> str:
        """The label, with what tells it from the others of its group."""
        return f"{self.label}{self.distinction}"

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run behind the numbers."""
        return tuple(each.run for each in self.repeats) or (self.run,)

    @property
    def label(self) -> str:
        """What the deployment is called, whatever the load."""
        return _label(self.run)

    @property
    def topology(self) -> Topology | None:
        """How the run's deployment used its GPUs."""
        return self.run.manifest.deployment.topology


@dataclass(frozen=True)
class Group:
    """Results of one workload; the first is the baseline that the others are divided by.

    Attributes:
        with_rate: all were offered the same rate, so that it is part of the workload.
        gpus: of each deployment, where deployments of other sizes have a group of their own.
    """

    results: tuple[Result, ...]
    with_rate: bool = True
    gpus: int | None = None

    @property
    def workload(self) -> str:
        """What was offered, in words."""
        words = clauses(dict.fromkeys(workload_words(result.run, with_rate=self.with_rate) for result in self.results))
        if self.gpus is None:
            return words
        return tr("{workload}, on {gpus}", workload=words, gpus=gpus_words(self.gpus))

    @property
    def baseline(self) -> Result:
        """Plain serving if it was measured."""
        return self.results[0]

    @property
    def others(self) -> tuple[Result, ...]:
        """What is compared with the baseline."""
        return self.results[1:]

    @property
    def simulated(self) -> bool:
        """True if a run in it is simulated."""
        return any(result.run.simulated for result in self.results)


def evaluate(runs: Sequence[Run]) -> list[Result]:
    """Measure every run; plain serving comes first, so that it becomes the baseline."""
    return [_result(run) for run in sorted(runs, key=_order)]


def grouped(results: Sequence[Result]) -> list[Group]:
    """One group a workload, and a number of GPUs where each has several deployments.

    If no two runs share a workload, all of the same shape are compared over their rates.
    """
    results = with_repeats_pooled(results)
    exact = _split(results, with_rate=True)
    return exact if any(group.others for group in exact) else _split(results, with_rate=False)


def together(results: Sequence[Result]) -> Group:
    """All in one group, because someone asked for exactly these."""
    results = with_repeats_pooled(results)
    with_rate = len({result.run.manifest.workload.rate for result in results}) == 1
    return _group(results, with_rate=with_rate)


def _result(run: Run) -> Result:
    metrics, energy = measure(run), energy_of(run)
    return Result(
        run=run,
        requests=run.requests,
        metrics=metrics,
        energy=energy,
        tokens=_token_energy(energy, metrics),
        attribution=attribution_of(run, energy),
    )


def _token_energy(energy: Energy | None, metrics: Metrics) -> TokenEnergy | None:
    return None if energy is None else per_token(energy, metrics.prompt_tokens, metrics.output_tokens)


def with_repeats_pooled(results: Sequence[Result]) -> list[Result]:
    """Runs that repeat one load on one deployment with other seeds become one result; others stay as they are."""
    cells: dict[Hashable, list[Result]] = {}
    for result in results:
        cells.setdefault(_cell(result.run), []).append(result)
    return [
        pooled_result
        for members in cells.values()
        for pooled_result in ([_pool(members)] if _are_repeats(members) else members)
    ]


def _cell(run: Run) -> Hashable:
    deployment, load = run.manifest.deployment, run.manifest.workload
    limits = tuple(sorted(load.goodput.items()))
    return _label(run), deployment.topology, deployment.gpus, workload_words(run, with_rate=True), load.model, limits


def _are_repeats(members: Sequence[Result]) -> bool:
    """Each seed once; the same seed twice is two measurements of one schedule, which a reader wants to see apart."""
    seeds = {member.run.manifest.workload.seed for member in members}
    return len(members) > 1 and len(seeds) == len(members)


def _pool(members: Sequence[Result]) -> Result:
    requests = pooled([member.requests for member in members])
    metrics = measure_all([member.run for member in members], requests)
    energy = summed([member.energy for member in members])
    return replace(
        members[0],
        requests=requests,
        metrics=metrics,
        energy=energy,
        tokens=_token_energy(energy, metrics),
        repeats=tuple(members),
        attribution=summed_attribution([member.attribution for member in members]),
    )


def _order(run: Run) -> tuple[bool, str, float, str]:
    topology = run.manifest.deployment.topology
    return topology is not Topology.COMBINED, run.manifest.deployment.label, run.manifest.workload.rate, str(run.path)


def _group(results: Sequence[Result], *, with_rate: bool, gpus: int | None = None) -> Group:
    """Namesakes are told apart by their rate, and if that does not do it by their folder."""
    members = _distinct(results, [f"{setting(result.run.manifest.workload.rate)} req/s" for result in results])
    members = _distinct(members, [result.run.path.name for result in results])
    return Group(results=tuple(members), with_rate=with_rate, gpus=gpus)


def _distinct(results: Sequence[Result], more: Sequence[str]) -> list[Result]:
    """Add what tells namesakes apart, to those that have one and where it does."""
    names = [result.name for result in results]
    uses, helps = Counter(names), Counter(zip(names, more, strict=True))
    return [
        replace(result, distinction=f"{result.distinction} ({extra})")
        if uses[name] > 1 and helps[name, extra] < uses[name]
        else result
        for result, name, extra in zip(results, names, more, strict=True)
    ]


def _label(run: Run) -> str:
    deployment = run.manifest.deployment
    if deployment.topology and deployment.label in ("", deployment.topology.value):
        return tr(TOPOLOGIES[deployment.topology])
    return deployment.label or run.path.name


def _split(results: Sequence[Result], *, with_rate: bool) -> list[Group]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(workload_words(result.run, with_rate=with_rate), []).append(result)
    return [
        _group(fellows, with_rate=with_rate, gpus=count)
        for members in groups.values()
        for count, fellows in _by_gpus(members)
    ]


def _by_gpus(members: list[Result]) -> list[tuple[int | None, list[Result]]]:
    """Deployments of two GPUs and of four are compared among themselves, if each has somebody to be compared with."""
    counts: dict[int | None, list[Result]] = {}
    for member in members:
        counts.setdefault(member.metrics.gpus, []).append(member)
    if len(counts) < 2 or any(len({fellow.label for fellow in fellows}) < 2 for fellows in counts.values()):
        return [(None, members)]
    return [(count or 0, fellows) for count, fellows in sorted(counts.items(), key=lambda item: item[0] or 0)]


def workload_words(run: Run, *, with_rate: bool) -> str:
    """What was offered, in words; two runs with the same words may be compared. Seeds and durations are not in it: doubts are."""
    load = run.manifest.workload
    what = {"sizes": sizes(load), "dataset": load.dataset, "arrival": load.arrival, "endpoint": load.endpoint}
    if not with_rate:
        return tr("requests of {sizes} tokens ({dataset} data, {arrival} arrivals, {endpoint})", **what)
    return ntr(
        "{rate} request/s of {sizes} tokens ({dataset} data, {arrival} arrivals, {endpoint})",
        "{rate} requests/s of {sizes} tokens ({dataset} data, {arrival} arrivals, {endpoint})",
        1 if load.rate == 1 else 2,
        rate=setting(load.rate),
        **what,
    )


def gpus(result: Result) -> str:
    """Its GPUs in words."""
    count = result.metrics.gpus
    return tr("an unknown number of GPUs") if count is None else gpus_words(count)


def gpus_words(count: int) -> str:
    """1 GPU, 2 GPUs."""
    return ntr("{count} GPU", "{count} GPUs", count)
