"""Runs with their numbers and names, put in groups that may be compared."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pd_analysis.energy.attribution import RoleEnergy, attribution_of, summed_attribution
from pd_analysis.energy.joules import Energy, TokenEnergy, per_token
from pd_analysis.energy.repeats import summed
from pd_analysis.energy.window import energy_of
from pd_analysis.numbers.deployments import manner, repeat_of, unlabelled_names
from pd_analysis.numbers.load import Load, Pace, amount_words, lengths, load_of, words
from pd_analysis.numbers.metrics import Metrics, measure, measure_all
from pd_analysis.numbers.trust import Unfit, unfit
from pd_analysis.records.columns import Requests, pooled
from pd_analysis.records.run import Run
from pd_analysis.words.formatting import clauses
from pd_analysis.words.language import mark, ntr, tr
from pd_contracts.deployment import with_manner
from pd_contracts.names import Role, Topology

ROLES: Final = {Role.PREFILL: mark("prefill"), Role.DECODE: mark("decode"), Role.COMBINED: mark("combined")}
TOPOLOGIES: Final = {Topology.COMBINED: mark("combined"), Topology.DISAGG: mark("disagg")}


@dataclass(frozen=True)
class Result:
    """One load on one deployment, measured; `name` is unique in its group.

    Attributes:
        distinction: an addition to the label, if another result of the group has the same label.
        run: the run, or the first of several that repeat the load with other seeds.
        requests: those of all repeats; the metrics are over them, and energy and tokens are sums over the repeats.
        repeats: each repeat on its own; empty of a load that was offered once.
        attribution: the energy by role, phase and request; empty without power.
        manner: what sets its combined engines apart from plain ones; empty if nothing does.
        unlabelled: the deployment's name if it has neither label nor topology.
        unfit: reasons why no decision may be based on it; empty if it may be used.
    """

    run: Run
    requests: Requests
    metrics: Metrics
    energy: Energy | None
    tokens: TokenEnergy | None
    repeats: tuple["Result", ...] = ()
    attribution: tuple[RoleEnergy, ...] = ()
    distinction: str = ""
    manner: str = ""
    unlabelled: str = ""
    unfit: frozenset[Unfit] = frozenset()

    @property
    def load(self) -> Load:
        return load_of(self.run.manifest.workload)

    @property
    def name(self) -> str:
        """The label and, if another result of the group has the same, the distinction."""
        return f"{self.label}{self.distinction}"

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run behind the numbers."""
        return tuple(each.run for each in self.repeats) or (self.run,)

    @property
    def label(self) -> str:
        """The deployment's name, whatever the load."""
        deployment = self.run.manifest.deployment
        if deployment.topology and deployment.label in ("", deployment.topology.value):
            return with_manner(tr(TOPOLOGIES[deployment.topology]), self.manner)
        return with_manner(deployment.label, self.manner) if deployment.label else self.unlabelled

    @property
    def topology(self) -> Topology | None:
        """How the run's deployment used its GPUs."""
        return self.run.manifest.deployment.topology

    @property
    def plain(self) -> bool:
        """True for plain vLLM: combined engines that hand nothing over to each other."""
        return self.topology is Topology.COMBINED and not self.manner


@dataclass(frozen=True)
class Group:
    """Results that are compared; the first is the baseline that the others are divided by.

    Attributes:
        gpus: of each deployment, where deployments of other sizes have a group of their own.
    """

    results: tuple[Result, ...]
    gpus: int | None = None

    @property
    def workload(self) -> str:
        asked = clauses(dict.fromkeys(words(result.run.manifest.workload) for result in self.results))
        if self.gpus is None:
            return asked
        return tr("{workload}, on {gpus}", workload=asked, gpus=gpus_words(self.gpus))

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

    @property
    def pace(self) -> Pace:
        """What set the pace of its requests."""
        return self.baseline.load.pace


def evaluate(runs: Sequence[Run]) -> list[Result]:
    """Measure every run; plain serving comes first, so that it becomes the baseline."""
    ordered = sorted(runs, key=_order)
    return [_result(run, name) for run, name in zip(ordered, unlabelled_names(ordered), strict=True)]


def grouped(results: Sequence[Result]) -> list[Group]:
    """One group a load, and a number of GPUs where each has several deployments."""
    loads: dict[Load, list[Result]] = {}
    for result in with_repeats_pooled(results):
        loads.setdefault(result.load, []).append(result)
    return [
        _group(fellows, gpus=count) for load in sorted(loads, key=_rising) for count, fellows in _by_gpus(loads[load])
    ]


def _rising(load: Load) -> tuple[str, int, int, int, float]:
    return load.dataset, *lengths(load), list(Pace).index(load.pace), load.amount


def together(results: Sequence[Result]) -> Group:
    """All in one group, because someone asked for exactly these."""
    return _group(with_repeats_pooled(results))


def _result(run: Run, unlabelled: str) -> Result:
    metrics, energy = measure(run), energy_of(run)
    return Result(
        run=run,
        requests=run.requests,
        metrics=metrics,
        energy=energy,
        tokens=_token_energy(energy, metrics),
        attribution=attribution_of(run, energy),
        manner=manner(run),
        unlabelled=unlabelled,
        unfit=unfit(run),
    )


def _token_energy(energy: Energy | None, metrics: Metrics) -> TokenEnergy | None:
    return None if energy is None else per_token(energy, metrics.prompt_tokens, metrics.output_tokens)


def with_repeats_pooled(results: Sequence[Result]) -> list[Result]:
    """Runs that repeat one load on one deployment with other seeds become one result; others stay as they are."""
    cells: dict[Hashable, list[Result]] = {}
    for result in results:
        cells.setdefault(_cell(result), []).append(result)
    return [
        pooled_result
        for members in cells.values()
        for pooled_result in ([_pool(members)] if _are_repeats(members) else members)
    ]


def _cell(result: Result) -> Hashable:
    deployment, load = result.run.manifest.deployment, result.run.manifest.workload
    limits = tuple(sorted(load.goodput.items()))
    settings = tuple(sorted(deployment.settings.items()))
    return result.label, deployment.topology, deployment.gpus, settings, result.load, load.model, limits


def _are_repeats(members: Sequence[Result]) -> bool:
    """True if each seed occurs once. The same seed twice is two measurements of one schedule, which stay separate."""
    seeds = {(member.run.manifest.workload.seed, repeat_of(member.run.path)) for member in members}
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
        unfit=frozenset().union(*(member.unfit for member in members)),
    )


def _order(run: Run) -> tuple[bool, str, str, float, str]:
    topology = run.manifest.deployment.topology
    return (
        topology is not Topology.COMBINED,
        manner(run),
        run.manifest.deployment.label,
        run.manifest.workload.rate,
        str(run.path),
    )


def _group(results: Sequence[Result], *, gpus: int | None = None) -> Group:
    """Give results of one label distinct names: by their amount of load or, if that is equal, by their folder."""
    members = _distinct(results, [amount_words(result.run.manifest.workload) for result in results])
    members = _distinct(members, [result.run.path.name for result in results])
    return Group(results=tuple(members), gpus=gpus)


def _distinct(results: Sequence[Result], more: Sequence[str]) -> list[Result]:
    """Add the distinction to results that share a name, if it separates them."""
    names = [result.name for result in results]
    uses, helps = Counter(names), Counter(zip(names, more, strict=True))
    return [
        replace(result, distinction=f"{result.distinction} ({extra})")
        if uses[name] > 1 and helps[name, extra] < uses[name]
        else result
        for result, name, extra in zip(results, names, more, strict=True)
    ]


def _by_gpus(members: list[Result]) -> list[tuple[int | None, list[Result]]]:
    """Deployments of two GPUs and of four are compared among themselves, if each has a counterpart to be compared with."""
    counts: dict[int | None, list[Result]] = {}
    for member in members:
        counts.setdefault(member.metrics.gpus, []).append(member)
    if len(counts) < 2 or any(len({fellow.label for fellow in fellows}) < 2 for fellows in counts.values()):
        return [(None, members)]
    return [(count or 0, fellows) for count, fellows in sorted(counts.items(), key=lambda item: item[0] or 0)]


def gpus(result: Result) -> str:
    count = result.metrics.gpus
    return tr("an unknown number of GPUs") if count is None else gpus_words(count)


def gpus_words(count: int) -> str:
    """1 GPU, 2 GPUs."""
    return ntr("{count} GPU", "{count} GPUs", count)
