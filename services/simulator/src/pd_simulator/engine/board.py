"""The simulated board: its exact power and energy counter.

Power is constant within a step and idle between steps, so energy is piecewise linear in time and its value at any time is a closed
form. A reading after the last known step counts the time since then as idle; the next step may begin before that reading (steps
are planned on absolute deadlines), which then only adds energy, because no state draws less than idle: the counter never falls.
"""

import math
import uuid
from collections import deque
from dataclasses import dataclass

from pd_contracts.board import Board
from pd_contracts.clock_events import CLOCK_EVENTS
from pd_contracts.names import Role
from pd_contracts.records import GpuInfo, GpuSample
from pd_simulator.profile import Draw, Profile
from pd_simulator.steps.step_time import StepTime

AVERAGE_S = 1.0  # the window of NVML's power average, and of the utilisation
LIMIT_S = 0.2  # how soon a board that draws more than its limit lowers its clocks: a step may draw more, the average over this may not
_KEEP_S = 3.0


def step_watts(draw: Draw, step: StepTime, batch: int) -> float:
    """Average draw during a step, before the board's limit: idle, and what prompts and decodes add for as long as they take."""
    decode_w = draw.decode_w + draw.per_sequence_w * batch
    joules = draw.prefill_w * step.prefill_s + decode_w * step.decode_s
    return draw.idle_w + (joules / step.seconds if step.seconds else 0.0)


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a segment ends: energy and busy time up to there."""

    t: float
    joules: float
    busy_s: float


class EnergyMeter:
    """Integrates power over time, from the moment it is made."""

    def __init__(self, idle_w: float, now: float, limit_w: float = math.inf) -> None:
        self._idle_w, self._limit_w = idle_w, limit_w
        self._average_w = idle_w
        self._nodes = deque([_Node(now, 0.0, 0.0)])

    def busy(self, start: float, seconds: float, watts: float) -> None:
        """Add a segment; it begins no earlier than the last one ended, and draws what the limit leaves of `watts`."""
        last = self._nodes[-1]
        begin = max(start, last.t)
        joules = last.joules + (begin - last.t) * self._idle_w
        watts = self._limited(begin - last.t, seconds, watts)
        if begin > last.t:
            self._nodes.append(_Node(begin, joules, last.busy_s))
        self._nodes.append(_Node(begin + seconds, joules + seconds * watts, last.busy_s + seconds))
        while len(self._nodes) > 2 and self._nodes[1].t < begin - _KEEP_S:
            self._nodes.popleft()

    def _limited(self, pause: float, seconds: float, watts: float) -> float:
        """`watts`, or what keeps the exponential average over `LIMIT_S` at the limit."""
        self._average_w = self._idle_w + (self._average_w - self._idle_w) * math.exp(-pause / LIMIT_S)
        rest = math.exp(-seconds / LIMIT_S)
        if rest < 1:
            watts = min(watts, (self._limit_w - self._average_w * rest) / (1 - rest))
        self._average_w = watts + (self._average_w - watts) * rest
        return watts

    def read(self, now: float) -> tuple[float, float]:
        """Joules and busy seconds from the beginning until `now` (not longer ago than a few seconds before the last segment)."""
        after = self._nodes[-1]
        if now >= after.t:
            return after.joules + (now - after.t) * self._idle_w, after.busy_s
        for before in reversed(self._nodes):
            if before.t <= now:
                part = (now - before.t) / (after.t - before.t)
                joules = before.joules + part * (after.joules - before.joules)
                return joules, before.busy_s + part * (after.busy_s - before.busy_s)
            after = before
        return after.joules, after.busy_s

    def watts(self, now: float) -> float:
        return (self.read(now)[0] - self.read(now - 1e-6)[0]) / 1e-6 if now < self._nodes[-1].t else self._idle_w

    @property
    def began(self) -> float:
        """Earliest time that can be read exactly."""
        return self._nodes[0].t


class SimulatedBoard:
    """One board, as the monitor reads it."""

    def __init__(self, profile: Profile, *, index: int, role: Role, instance: str, now: float) -> None:
        """Name it after its engine, so that every start of the same engine has the same board."""
        self._profile = profile
        self._index = index
        self._role = role
        self._draw = profile.power.of(role)
        self.meter = EnergyMeter(self._draw.idle_w, now, profile.power.limit_w)
        self.info = GpuInfo(
            index=index,
            name=f"{profile.board} (simulated)",
            uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'pd-simulator {instance} {index}')}",
            role=role,
            instance=instance,
            power_limit_w=profile.power.limit_w,
            driver="simulated",
            memory_bytes=profile.memory.total_bytes,
        )

    def step(self, start: float, step: StepTime, batch: int) -> None:
        self.meter.busy(start, step.seconds, step_watts(self._draw, step, batch))

    def read(self, now: float, kv_tokens: int) -> Board:
        power, memory = self._profile.power, self._profile.memory
        joules, busy_s = self.meter.read(now)
        then = max(now - AVERAGE_S, self.meter.began)
        past_joules, past_busy_s = self.meter.read(then)
        window = max(now - then, 1e-6)
        average = (joules - past_joules) / window if now > then else self._draw.idle_w
        watts = self.meter.watts(now)
        idle = watts <= self._draw.idle_w
        return Board(
            info=self.info,
            sample=GpuSample(
                t=now,
                index=self._index,
                role=self._role,
                power_w=round(watts, 3),
                power_average_w=round(average, 3),
                energy_mj=joules * 1e3,
                sm_clock_mhz=power.idle_clock_mhz if idle else power.clock_mhz,
                memory_clock_mhz=power.memory_clock_mhz,
                utilization=min(1.0, (busy_s - past_busy_s) / window),
                temperature_c=round(power.ambient_c + power.degrees_per_watt * average, 1),
                memory_used_bytes=memory.weights_bytes + kv_tokens * memory.kv_bytes_per_token,
                throttle_reasons=CLOCK_EVENTS["gpu_idle"] if idle else 0,
            ),
        )
