"""Turns EndpointSlices and pods into the pings that the engines would send. Pure.

A slice's ports have names: `prefill-0` is the HTTP port of a prefill engine, `kv-prefill-0` the port on which it exchanges KV.
The engine runs in the container `prefill-0`. The rest is in labels of the service, which Kubernetes copies to its slices.

A container that restarts keeps its pod, address and UID, yet is another process; only the pod's status counts its restarts.
An engine with P2pNcclConnector uses other KV ports after each start, because its peers never reconnect to the old ones:
`pdstack/kv-step` says by how many ports it moves on, within the 100 that belong to an engine.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, ping_type
from pd_contracts.ports import KV_PORT_STEP

CONNECTOR_LABEL: Final = "pdstack/connector"
ENGINE_LABEL: Final = "pdstack/engine-kind"
STEP_LABEL: Final = "pdstack/kv-step"
_HTTP_PORT: Final = re.compile(rf"({'|'.join(Role)})(-\d+)?")

Number = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Metadata of any object."""

    name: str
    uid: str = ""
    labels: dict[str, str] | None = None
    resource_version: str = ""


class Target(msgspec.Struct, frozen=True):
    """The pod behind an endpoint."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    """One address of a service."""

    addresses: list[str]
    target_ref: Target | None = None


class EndpointPort(msgspec.Struct, frozen=True):
    """A port that all endpoints of a slice have."""

    name: str | None = None
    port: Number | None = None


class Slice(msgspec.Struct, frozen=True):
    """`discovery.k8s.io/v1` EndpointSlice."""

    metadata: Metadata
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A container's number of restarts."""

    name: str
    restart_count: int = 0


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A pod's status, as the kubelet reports it."""

    container_statuses: list[ContainerStatus] | None = None


class Pod(msgspec.Struct, frozen=True):
    """`v1` Pod."""

    metadata: Metadata
    status: PodStatus = PodStatus()


def announcements(slices: Iterable[Slice], pods: Mapping[str, Pod]) -> list[Ping]:
    """The ping that each engine would send; `pods` by name. An engine whose process is not known yet is left out."""
    found = {ping.http_address: ping for piece in slices for ping in _of_slice(piece, pods)}
    return list(found.values())


def _of_slice(piece: Slice, pods: Mapping[str, Pod]) -> Iterator[Ping]:
    ports = {port.name: port.port for port in piece.ports or [] if port.name and port.port}
    for name in ports:
        if _HTTP_PORT.fullmatch(name):
            for endpoint in piece.endpoints or []:
                yield from _of_engine(name, ports, endpoint, piece.metadata.labels or {}, pods)


def _of_engine(
    name: str, ports: Mapping[str, int], endpoint: Endpoint, labels: Mapping[str, str], pods: Mapping[str, Pod]
) -> Iterator[Ping]:
    """At most one ping; `name` is the name of the HTTP port."""
    role = Role(name.partition("-")[0])
    target = endpoint.target_ref
    starts = _starts(pods.get(target.name), target.uid, name) if target is not None else None
    own_port = ports.get(f"kv-{name}")
    moves_kv = role is not Role.COMBINED or own_port is not None
    kv_port = own_port if moves_kv else ports[name]
    if target is None or starts is None or kv_port is None:
        return
    known: dict[str, Any] = {"engine": labels.get(ENGINE_LABEL, ""), "boot_id": f"{target.uid}.{starts}"}
    if moves_kv:
        kv_port += _shift(starts, labels.get(STEP_LABEL, ""))
        known["connector"] = _connector(labels.get(CONNECTOR_LABEL, ""))
    try:
        yield Ping(
            type=ping_type(role, moves_kv=moves_kv),
            http_address=f"{endpoint.addresses[0]}:{ports[name]}",
            zmq_address=f"{endpoint.addresses[0]}:{kv_port}",
            **known,
        )
    except (ValueError, IndexError):
        return  # no address, or one that engines cannot use (IPv6: they tell each other host:port)


def _starts(pod: Pod | None, uid: str, container: str) -> int | None:
    """How often the engine's container was restarted; None while the known status belongs to another pod of this name."""
    if pod is None or pod.metadata.uid != uid:
        return None
    counts = {status.name: status.restart_count for status in pod.status.container_statuses or []}
    return counts.get(container)


def _shift(starts: int, step: str) -> int:
    """By how many ports the KV port moves on; counted as in the container's command (`pdstack.engineCommand` in the chart)."""
    if not step.isdecimal() or not 0 < int(step) <= KV_PORT_STEP:
        return 0
    return starts % (KV_PORT_STEP // int(step)) * int(step)


def _connector(label: str) -> Connector | None:
    return Connector(label) if label in set(Connector) else None
