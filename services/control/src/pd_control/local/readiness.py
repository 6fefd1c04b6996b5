"""Waiting for a deployment: the wait goes on while a state or a log changes, and fails when nothing has changed for long.

Model loading takes seconds on a simulator and many minutes on a large model, so a fixed time-out cannot tell slow from stuck.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from pd_contracts.names import Role
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_control.client import ClientError, get, json_of, proxy_stats
from pd_control.supervision.state import Running
from pd_control.supervision.supervisor import StartError, dead, death

POLL_S: Final = 0.1


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress: ready engines by role, the expected numbers, the states of all, and a sentence on what is awaited."""

    ready: dict[Role, int]
    expected: dict[Role, int]
    states: list[str]
    waiting: str

    @property
    def done(self) -> bool:
        """True if every engine is ready."""
        return all(self.ready.get(role, 0) >= count for role, count in self.expected.items())


def progress(stats: ProxyStats | None, expected: Mapping[Role, int]) -> Progress:
    """Read the proxy's view; None means that the proxy does not answer yet."""
    instances = stats.instances if stats else []
    ready = {role: sum(i.role is role and i.state == "ready" for i in instances) for role in expected}
    states = [f"{i.name} {i.state}" for i in instances] if stats else ["no proxy"]
    return Progress(ready=ready, expected=dict(expected), states=states, waiting=_waiting(stats, ready, expected))


def _waiting(stats: ProxyStats | None, ready: Mapping[Role, int], expected: Mapping[Role, int]) -> str:
    if stats is None:
        return "the proxy to answer"
    parts = [_missing(role, count, stats.instances) for role, count in expected.items() if ready[role] < count]
    return "; ".join(parts)


def _missing(role: Role, count: int, instances: Sequence[InstanceStats]) -> str:
    known = [instance for instance in instances if instance.role is role]
    reasons = [f"{i.name} is {i.state}" + (f" ({i.reason})" if i.reason else "") for i in known if i.state != "ready"]
    unseen = count - len(known)
    if unseen > 0:
        reasons.append(f"{unseen} {role} not announced yet")
    return ", ".join(reasons) or f"{role} engines"


def watch(
    url: str, expected: Mapping[Role, int], traces: Callable[[], object], stall_s: float, poll_s: float = POLL_S
) -> Iterator[Progress]:
    """Yield the progress at every look until the deployment is ready.

    `traces` raises StartError if something ended, and returns values that change while engines make progress.

    Raises:
        StartError: from `traces`, or if there was no progress for `stall_s`.
    """
    patience = Patience(stall_s)
    while True:
        moved = traces()
        seen = progress(proxy_stats(url), expected)
        yield seen
        if seen.done:
            return
        if not patience.lasts((seen.states, moved)):
            msg = f"no progress for {stall_s:.0f} s while waiting for {seen.waiting}"
            raise StartError(msg)
        time.sleep(poll_s)


class Patience:
    """A time-out that starts again whenever the value it is shown changes."""

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Give up `stall_s` seconds after the last change."""
        self._stall_s = stall_s
        self._clock = clock
        self._last: object = None
        self._since = clock()

    def lasts(self, seen: object) -> bool:
        """Look again; False once nothing has changed for too long."""
        if seen != self._last:
            self._last, self._since = seen, self._clock()
        return self._clock() - self._since < self._stall_s


def until_boards(monitor: str, count: int, limit_s: float, poll_s: float = POLL_S) -> None:
    """Wait until the monitor at `monitor` has read `count` boards; its readiness page needs only one.

    Raises:
        StartError: with the number it has, if it does not within `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while (complaint := _missing_boards(monitor, count)) is not None:
        if time.monotonic() > deadline:
            msg = f"monitor is not ready after {limit_s:.0f} s: {complaint}"
            raise StartError(msg)
        time.sleep(poll_s)


def _missing_boards(monitor: str, count: int) -> str | None:
    try:
        reply = get(f"{monitor}/gpus", timeout_s=2.0)
        boards = len(json_of(reply)) if reply.status == 200 else 0
    except ClientError as error:
        return str(error)
    return None if boards >= count else f"it sees {boards} of {count} boards"


def process_traces(processes: Sequence[Running]) -> Callable[[], object]:
    """For `watch`: raises if a process ended, returns how much the engines have logged.

    Only the engines' logs count: a proxy that repeats the same warning makes no progress.
    """

    def traces() -> object:
        for process in dead(processes):
            raise death(process)
        return [_size(Path(process.log)) for process in processes if process.role is not None]

    return traces


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
