"""The engines and their states, derived from pings, health checks and the clock. No I/O.

Theory of operation. An engine is known by its HTTP address. Its first ping makes it `joining`; a health check that answers
200 and a list of models make it `ready`; silence longer than the TTL makes it `lost`, and a ping after that sends it through
`joining` again. Another boot id, KV port, role or connector at the same address means another process: a new incarnation, which
must join like any other and shares nothing with the old one. A ping without proof that it belongs to the deployment (`trusted`: it is
signed, or comes from the API server) counts as another process only once the old one is silent or refuses connections: a stranger
cannot stop a live engine's pings, so it cannot take its place. `suspect` is set from outside (the engine's streams have stalled). It
survives silence: a stuck vLLM goes on pinging from its own thread, and an interruption of the network must not clear it. Only a new
incarnation or `clear` removes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping

CAPACITY: Final = 1024
# The most engines with unsigned pings from one address; a host has fewer.
CAPACITY_A_PEER: Final = 64
# An engine that pinged within this share of the TTL, and does not refuse connections, counts as alive.
LIVE_SHARE: Final = 0.45
# Fields that are copied unchanged from a ping.
TOLD: Final = ("boot_id", "model", "engine", "version", "gpus", "gpu_model", "versions", "transport", "image", "alike")
FORGET_AFTER_S: Final = 600.0
MAX_PREDECESSORS: Final = 4


class State(StrEnum):
    """An instance's state; only `ready` ones get requests."""

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    SUSPECT = "suspect"
    LOST = "lost"


class Told(msgspec.Struct, frozen=True):
    """What an engine's /metrics page tells of it, as `engine_page` reads it.

    Attributes:
        draws: how tokens are drawn for a seed; empty unless that depends on seed and position alone.
        kv_tokens: the size of its KV cache; 0 if it is not known.
        own_fields: sampling fields that work on the output so far and have a default of the engine's own.
        own_limit: its own limit of output tokens, beside the model's length; 0 if it has none.
    """

    draws: str = ""
    kv_tokens: int = 0
    own_fields: tuple[str, ...] = ()
    own_limit: int = 0


NOTHING_TOLD: Final = Told()


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one moment. `incarnation` is unique to each process ever seen; `models` are model ids.

    The fields from `boot_id` to `alike` come from the engine's ping (pd_contracts.ping).
    """

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
    gpus: tuple[str, ...] = ()
    gpu_model: str = ""
    versions: dict[str, str] = {}
    transport: str = ""
    image: str = ""
    alike: dict[str, str] = {}
    models: tuple[str, ...] = ()
    told: Told = NOTHING_TOLD

    @property
    def draws(self) -> str:
        return self.told.draws

    @property
    def kv_tokens(self) -> int:
        return self.told.kv_tokens


@dataclass(frozen=True, slots=True)
class Change:
    """An instance's state changed; `before` is None for a new one.

    `gone` is a process that no longer exists: the predecessor after a restart, or the instance itself when it is forgotten.
    """

    instance: Instance
    before: State | None
    gone: Instance | None = None


class PingRefusedError(ValueError):
    """A well-formed ping that is not believed; `reason` is a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Entry:
    instance: Instance
    last_ping: float
    trusted: bool
    peer: str
    sent_at: float = 0.0
    up: float = 0.0
    refuses: bool = False
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


def unnamed(configured: Connector) -> Connector:
    """The connector of an engine that names none. Engines with P2pConnector always name it, so one that does not has stock P2pNccl."""
    return Connector.P2P_NCCL if configured is Connector.P2P else configured


class Registry:
    """All instances; every method that changes something returns what changed."""

    def __init__(
        self, *, ping_ttl_s: float, health_failures: int, default_connector: Connector, capacity: int = CAPACITY
    ) -> None:
        """Start empty. `capacity` is the most engines that are kept, because everybody who reaches the port can announce some."""
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
        """When the engine pinged last, on the clock of `ping(now)`."""
        return self._entries[instance.http_address].last_ping

    def ping(self, ping: Ping, now: float, *, trusted: bool = True, peer: str = "") -> list[Change]:
        """Take in one announcement; `trusted` as in the module's docstring, `peer` is the sender's address if it is not.

        Raises:
            PingRefusedError: if the table is full of live instances, another live instance has that address or KV address, the
                process was replaced, or a signed ping is older than one that has already arrived.
        """
        entry = self._entries.get(ping.http_address)
        if entry is not None and not trusted and self._live(entry, now):
            if not self._matches(entry.instance, ping):
                raise PingRefusedError("conflict", "a live engine has announced this http_address")
            if entry.trusted:
                return []  # vLLM's own ping of an engine that also signs; it must not keep the engine alive once signed pings stop
        if entry is not None and trusted and not self._is_new(entry, ping, now):
            raise PingRefusedError("replayed", "is older than a ping that has already arrived")
        changes = self._claim(ping, trusted=trusted)
        if entry is None:
            return changes + self._join(ping, now, trusted=trusted, peer=peer)
        changes += [] if self._matches(entry.instance, ping) else [self._restart(entry, ping, now)]
        entry = self._entries[ping.http_address]
        entry.trusted, entry.peer = trusted, peer
        if trusted:
            entry.sent_at, entry.up = ping.time, ping.up
        return changes + self._seen(entry, ping, now)

    def goes_on(self, ping: Ping, now: float) -> bool:
        """Whether a signed ping is new, of a process that has signed pings before or of its successor. Clocks say nothing about that, because they can be set."""
        entry = self._entries.get(ping.http_address)
        if entry is None:
            return False
        if self._continues(entry, ping):
            return ping.up > entry.up
        return self._succeeds(entry, ping, now)

    def _is_new(self, entry: _Entry, ping: Ping, now: float) -> bool:
        if self._continues(entry, ping):
            return ping.up > entry.up
        return not ping.time or ping.time > entry.sent_at or self._succeeds(entry, ping, now)

    def _continues(self, entry: _Entry, ping: Ping) -> bool:
        return bool(entry.up and ping.up and ping.boot_id) and self._matches(entry.instance, ping)

    def _succeeds(self, entry: _Entry, ping: Ping, now: float) -> bool:
        """Whether an engine was restarted, and the clock set back: the old process is silent, and the host has been up for longer than in its last ping.

        A recording of an earlier process shows a shorter time. If the host was restarted, too, only the clocks can tell.
        """
        silent = entry.trusted and not self._live(entry, now)
        known = bool(entry.up and ping.boot_id and entry.instance.boot_id)
        return silent and known and ping.boot_id != entry.instance.boot_id and ping.up > entry.up

    def _live(self, entry: _Entry, now: float) -> bool:
        return not entry.lost and not entry.refuses and now - entry.last_ping <= LIVE_SHARE * self._ttl

    def _claim(self, ping: Ping, *, trusted: bool) -> list[Change]:
        """Free the KV address for the ping's sender, if the engine that has it is gone, or could not prove that it owns it."""
        owner = self._entries.get(self._by_zmq.get(ping.zmq_address, ""))
        if owner is None or owner.instance.http_address == ping.http_address or owner.lost:
            return []
        if trusted and not owner.trusted:
            return [self._forget(owner)]
        raise PingRefusedError("conflict", "another live engine announces the same zmq_address")

    def _seen(self, entry: _Entry, ping: Ping, now: float) -> list[Change]:
        entry.last_ping = now
        self._learn(entry, ping)
        if entry.lost:
            entry.lost, entry.healthy, entry.complaint = False, False, "pings again"
            return self._settle(entry)
        return []

    def expire(self, now: float) -> list[Change]:
        """Mark engines as lost that were silent for longer than the TTL; forget those that have been lost for a long time."""
        changes: list[Change] = []
        for entry in list(self._entries.values()):
            silence = now - entry.last_ping
            if not entry.lost and silence > self._ttl:
                entry.lost = True
                changes += self._settle(entry)
            elif entry.lost and silence > self._ttl + FORGET_AFTER_S:
                changes.append(self._forget(entry))
        return changes

    def healthy(
        self,
        instance: Instance,
        models: Sequence[dict[str, Any]],
        version: str = "",
        told: Told | None = None,
    ) -> list[Change]:
        """A health check answered 200; `models` are the entries of the engine's `/v1/models`. What it was not asked for stays."""
        entry = self._entry(instance)
        if entry is None or entry.lost:
            return []
        if entry.models and _bases(entry.models) != _bases(models):
            return [self._replaced(entry)]
        entry.healthy, entry.failures, entry.models, entry.refuses = True, 0, tuple(models), False
        ids = tuple(model["id"] for model in models)
        if ids != entry.instance.models:
            self._replace(entry, models=ids)
        if version and not entry.instance.version:
            self._replace(entry, version=version)
        if told is not None and told != entry.instance.told:
            self._replace(entry, told=told)
        return self._settle(entry)

    def _replaced(self, entry: _Entry) -> Change:
        """Another process answers, although its pings do not show it: it must join like any other."""
        old = entry.instance
        self._incarnations += 1
        entry.models, entry.healthy, entry.complaint = (), False, "serves other models than before"
        entry.suspicion, entry.draining = "", False
        self._replace(entry, incarnation=self._incarnations, models=(), model="", version="", told=NOTHING_TOLD)
        self._settle(entry)
        return Change(entry.instance, old.state, gone=old)

    def unhealthy(
        self, instance: Instance, reason: str, *, certain: bool = False, refuses: bool = False
    ) -> list[Change]:
        """A health check failed. `certain`: the engine itself reported it; `refuses`: its port refuses connections."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.failures += 1
        entry.complaint = reason
        entry.refuses = refuses
        if certain or refuses or entry.failures >= self._tolerated:
            entry.healthy = False
        return self._settle(entry)

    def suspect(self, instance: Instance, reason: str) -> list[Change]:
        """The instance has stalled: it gets no requests until it restarts or `clear` is called."""
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
        """The operator stops or resumes new requests for the instance; a successor process starts without this mark."""
        entry = self._entry(instance)
        if entry is None:
            return []
        entry.draining = on
        return self._settle(entry)

    def _entry(self, instance: Instance) -> _Entry | None:
        entry = self._entries.get(instance.http_address)
        return entry if entry is not None and entry.instance.incarnation == instance.incarnation else None

    def _matches(self, instance: Instance, ping: Ping) -> bool:
        # vLLM's own pings name neither boot id nor connector; a missing field contradicts nothing.
        return (
            (ping.type.role, ping.zmq_address) == (instance.role, instance.zmq_address)
            and (not ping.boot_id or not instance.boot_id or ping.boot_id == instance.boot_id)
            and (ping.connector is None or self._connector(ping) == instance.connector)
        )

    def _learn(self, entry: _Entry, ping: Ping) -> None:
        news = {name: getattr(ping, name) for name in TOLD if getattr(ping, name) != getattr(entry.instance, name)}
        news = {name: value for name, value in news.items() if value}
        # vLLM's own pings have no number, so the name that one gave is provisional: it can change until the engine serves.
        if entry.instance.state is State.JOINING and (name := self._numbered(ping)):
            news["name"] = name
        if news:
            self._replace(entry, **news)

    def _connector(self, ping: Ping) -> Connector | None:
        return (ping.connector or self._default_connector) if ping.type.moves_kv else None

    def _instance(self, ping: Ping, name: str) -> Instance:
        self._incarnations += 1
        return Instance(
            name=name,
            role=ping.type.role,
            http_address=ping.http_address,
            zmq_address=ping.zmq_address,
            connector=self._connector(ping),
            incarnation=self._incarnations,
            **{name: getattr(ping, name) for name in TOLD},
        )

    def _join(self, ping: Ping, now: float, *, trusted: bool, peer: str) -> list[Change]:
        changes = self._make_room(trusted=trusted, peer=peer)
        if trusted and (namesake := self._lost_namesake(ping)) is not None:
            changes.append(self._forget(namesake))  # the same engine, at another address
        entry = _Entry(self._instance(ping, self._name(ping)), now, trusted, peer)
        if trusted:
            entry.sent_at, entry.up = ping.time, ping.up
        self._entries[ping.http_address] = entry
        self._by_zmq[ping.zmq_address] = ping.http_address
        self._settle(entry)
        return [*changes, Change(entry.instance, None)]

    def _restart(self, entry: _Entry, ping: Ping, now: float) -> Change:
        old = entry.instance
        # ZMQ may deliver a dead process's ping after its successor's first one; believing it would end the successor's streams.
        if not entry.lost and any(self._matches(gone, ping) for gone in entry.predecessors):
            raise PingRefusedError("stale", "this process was replaced by another one at the same address")
        self._unlink(old)
        self._by_zmq[ping.zmq_address] = ping.http_address
        name = old.name if old.role is ping.type.role else self._name(ping)
        new = _Entry(self._instance(ping, name), now, entry.trusted, entry.peer)
        new.predecessors = (*entry.predecessors, old)[-MAX_PREDECESSORS:]
        self._entries[ping.http_address] = new
        self._settle(new)
        return Change(new.instance, old.state, gone=old)

    def _make_room(self, *, trusted: bool, peer: str) -> list[Change]:
        """Forget an engine if there is no room for another one; engines that have served are forgotten last."""
        strangers = [entry for entry in self._entries.values() if not entry.trusted]
        mates = [entry for entry in strangers if entry.peer == peer]
        if not trusted and len(mates) >= CAPACITY_A_PEER:
            return [
                self._forget(
                    _first(mates, f"{CAPACITY_A_PEER} engines that send unsigned pings are known at this address")
                )
            ]
        if len(self._entries) < self._capacity:
            return []
        lost = [entry for entry in self._entries.values() if entry.lost]
        candidates = lost or (strangers if trusted else [])
        return [self._forget(_first(candidates, f"{self._capacity} engines are known already"))]

    def _forget(self, entry: _Entry) -> Change:
        instance = entry.instance
        del self._entries[instance.http_address]
        self._unlink(instance)
        self._view = None
        return Change(instance, State.LOST, gone=instance)

    def _unlink(self, instance: Instance) -> None:
        if self._by_zmq.get(instance.zmq_address) == instance.http_address:
            del self._by_zmq[instance.zmq_address]

    def _name(self, ping: Ping) -> str:
        """The name by the engine's number; if it has no number, or the name is in use, the next free name."""
        if name := self._numbered(ping):
            return name
        role = ping.type.role
        while self._named(name := f"{role.value}-{self._numbers[role]}"):
            self._numbers[role] += 1
        self._numbers[role] += 1
        return name

    def _lost_namesake(self, ping: Ping) -> _Entry | None:
        named = (entry for entry in self._entries.values() if entry.instance.name == _name_of(ping))
        return next((entry for entry in named if entry.lost), None)

    def _numbered(self, ping: Ping) -> str:
        name = _name_of(ping)
        return "" if self._named(name) else name

    def _named(self, name: str) -> bool:
        return any(entry.instance.name == name for entry in self._entries.values())

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


def _name_of(ping: Ping) -> str:
    return "" if ping.number is None else f"{ping.type.role.value}-{ping.number}"


def _first(entries: Sequence[_Entry], otherwise: str) -> _Entry:
    """The engine to forget first: of the lost ones, that with the oldest last ping, else the oldest one that never served."""
    lost = [entry for entry in entries if entry.lost]
    never = [entry for entry in entries if not entry.models]
    if not lost and not never:
        raise PingRefusedError("full", otherwise)
    return min(lost, key=lambda entry: entry.last_ping) if lost else never[0]


def _bases(models: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Names and paths of an engine's base models. They do not change while it lives, unlike adapters."""
    return {(str(model["id"]), str(model.get("root", ""))) for model in models if not model.get("parent")}
