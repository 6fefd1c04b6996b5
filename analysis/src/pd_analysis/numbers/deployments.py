"""Names of deployments: what sets engines of one topology apart, and names for those without a label (a sweep over loads is one deployment)."""

from collections.abc import Hashable, Sequence, Set
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pd_analysis.numbers.load import load_of
from pd_analysis.records.run import Run
from pd_contracts.deployment import manner_of
from pd_contracts.names import Role
from pd_contracts.vllm_result import of_sweep, server_of

# Values of the proxy's ROUTING, and reasons for a choice (`pd_contracts.timing.Stages.why`) that show which it was.
_ADAPTIVE: Final = "adaptive"
_LOCAL_FIRST: Final = "local_first"
_EITHER: Final = "routed"
_ADAPTIVE_ALONE: Final = frozenset({"plain", "overflow"})
_LOCAL: Final = "local"

_FILES: Final = (".json", ".jsonl")  # of other programs; our own runs are folders


def unlabelled_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run, to be used where its deployment has no label and no topology.

    Runs against one address, or in one folder of another program's results, are one deployment if no two of them were offered the same load;
    it is called after the address or the folder. Else each is called after its own folder or file.
    """
    places = [_place(run) for run in runs]
    shared = {place for place in places if place is not None and _one_deployment(runs, places, place)}
    return [place[1] if place in shared and place else _own(run) for run, place in zip(runs, places, strict=True)]


def manner(run: Run) -> str:
    """What sets the run's combined engines apart from plain ones ("adaptive"); empty for plain engines, and where there are none.

    Records from before the manifest had the proxy's settings show it too: their requests say why their engines were chosen.
    """
    deployment = run.manifest.deployment
    if all(engine.role is not Role.COMBINED for engine in deployment.engines):
        return ""
    if deployment.settings or not run.requests.whys:
        return deployment.manner
    return manner_of(routing=_routing(run.requests.whys), both_roles=deployment.both_roles)


def _routing(whys: Set[str]) -> str:
    return _ADAPTIVE if whys & _ADAPTIVE_ALONE else _LOCAL_FIRST if _LOCAL in whys else _EITHER


def _place(run: Run) -> tuple[str, str] | None:
    """Where a run of an unlabelled deployment was measured, and the name of that place."""
    deployment = run.manifest.deployment
    if deployment.label or deployment.topology:
        return None
    if run.manifest.url:
        address = urlsplit(run.manifest.url)
        return "url", address.netloc.rpartition("@")[2] or run.manifest.url
    folder = run.path.parent
    if run.path.suffix not in _FILES:
        return "folder", folder.name
    if of_sweep(folder.name):
        return str(folder.parent), server_of(folder.name) or folder.parent.name
    return str(folder), folder.name


def _one_deployment(runs: Sequence[Run], places: Sequence[tuple[str, str] | None], place: tuple[str, str]) -> bool:
    members = [run for run, theirs in zip(runs, places, strict=True) if theirs == place]
    cells = [_cell(run) for run in members]
    return len(members) > 1 and len(set(cells)) == len(cells)


def _cell(run: Run) -> Hashable:
    return load_of(run.manifest.workload), run.manifest.workload.model, run.manifest.workload.seed, repeat_of(run.path)


def repeat_of(path: Path) -> str:
    """Which repeat of its load a file of a parameter sweep is, "run=1"; "" for other files."""
    return path.stem if path.stem.startswith("run=") else ""


def _own(run: Run) -> str:
    if run.path.suffix not in _FILES:
        return run.path.name
    return f"{run.path.parent.name}/{run.path.stem}" if repeat_of(run.path) else run.path.stem
