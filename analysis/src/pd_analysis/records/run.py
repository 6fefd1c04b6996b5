"""The results of loading: usable runs, and problems with the others."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pd_analysis.records.columns import Requests
from pd_contracts.names import SIMULATED_ENGINE
from pd_contracts.records import EngineTokens, GpuHeader, Manifest


@dataclass(frozen=True)
class Problem:
    """A path that could not be used, and the reason, with the remedy; if `kept`, the run itself was read all the same."""

    path: Path
    reason: object
    kept: bool = False

    @property
    def sentence(self) -> str:
        """The reason in the current language."""
        return str(self.reason)


@dataclass(frozen=True)
class Run:
    """One usable run.

    Attributes:
        gpu, samples: what the monitor wrote; None and an empty frame where no power was recorded.
        engines: the engines' token counters, where the monitor knows the engines.
        cut_s: seconds at the start of the measured window that were asked to count as warm-up.
    """

    path: Path
    manifest: Manifest
    requests: Requests
    gpu: GpuHeader | None
    samples: pd.DataFrame
    cut_s: float = 0.0
    engines: tuple[EngineTokens, ...] = ()

    @property
    def simulated(self) -> bool:
        """True if an engine or a board of the run is simulated: then every number of it is."""
        deployment = self.manifest.deployment
        engines = any(engine.engine == SIMULATED_ENGINE for engine in deployment.engines)
        return deployment.simulated or engines or (self.gpu is not None and self.gpu.simulated)

    @property
    def window(self) -> tuple[float, float]:
        """The measured window on the client's clock: the manifest's after the cut, else first scheduled send to last end."""
        if self.manifest.window is not None:
            start, end = self.manifest.window
            return start + self.cut_s, end
        measured = self.requests.measured
        return float(measured["scheduled"].min()), float(measured[["end", "scheduled"]].max().max())


@dataclass(frozen=True)
class Loaded:
    """The runs of a tree that may be used, and the problems with the others."""

    runs: list[Run]
    problems: list[Problem]
