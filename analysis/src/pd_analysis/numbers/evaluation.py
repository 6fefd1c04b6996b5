"""Runs with their numbers and names, put in groups that may be compared."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from pd_analysis.energy.attribution import RoleEnergy, attribution_of, summed_attribution
from pd_analysis.energy.repeats import summed
from pd_analysis.energy.window import Energy, TokenEnergy, energy_of, per_token
from pd_analysis.numbers.metrics import Metrics, measure, measure_all
from pd_analysis.records.columns import Requests, pooled
from pd_analysis.records.run import Run
from pd_analysis.words.formatting import plural, setting, sizes
from pd_contracts.names import Topology


@dataclass(frozen=True)
class Result:
    """One load on one deployment, measured; `name` is unique in its group.

    Attributes:
        run: the run, or the first of several that repeat the load with other seeds.
        requests: those of all repeats; the metrics are over them, and energy and tokens are sums over the repeats.
        repeats: each repeat on its own; empty of a load that was offered once.
        attribution: the energy by role, phase and request; empty without power.
    """

    name: str
    run: Run
    requests: Requests
    metrics: Metrics
    energy: Energy | None
    tokens: TokenEnergy | None
    repeats: tuple["Result", ...] = ()
    attribution: tuple[RoleEnergy, ...] = ()

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
    """Results of one workload; the first is the baseline that the others are divided by."""

    workload: str
    results: tuple[Result, ...]

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
    workloads = dict.fromkeys(workload_words(result.run, with_rate=with_rate) for result in results)
    return _group("; ".join(workloads), results)


def _result(run: Run) -> Result:
    metrics, energy = measure(run), energy_of(run)
    return Result(
        name=_label(run),
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


def _group(workload: str, results: Sequence[Result]) -> Group:
    """Namesakes are told apart by their rate, and if that does not do it by their folder."""
    rates = [f"{setting(result.run.manifest.workload.rate)} req/s" for result in results]
    names = _distinct([result.name for result in results], rates)
    names = _distinct(names, [result.run.path.name for result in results])
    members = [replace(result, name=name) for result, name in zip(results, names, strict=True)]
    return Group(workload=workload, results=tuple(members))


def _distinct(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """Add what tells namesakes apart, to those that have one and where it does."""
    uses, helps = Counter(names), Counter(zip(names, more, strict=True))
    return [
        f"{name} ({extra})" if uses[name] > 1 and helps[name, extra] < uses[name] else name
        for name, extra in zip(names, more, strict=True)
    ]


def _label(run: Run) -> str:
    deployment = run.manifest.deployment
    return deployment.label or (deployment.topology.value if deployment.topology else run.path.name)


def _split(results: Sequence[Result], *, with_rate: bool) -> list[Group]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(workload_words(result.run, with_rate=with_rate), []).append(result)
    return [
        _group(words, fellows) for workload, members in groups.items() for words, fellows in _by_gpus(workload, members)
    ]


def _by_gpus(workload: str, members: list[Result]) -> list[tuple[str, list[Result]]]:
    """Deployments of two GPUs and of four are compared among themselves, if each has somebody to be compared with."""
    counts: dict[int | None, list[Result]] = {}
    for member in members:
        counts.setdefault(member.metrics.gpus, []).append(member)
    if len(counts) < 2 or any(len({fellow.label for fellow in fellows}) < 2 for fellows in counts.values()):
        return [(workload, members)]
    return [(f"{workload}, on {plural(count or 0, 'GPU')}", fellows) for count, fellows in sorted(counts.items())]


def workload_words(run: Run, *, with_rate: bool) -> str:
    """What was offered, in words; two runs with the same words may be compared. Seeds and durations are not in it: doubts are."""
    load = run.manifest.workload
    tokens = f"{sizes(load)} tokens"
    amount = (
        f"{setting(load.rate)} request{'' if load.rate == 1 else 's'}/s of {tokens}"
        if with_rate
        else f"requests of {tokens}"
    )
    return f"{amount} ({load.dataset} data, {load.arrival} arrivals, {load.endpoint})"


def gpus(result: Result) -> str:
    """Its GPUs in words."""
    count = result.metrics.gpus
    return "unknown GPUs" if count is None else plural(count, "GPU")
