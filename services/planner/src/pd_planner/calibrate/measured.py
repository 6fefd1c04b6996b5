"""A run as the fit needs it: the load, the engines, and the results."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pd_contracts.names import Role
from pd_planner.des.deployment import Route
from pd_planner.traffic.load import Floats, Load
from pd_routing.view import Objectives
from pd_simulator.steps.engines import Engines


class CalibrationError(ValueError):
    """Runs from which no profile can be made; the message says what is missing."""


@dataclass(frozen=True)
class Stream:
    """One answer of one engine: prompt tokens, when it was due, and when each of its tokens came (seconds)."""

    prompt: int
    due: float
    stamps: Floats


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        load, route: the requests that were served, as they came, and by which engines.
        ttft_ms, tpot_ms, answered_ms: of each; `answered_ms` is prefill's answer, NaN where it is not known.
        streams: by the name of the engine that wrote them, warm-up included.
        watts, idle_w: mean power of a board over the measured window, and while idle, by role; only for roles where it is known.
        window_s: how long that window was.
        per_gpu: requests per second per GPU that were offered; 0 where answers set the pace.
        objectives: of the proxy, if it gave engines their roles by load (ROUTING=adaptive); None for fixed roles.
    """

    path: Path
    label: str
    engines: Engines
    gpus: int
    load: Load
    route: Route
    ttft_ms: Floats
    tpot_ms: Floats
    answered_ms: Floats
    streams: dict[str, list[Stream]]
    watts: dict[Role, float]
    idle_w: dict[Role, float]
    window_s: float
    limit_w: float | None
    goodput: dict[str, float]
    per_gpu: float
    seed: int
    simulated: bool
    model: str
    engine: str
    board: str
    objectives: Objectives | None = None

    @property
    def e2el_ms(self) -> Floats:
        """End-to-end latency of each request."""
        return self.ttft_ms + np.nan_to_num(self.tpot_ms) * (self.load.output - 1)

    @property
    def sizes(self) -> str:
        """Prompt and answer, 2,048 → 128; the median where they vary."""
        return f"{int(np.median(self.load.prompt)):,} → {int(np.median(self.load.output)):,}"

    @property
    def part(self) -> str:
        """The name of this deployment's hand-over table in a profile; empty for plain engines."""
        if not self.engines.prefills or self.engines.connector is None:
            return ""
        return "batched" if self.engines.batched else f"handoff.{self.engines.connector}"
