"""Energy of every role divided by phase and by request, with the residual.

A request is in prefill from when the proxy sent it on (else, from when it was sent) until prefill answered (else, its first token), and in
decode from then to its last token. On GPUs with one phase all joules are that phase's; those of combined engines are split (`phase_fit`).
Requests that failed or belong to the warm-up get their share like all others; it is reported separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import pandas as pd

from pd_analysis.energy.computed_tokens import computed_tokens
from pd_analysis.energy.joules import Energy, GpuEnergy
from pd_analysis.energy.phase_fit import fit, parted
from pd_analysis.energy.readings import AVERAGE_LAG_S
from pd_analysis.energy.time_slices import Slices, Spans
from pd_analysis.records.columns import Floats
from pd_analysis.records.run import Run
from pd_contracts.names import Role

Phase = Literal["prefill", "decode", "both"]
SLICE_S: Final = 0.2  # two updates of the boards' counters


@dataclass(frozen=True)
class PhaseEnergy:
    """Joules of one phase of one role.

    Attributes:
        requests_j: by measured request that succeeded, in the order of the schedule.
        others_j: of requests that failed or belong to the warm-up.
        tokens: the phase's own: prompt tokens that the engines computed, or output tokens as users got them; None if unknown.
        computed: False if the prompt tokens are all of them, because it is unknown which of them the engines computed.
    """

    phase: Phase
    requests_j: Floats
    others_j: float
    tokens: float | None
    computed: bool = True

    @property
    def energy_j(self) -> float:
        """Joules of the phase, over requests of all kinds."""
        return float(self.requests_j.sum()) + self.others_j


@dataclass(frozen=True)
class RoleEnergy:
    """Joules of one role's boards over the measured window: phases and residual sum to `energy_j`.

    Attributes:
        static_j: what the boards would have drawn idle; None if they were never seen idle.
        residual_j: drawn while no request was being served.
        r2: how well the fit explains the energy of a combined role; None where nothing had to be fitted.
    """

    role: Role
    energy_j: float
    static_j: float | None
    residual_j: float
    phases: tuple[PhaseEnergy, ...]
    r2: float | None = None

    @property
    def dynamic_j(self) -> float | None:
        """What serving added to idling."""
        return None if self.static_j is None else self.energy_j - self.static_j

    def per_token(self, phase: PhaseEnergy) -> float | None:
        """Joules per token of a phase: of all the role's joules where it has one phase, of the phase's where it has two."""
        joules = self.energy_j if len(self.phases) == 1 else phase.energy_j
        return joules / phase.tokens if phase.tokens else None


def attribution_of(run: Run, energy: Energy | None) -> tuple[RoleEnergy, ...]:
    """Every role whose boards' energy is known; empty without power."""
    if energy is None or energy.window_s <= 0:
        return ()
    rows = run.requests.rows
    rows = rows[rows["sent"].notna() & rows["end"].notna()]
    slices = Slices(run.window, SLICE_S)
    works = (_Work(run, rows, slices, energy, role) for role in energy.roles if energy.of(role) is not None)
    return tuple(work.divided() for work in works)


def summed_attribution(parts: Sequence[tuple[RoleEnergy, ...]]) -> tuple[RoleEnergy, ...]:
    """That of repeats of one load; empty if they differ in what is known."""
    shapes = {tuple((role.role, tuple(phase.phase for phase in role.phases)) for role in part) for part in parts}
    return tuple(map(_summed, zip(*parts, strict=True))) if len(shapes) == 1 else ()


@dataclass(frozen=True)
class _Work:
    """One role of one run."""

    run: Run
    rows: pd.DataFrame
    slices: Slices
    energy: Energy
    role: Role

    def divided(self) -> RoleEnergy:
        """Its joules by phase and by request."""
        joules = np.zeros(self.slices.count)
        for gpu in self.energy.gpus:
            if gpu.role is self.role:
                joules += _joules(self.run, gpu, self.slices, self.energy.shift_s)
        prefill, decode = spans_of(self.rows, self.role)
        if self.role is Role.PREFILL:
            return self._role(joules, [self._phase("prefill", joules, prefill)])
        if self.role is Role.DECODE:
            return self._role(joules, [self._phase("decode", joules, decode)])
        return self._combined(joules, prefill, decode)

    def _combined(self, joules: Floats, prefill: Spans, decode: Spans) -> RoleEnergy:
        static = self.energy.idle_j([self.role])
        idle_w = None if static is None else static / self.energy.window_s
        split = fit(self.slices, joules, prefill, decode, idle_w)
        if split is None or not split.separates:
            whole = Spans(prefill.start, decode.end, prefill.tokens + decode.tokens)
            return self._role(joules, [self._phase("both", joules, whole)])
        first, second = parted(self.slices, joules, prefill, decode, split)
        phases = [self._phase("prefill", first, prefill), self._phase("decode", second, decode)]
        return replace(self._role(joules, phases), r2=split.r2)

    def _role(self, joules: Floats, parts: Sequence[tuple[PhaseEnergy, float]]) -> RoleEnergy:
        return RoleEnergy(
            role=self.role,
            energy_j=float(joules.sum()),
            static_j=self.energy.idle_j([self.role]),
            residual_j=sum(left for _, left in parts),
            phases=tuple(phase for phase, _ in parts),
        )

    def _phase(self, phase: Phase, joules: Floats, spans: Spans) -> tuple[PhaseEnergy, float]:
        shares, residual = self.slices.share(joules, spans)
        mine = (~self.rows["warmup"] & self.rows["ok"]).to_numpy()
        tokens, computed = self._tokens(phase, spans)
        return PhaseEnergy(phase, shares[mine], float(shares[~mine].sum()), tokens, computed), residual

    def _tokens(self, phase: Phase, spans: Spans) -> tuple[float | None, bool]:
        served = self.run.requests.served
        prompt, output = _sum(served["prompt_tokens"]), _sum(served["output_tokens"])
        if phase == "decode":
            return output, True
        counted = computed_tokens(self.run, self.role, spans, self.energy.shift_s)
        used = prompt if counted is None else counted
        if phase == "prefill":
            return used, counted is not None
        return None if used is None or output is None else used + output, counted is not None


def _sum(tokens: "pd.Series[float]") -> float | None:
    return None if tokens.empty or tokens.isna().any() else float(tokens.sum())


def spans_of(rows: pd.DataFrame, role: Role) -> tuple[Spans, Spans]:
    """When each request was in prefill and in decode; with no first token, it was in prefill all the time."""
    sent, end = (rows[name].to_numpy(dtype=np.float64) for name in ("sent", "end"))
    first = rows["first"].fillna(rows["end"]).to_numpy(dtype=np.float64)
    last = rows["last"].fillna(rows["end"]).to_numpy(dtype=np.float64)
    queue = rows["queue"].fillna(0).to_numpy(dtype=np.float64) / 1e3
    start = np.minimum(sent + queue, first)
    answered = start + rows["prefill"].to_numpy(dtype=np.float64) / 1e3
    over = first if role is Role.COMBINED else np.where(np.isnan(answered), first, np.minimum(answered, first))
    prompt = _known(rows["prompt_tokens"])
    output = np.where(rows["first"].isna(), 0.0, _known(rows["output_tokens"]))
    return Spans(start, over, prompt), Spans(over, np.maximum(np.where(rows["ok"], last, end), over), output)


def _known(tokens: "pd.Series[float]") -> Floats:
    """A request with an unknown token count counts as an average one."""
    mean = tokens.mean()
    return np.asarray(tokens.fillna(1.0 if np.isnan(mean) else mean), dtype=np.float64)


def _joules(run: Run, gpu: GpuEnergy, slices: Slices, shift: float) -> Floats:
    """A board's joules in each slice, by the same reading as its energy, so that they sum to it."""
    own = run.samples[run.samples["index"] == gpu.index]
    if gpu.method == "counter":
        known = own.loc[own["energy_mj"].notna()]
        counter: Floats = np.interp(slices.edges, known["t"] + shift, known["energy_mj"]) / 1e3
        return counter[1:] - counter[:-1]
    column, lag = ("power_w", 0.0) if gpu.average_j is None else ("power_average_w", AVERAGE_LAG_S)
    known = own.loc[own[column].notna()]
    times = known["t"].to_numpy(dtype=np.float64) + shift - lag
    inside = times[(times > slices.edges[0]) & (times < slices.edges[-1])]
    grid = np.unique(np.concatenate((inside, slices.edges)))
    power = np.interp(grid, times, known[column].to_numpy(dtype=np.float64))
    reached = np.concatenate(([0.0], np.cumsum((power[1:] + power[:-1]) / 2 * np.diff(grid))))
    at_edges: Floats = reached[np.searchsorted(grid, slices.edges)]
    return at_edges[1:] - at_edges[:-1]


def _summed(repeats: Sequence[RoleEnergy]) -> RoleEnergy:
    known = [role.static_j for role in repeats if role.static_j is not None]
    weighed = [(role.r2, role.energy_j) for role in repeats if role.r2 is not None]
    energy = sum(role.energy_j for role in repeats)
    return RoleEnergy(
        role=repeats[0].role,
        energy_j=energy,
        static_j=sum(known) if len(known) == len(repeats) else None,
        residual_j=sum(role.residual_j for role in repeats),
        phases=tuple(map(_summed_phase, zip(*(role.phases for role in repeats), strict=True))),
        r2=sum(r2 * joules for r2, joules in weighed) / energy if len(weighed) == len(repeats) and energy else None,
    )


def _summed_phase(repeats: Sequence[PhaseEnergy]) -> PhaseEnergy:
    tokens = [phase.tokens for phase in repeats if phase.tokens is not None]
    return PhaseEnergy(
        phase=repeats[0].phase,
        requests_j=np.concatenate([phase.requests_j for phase in repeats]),
        others_j=sum(phase.others_j for phase in repeats),
        tokens=sum(tokens) if len(tokens) == len(repeats) else None,
        computed=all(phase.computed for phase in repeats),
    )
