"""Who is there: from pings, health results and the clock to instances with a state. No I/O.

Theory of operation. An engine is known by its HTTP address. Its first ping makes it `joining`; a health check that answers
200 and a list of models make it `ready`; silence longer than the TTL makes it `lost`, and a ping after that sends it through
`joining` again. Another boot id, KV port, role or connector at the same address is another process: a new incarnation, which
must join like anybody else and to which nothing that was said to the old one applies. `suspect` is a mark set from outside (the
engine's streams stand still). It survives silence, because a wedged vLLM goes on pinging from its own thread and a hiccup
of the network must not wash it clean; only a new incarnation or `clear` takes it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping

CAPACITY: Final = 1024
FORGET_AFTER_S: Final = 600.0
MAX_PREDECESSORS: Final = 4


class State(StrEnum):
    """What an instance may be used for: only `ready` gets requests."""

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    SUSPECT = "suspect"
    LOST = "lost"


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one moment. `incarnation` is another number for every process ever seen; `models` are ids."""

    name: str
    role: Role
    http_address: str
    zmq_address: str
    connector: Connector | None
    incarnation: int
    state: State = State.JOINING
    reason: str = ""
    boot_id: str = ""
    model: str = ""
    engine: str = ""
    version: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """An instance's state changed; `before` is None for a new one.

    `gone` is a process that is no more: the predecessor after a restart, or the instance itself when it is forgotten.
    """

    instance: Instance
    before: State | None
    gone: Instance | None = None


class PingRefusedError(ValueError):
    """A well-formed ping that is not believed; `reason` is a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        """Take the label and the sentence."""
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Entry:
    instance: Instance
    last_ping: float
    models: tuple[dict[str, Any], ...] = ()
    healthy: bool = False
    failures: int = 0
    lost: bool = False
    complaint: str = "waits for its first health check"
    suspicion: str = ""
    draining: bool = False
    predecessors: tuple[Instance, ...] = ()

    def state(self) -> tuple[State, str]:
        if self.lost:
            return State.LOST, "stopped pinging"
        if self.suspicion:
            return State.SUSPECT, self.suspicion
        if self.draining:
            return State.DRAINING, "drained by the operator"
        return (State.READY, "") if self.healthy else (State.JOINING, self.complaint)


class Registry:
    """All instances; every method that changes something returns what changed."""

    def __init__(
        self, *, ping_ttl_s: float, health_failures: int, default_connector: Connector, capacity: int = CAPACITY
    ) -> None:
        """Start empty. `capacity` bounds what strangers who can reach the port may make us remember."""
        self._ttl = ping_ttl_s
        self._tolerated = health_failures
        self._default_connector = default_connector
        self._capacity = capacity
        self._entries: dict[str, _Entry] = {}
        self._by_zmq: dict[str, str] = {}
        self._numbers = dict.fromkeys(Role, 0)
        self._incarnations = 0
        self._view: tuple[Instance, ...] | None = ()

    def view(self) -> tuple[Instance, ...]:
        """All instances in order of joining; the same object as long as nothing changes."""
        if self._view is None:
            self._view = tuple(entry.instance for entry in self._entries.values())
        return self._view

    def current(self, instance: Instance) -> Instance | None:
        """The instance as it is now, or None if its process is gone."""
        entry = self._entry(instance)
        return entry.instance if entry is not None else None

    def models(self, instance: Instance) -> tuple[dict[str, Any], ...]:
        """The entries of the engine's `/v1/models`."""
        entry = self._entry(instance)
        return entry.models if entry is not None else ()

    def last_ping(self, instance: Instance) -> float:
        """When it pinged last, on the clock of `ping(now)`."""
        return self._entries[instance.http_address].last_ping

    def ping(self, ping: Ping, now: float) -> list[Change]:
        """Take in one announcement.

        Raises:
            PingRefusedError: if the table is full of live instances, another live instance has that KV address, or the
                process was replaced.
        """
        entry = self._entries.get(ping.http_address)
        owner = self._by_zmq.get(ping.zmq_address, ping.http_address)
        if owner != ping.http_address and not self._entries[owner].lost:
            raise PingRefusedError("conflict", "another live engine announces the same zmq_address")
        if entry is None:
            return self._join(ping, now)
        if not self._matches(entry.instance, ping):
            return [self._restart(entry, ping, now)]
        entry.last_ping = now
        self._learn(entry, ping)
        if entry.lost:
            entry.lost, entry.healthy, entry.complaint = False, False, "pings again"
            return self._settle(entry)
        return []

    def expire(self, now: float) -> list[Change]:
        """Mark as lost whoever was silent for longer than the TTL; forget who has been lost for long."""
        changes: list[Change] = []
        for entry in list(self._entries.values()):
            silence = now - entry.last_ping
            if not entry.lost and silence > self._ttl:
                entry.lost = True
                changes += self._settle(entry)
            elif entry.lost and silence > self._ttl + FORGET_AFTER_S:
                changes.append(self._forget(entry))
        return changes

    def healthy(self, instance: Instance, models: Sequence[dict[str, Any]]) -> list[Change]:
        """A health check answered 200; `models` are the entries of the engine's `/v1/models`."""
        entry = self._entry(instance)
        if entry is None or entry.lost:
            return []
        entry.healthy, entry.failures, entry.models = True, 0, tuple(models)
        ids = tuple(model["id"] for model in models)
        if ids != entry.instance.models:
            self._replace(entry, models=ids)
        return self._settle(entry)

    def unhealthy(self, instance: Instance, reason: str, *, certain: bool = False) -> list[Change]:
        """A health check failed, or (`certain`) the engine refuses connections."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.failures += 1
        entry.complaint = reason
        if certain or entry.failures >= self._tolerated:
            entry.healthy = False
        return self._settle(entry)

    def suspect(self, instance: Instance, reason: str) -> list[Change]:
        """The instance stands still: no request for it until it restarts or `clear` is called."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.suspicion = reason
        return self._settle(entry)

    def clear(self, instance: Instance) -> list[Change]:
        """A real request through the instance succeeded."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.suspicion = ""
        return self._settle(entry)

    def drain(self, instance: Instance, *, on: bool) -> list[Change]:
        """The operator wants it to get no more requests, or to get some again; its successor starts without this."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.draining = on
        return self._settle(entry)

    def _entry(self, instance: Instance) -> _Entry | None:
        entry = self._entries.get(instance.http_address)
        return entry if entry is not None and entry.instance.incarnation == instance.incarnation else None

    def _matches(self, instance: Instance, ping: Ping) -> bool:
        # vLLM's own pings name neither boot id nor connector; what is not said does not contradict.
        return (
            (ping.type.role, ping.zmq_address) == (instance.role, instance.zmq_address)
            and (not ping.boot_id or not instance.boot_id or ping.boot_id == instance.boot_id)
            and (ping.connector is None or self._connector(ping) == instance.connector)
        )

    def _learn(self, entry: _Entry, ping: Ping) -> None:
        names = ("boot_id", "model", "engine", "version")
        news = {name: getattr(ping, name) for name in names if getattr(ping, name) != getattr(entry.instance, name)}
        news = {name: value for name, value in news.items() if value}
        if news:
            self._replace(entry, **news)

    def _connector(self, ping: Ping) -> Connector | None:
        return None if ping.type.role is Role.COMBINED else ping.connector or self._default_connector

    def _instance(self, ping: Ping, name: str) -> Instance:
        self._incarnations += 1
        return Instance(
            name=name,
            role=ping.type.role,
            http_address=ping.http_address,
            zmq_address=ping.zmq_address,
            connector=self._connector(ping),
            incarnation=self._incarnations,
            boot_id=ping.boot_id,
            model=ping.model,
            engine=ping.engine,
            version=ping.version,
        )

    def _join(self, ping: Ping, now: float) -> list[Change]:
        changes = self._make_room()
        entry = _Entry(self._instance(ping, self._name(ping.type.role)), now)
        self._entries[ping.http_address] = entry
        self._by_zmq[ping.zmq_address] = ping.http_address
        self._settle(entry)
        return [*changes, Change(entry.instance, None)]

    def _restart(self, entry: _Entry, ping: Ping, now: float) -> Change:
        old = entry.instance
        # ZMQ may deliver what a dead process sent after its successor's first ping; believing it would end the new one's streams.
        if not entry.lost and any(self._matches(gone, ping) for gone in entry.predecessors):
            raise PingRefusedError("stale", "this process was replaced by another one at the same address")
        self._unlink(old)
        self._by_zmq[ping.zmq_address] = ping.http_address
        name = old.name if old.role is ping.type.role else self._name(ping.type.role)
        new = _Entry(self._instance(ping, name), now)
        new.predecessors = (*entry.predecessors, old)[-MAX_PREDECESSORS:]
        self._entries[ping.http_address] = new
        self._settle(new)
        return Change(new.instance, old.state, gone=old)

    def _make_room(self) -> list[Change]:
        if len(self._entries) < self._capacity:
            return []
        lost = [entry for entry in self._entries.values() if entry.lost]
        if not lost:
            raise PingRefusedError("full", f"{self._capacity} engines are known already")
        return [self._forget(min(lost, key=lambda entry: entry.last_ping))]

    def _forget(self, entry: _Entry) -> Change:
        instance = entry.instance
        del self._entries[instance.http_address]
        self._unlink(instance)
        self._view = None
        return Change(instance, State.LOST, gone=instance)

    def _unlink(self, instance: Instance) -> None:
        if self._by_zmq.get(instance.zmq_address) == instance.http_address:
            del self._by_zmq[instance.zmq_address]

    def _name(self, role: Role) -> str:
        self._numbers[role] += 1
        return f"{role.value}-{self._numbers[role] - 1}"

    def _settle(self, entry: _Entry) -> list[Change]:
        before = entry.instance.state
        state, reason = entry.state()
        if (state, reason) != (before, entry.instance.reason):
            self._replace(entry, state=state, reason=reason)
        self._view = None
        return [Change(entry.instance, before)] if state is not before else []

    def _replace(self, entry: _Entry, **fields: Any) -> None:
        entry.instance = msgspec.structs.replace(entry.instance, **fields)
        self._view = None
