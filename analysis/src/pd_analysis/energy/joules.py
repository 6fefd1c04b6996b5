"""Joules that were found: of a board, of a run, and per token; unknown is None.

What the readings of a board say apart from each other is the error of its energy, and one board that is unknown makes a sum unknown.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pd_analysis.energy.checks import Fault
from pd_analysis.energy.readings import CLOSURE_LIMIT, closure
from pd_contracts.names import Role

Method = Literal["counter", "integral"]


@dataclass(frozen=True)
class GpuEnergy:
    """One board over the measured window; None is unknown.

    Attributes:
        method: how `energy_j` was found; None with it.
        integral_j: under instantaneous power.
        average_j: under the board's own average of power.
        idle_w: its lowest median power over stretches without a request; None if the recording has none.
        throttled: share of the window's samples with a throttling bit, by reason.
        busy: mean share of the window in which a kernel ran.
        faults: checks that its readings failed; it then has no energy.
        edges_j: what one update of the counter at either end of the window can make; None without a counter.
    """

    index: int
    name: str
    role: Role | None
    method: Method | None
    energy_j: float | None
    counter_j: float | None
    integral_j: float | None
    average_j: float | None
    mean_w: float | None
    peak_w: float | None
    idle_w: float | None
    throttled: Mapping[str, float]
    busy: float | None = None
    faults: tuple[Fault, ...] = ()
    edges_j: float | None = None

    @property
    def error_j(self) -> float | None:
        """How far the energy may be off: by the ends of the window, or by what its power readings say otherwise if that is more."""
        bounds = self.bounds_j
        if self.edges_j is None or self.energy_j is None or bounds is None:
            return None
        return max(self.edges_j, self.energy_j - bounds[0], bounds[1] - self.energy_j)

    @property
    def closure(self) -> float | None:
        """Integral / counter − 1, of the power reading that comes nearer to the counter; None without a counter or power."""
        closures = [
            found
            for joules in (self.integral_j, self.average_j)
            if (found := closure(joules, self.counter_j)) is not None
        ]
        return min(closures, key=abs, default=None)

    @property
    def bounds_j(self) -> tuple[float, float] | None:
        """The least and the most joules by its own readings: the counter's, and the power's where it disagrees; None without energy."""
        if self.energy_j is None:
            return None
        apart = self.closure or 0.0
        other = self.energy_j * (1 + apart) if abs(apart) > CLOSURE_LIMIT else self.energy_j
        return min(self.energy_j, other), max(self.energy_j, other)


@dataclass(frozen=True)
class Energy:
    """All boards of a run over its measured window.

    Attributes:
        shift_s: what maps the recorder's clock to the client's.
        roles_apart: boards that were recorded with another role than their engine's; if not 0, no energy is given by role.
        astray: boards of the deployment that were not recorded, and recorded ones with a role that are not the deployment's; if not 0, the
            recorded joules are not the deployment's, and no sum of them is given.
    """

    window_s: float
    gpus: tuple[GpuEnergy, ...]
    shift_s: float
    astray: int = 0
    roles_apart: int = 0

    @property
    def roles(self) -> list[Role]:
        """The roles that have a board."""
        return [role for role in Role if any(gpu.role is role for gpu in self.gpus)]

    def of(self, role: Role) -> float | None:
        """Joules of a role; None if it has no board, one of its boards is unknown, or `astray` or `roles_apart` is not 0."""
        return (
            None
            if self.astray or self.roles_apart
            else total_of([gpu.energy_j for gpu in self.gpus if gpu.role is role])
        )

    @property
    def serving(self) -> tuple[GpuEnergy, ...]:
        """The boards with a role; others were recorded and served nothing."""
        return tuple(gpu for gpu in self.gpus if gpu.role is not None)

    @property
    def total_j(self) -> float | None:
        """Joules of all boards that serve; None as in `of`."""
        return None if self.astray else total_of([gpu.energy_j for gpu in self.serving])

    @property
    def bounds_share(self) -> tuple[float, float]:
        """The least and the most that the boards' own readings allow, as shares of `total_j`; 1 and 1 if it is unknown."""
        bounds = [gpu.bounds_j for gpu in self.serving]
        known = [bound for bound in bounds if bound is not None]
        if not self.total_j or len(known) < len(bounds):
            return 1.0, 1.0
        return sum(least for least, _ in known) / self.total_j, sum(most for _, most in known) / self.total_j

    def idle_j(self, roles: Collection[Role]) -> float | None:
        """The static part: what the roles' boards would have drawn idle; None if one was never seen idle."""
        idle = total_of([gpu.idle_w for gpu in self.gpus if gpu.role in roles])
        return None if idle is None else idle * self.window_s


@dataclass(frozen=True)
class TokenEnergy:
    """Joules per token. A role's tokens are those it works for: prompt for prefill, output for decode, both for combined."""

    prefill_per_prompt: float | None
    decode_per_output: float | None
    combined_per_token: float | None
    per_output: float | None
    per_token: float | None
    parts_per_output: Mapping[Role, float]


def per_token(energy: Energy, prompt_tokens: int | None, output_tokens: int | None) -> TokenEnergy:
    """Divide by tokens of successful requests; None where either side is unknown."""
    both = None if prompt_tokens is None or output_tokens is None else prompt_tokens + output_tokens
    parts = {role: _share(energy.of(role), output_tokens) for role in energy.roles}
    return TokenEnergy(
        prefill_per_prompt=_share(energy.of(Role.PREFILL), prompt_tokens),
        decode_per_output=_share(energy.of(Role.DECODE), output_tokens),
        combined_per_token=_share(energy.of(Role.COMBINED), both),
        per_output=_share(energy.total_j, output_tokens),
        per_token=_share(energy.total_j, both),
        parts_per_output={role: part for role, part in parts.items() if part is not None},
    )


def total_of(values: Sequence[float | None]) -> float | None:
    """The sum; None if a value is unknown or there are no values."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _share(joules: float | None, tokens: int | None) -> float | None:
    return None if joules is None or not tokens else joules / tokens
