"""How much the host disturbed a simulated run: the share of steps that ended late because the simulator lacked CPU time."""

from pd_analysis.records.run import Run
from pd_contracts.records import EngineTokens


def late_share(run: Run) -> float | None:
    """The largest share of late steps of an engine over the recording; None if no engine reports its steps."""
    by_name: dict[str, list[EngineTokens]] = {}
    for tokens in run.engines:
        if tokens.steps is not None and tokens.late_steps is not None:
            by_name.setdefault(tokens.name, []).append(tokens)
    shares = [share for readings in by_name.values() if (share := _share(readings[0], readings[-1])) is not None]
    return max(shares, default=None)


def _share(first: EngineTokens, last: EngineTokens) -> float | None:
    steps = (last.steps or 0.0) - (first.steps or 0.0)
    late = (last.late_steps or 0.0) - (first.late_steps or 0.0)
    return late / steps if steps > 0 and late >= 0 else None
