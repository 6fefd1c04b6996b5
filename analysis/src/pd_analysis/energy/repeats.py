"""The energy of a load that was repeated."""

import math
from collections.abc import Sequence
from dataclasses import replace

from pd_analysis.energy.joules import Energy, GpuEnergy, total_of


def summed(parts: Sequence[Energy | None]) -> Energy | None:
    """The energy of repeats of one load: joules and windows add up; None if a repeat has none or other boards."""
    known = [part for part in parts if part is not None]
    boards = {tuple(gpu.index for gpu in part.gpus) for part in known}
    if len(known) < len(parts) or len(boards) != 1:
        return None
    gpus = zip(*(part.gpus for part in known), strict=True)
    return replace(
        known[0],
        window_s=sum(part.window_s for part in known),
        gpus=tuple(_summed_gpu(repeats) for repeats in gpus),
        astray=max(part.astray for part in known),
        roles_apart=max(part.roles_apart for part in known),
    )


def _summed_gpu(repeats: Sequence[GpuEnergy]) -> GpuEnergy:
    energy = total_of([gpu.energy_j for gpu in repeats])
    seconds = total_of([gpu.energy_j / gpu.mean_w if gpu.energy_j and gpu.mean_w else None for gpu in repeats])
    edges = [gpu.edges_j for gpu in repeats]
    reasons = dict.fromkeys(reason for gpu in repeats for reason in gpu.throttled)
    return replace(
        repeats[0],
        energy_j=energy,
        counter_j=total_of([gpu.counter_j for gpu in repeats]),
        integral_j=total_of([gpu.integral_j for gpu in repeats]),
        average_j=total_of([gpu.average_j for gpu in repeats]),
        edges_j=None if None in edges else math.hypot(*(edge for edge in edges if edge is not None)),
        mean_w=energy / seconds if energy and seconds else None,
        peak_w=max((gpu.peak_w for gpu in repeats if gpu.peak_w is not None), default=None),
        idle_w=min((gpu.idle_w for gpu in repeats if gpu.idle_w is not None), default=None),
        faults=tuple({fault.check: fault for gpu in repeats for fault in gpu.faults}.values()),
        throttled={reason: sum(gpu.throttled.get(reason, 0.0) for gpu in repeats) / len(repeats) for reason in reasons},
    )
