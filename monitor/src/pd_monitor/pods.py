"""Which pod uses which GPU, from the kubelet's pod-resources API (`v1.PodResourcesLister/List`, stable since Kubernetes 1.28).

Mount the *folder* /var/lib/kubelet/pod-resources: the kubelet makes a new socket when it restarts. Device ids are NVML's UUIDs
with NVIDIA's device plugin, with a replica's number behind `::` where a GPU is shared in time.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from pd_contracts.names import Role
from pd_monitor.protobuf import parts
from pd_monitor.reading import Reading

# Numbers of the fields in api.proto.
_POD_RESOURCES: Final = 1
_POD_NAME, _POD_NAMESPACE, _POD_CONTAINERS = 1, 2, 3
_CONTAINER_NAME, _CONTAINER_DEVICES = 1, 2
_DEVICE_IDS: Final = 2


@dataclass(frozen=True, slots=True)
class Pod:
    """A container that was given a GPU."""

    namespace: str
    name: str
    container: str


def pods_by_device(response: bytes) -> dict[str, Pod]:
    """Device id to the pod that has it, from a `ListPodResourcesResponse`.

    Raises:
        ProtobufError, UnicodeDecodeError: if it is not such a message.
    """
    found = {}
    for number, resources in parts(response):
        if number == _POD_RESOURCES:
            found.update(_of_pod(resources))
    return found


def _of_pod(resources: bytes) -> dict[str, Pod]:
    fields = list(parts(resources))
    name, namespace = _text(fields, _POD_NAME), _text(fields, _POD_NAMESPACE)
    found = {}
    for number, container in fields:
        if number == _POD_CONTAINERS:
            inside = list(parts(container))
            pod = Pod(namespace, name, _text(inside, _CONTAINER_NAME))
            found.update(dict.fromkeys(_devices(inside), pod))
    return found


def _devices(container: Iterable[tuple[int, bytes]]) -> list[str]:
    return [
        value.decode().partition("::")[0]
        for number, devices in container
        if number == _CONTAINER_DEVICES
        for inner, value in parts(devices)
        if inner == _DEVICE_IDS
    ]


def _text(fields: Iterable[tuple[int, bytes]], wanted: int) -> str:
    return next((value.decode() for number, value in fields if number == wanted), "")


def role_of(pod: Pod, patterns: Sequence[tuple[Role, str]]) -> Role | None:
    """The role of the first pattern that the pod's name fits, or name/container: one pod may hold engines of several roles."""
    names = (pod.name, f"{pod.name}/{pod.container}")
    return next((role for role, pattern in patterns if any(fnmatch.fnmatchcase(name, pattern) for name in names)), None)


def parse_patterns(texts: Iterable[str]) -> list[tuple[Role, str]]:
    """`prefill=*-prefill-*` to a role and a pattern.

    Raises:
        ValueError: naming the invalid one.
    """
    patterns = []
    for text in texts:
        role, equals, pattern = text.partition("=")
        if not equals or not pattern or role not in set(Role):
            msg = f"POD_ROLE_PATTERNS: {text!r} is not a pattern; expected something like prefill=*-prefill-*"
            raise ValueError(msg)
        patterns.append((Role(role), pattern))
    return patterns


def with_pods(reading: Reading, pods: Mapping[str, Pod], patterns: Sequence[tuple[Role, str]]) -> Reading:
    """Give each GPU its pod as `instance`, and the role that the pod's name says, where the GPU has none of its own."""
    if not pods:
        return reading
    gpus = []
    roles: dict[int, Role] = {}
    for info in reading.gpus:
        pod = pods.get(info.uuid)
        role = info.role or (role_of(pod, patterns) if pod else None)
        if role is not None:
            roles[info.index] = role
        instance = f"{pod.namespace}/{pod.name}/{pod.container}" if pod else info.instance
        gpus.append(msgspec.structs.replace(info, instance=instance, role=role))
    samples = tuple(
        msgspec.structs.replace(sample, role=sample.role or roles.get(sample.index)) for sample in reading.samples
    )
    return Reading(tuple(gpus), samples, reading.problem, reading.details, reading.failed)
