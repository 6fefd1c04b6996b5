"""Tables about the measurement itself: whether runs were steady, and the numbers of each repeat."""

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.measures import DECIDING
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.tables.table import Table, table
from pd_analysis.words.formatting import number, percent, ratio, whole
from pd_analysis.words.language import tr


def steady(group: Group) -> Table | None:
    """Whether each run was steady; None if all are too short to tell, or if answers set the pace."""
    found = [(result.name, steadiness(result)) for result in group.results if result.load.pace is Pace.RATE]
    rows = [
        [
            name,
            percent(each.achieved),
            ratio(each.ttft_drift),
            ratio(each.flight_drift),
            f"{number(each.settle_s)} s",
            tr("saturated") if each.saturated else tr("steady"),
        ]
        for name, each in found
        if each.ttft_drift is not None
    ]
    header = ["", tr("Served / offered"), tr("TTFT drift"), tr("In-flight drift"), tr("Settled after"), tr("State")]
    caption = tr(
        "Served / offered: requests that ended over those that were due, in the second half. Drifts: median TTFT and mean requests in flight of the last third over the first."
    )
    return table(tr("Steady state"), header, rows, {0, 5}, caption) if rows else None


def repeats(group: Group) -> Table | None:
    """Every seed's own numbers; None unless a load was repeated."""
    header = ["", tr("Seed"), tr("Requests"), *(measure.head for measure in DECIDING)]
    rows = [
        [
            result.name,
            str(repeat.run.manifest.workload.seed),
            whole(repeat.metrics.requests),
            *(measure.text(repeat) for measure in DECIDING),
        ]
        for result in group.results
        for repeat in result.repeats
    ]
    caption = tr("The other numbers are over all repeats of a load together.")
    return table(tr("Repeats with other seeds"), header, rows, {0}, caption) if rows else None
