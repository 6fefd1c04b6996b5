"""A simulated GPU board, as a simulator reports it (`GET /sim/board`) and the monitor's simulated back end reads it.

The energy counter in `sample` is the exact integral of the simulator's power model, so what the monitor and the report make
of it can be compared with the truth.
"""

import msgspec

from pd_contracts.records import GpuInfo, GpuSample


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The board's identity, and one reading of it (its `t` is the simulator's monotonic clock)."""

    info: GpuInfo
    sample: GpuSample
