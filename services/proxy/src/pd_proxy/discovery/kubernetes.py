"""Discovery without pings (DISCOVERY=kubernetes): reads from Kubernetes' API what engines would announce.

It is for networks in which engines cannot reach the proxy's ZMQ port. As long as an engine's endpoint exists, the registry gets
its announcement as often as it would get pings, so everything behind the registry is the same.
"""

import asyncio
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pd_contracts.ping import PING_INTERVAL_S
from pd_proxy.access import check_networks
from pd_proxy.discovery.belief import Announcement, GoesOn
from pd_proxy.discovery.kube_api import Api, Reflector
from pd_proxy.discovery.pings import Discovery, Refusals, Reject, Take, believer_of
from pd_proxy.discovery.slices import Pod, Slice, announcements
from pd_proxy.engines.registry import PingRefusedError
from pd_proxy.settings import Settings

# The label that the chart gives engines' pods, in addition to the release's labels.
ENGINE_PODS: Final = "pdstack/engine=true"
ENGINE_SLICES: Final = "pdstack/engine-kind"
SLICES_API: Final = "/apis/discovery.k8s.io/v1"
PODS_API: Final = "/api/v1"

T = TypeVar("T", Slice, Pod)


class Source(Protocol):
    """A source of announcements."""

    def bind(self) -> None:
        """Open sockets or files.

        Raises:
            OSError: if that fails.
        """

    async def run(self) -> None: ...

    def close(self) -> None:
        """Close what `bind` opened."""


def source_of(settings: Settings, take: Take, reject: Reject, goes_on: GoesOn) -> Source:
    """The source that DISCOVERY chooses; `goes_on` as in `Believer`.

    Raises:
        OSError: if the file of the pings' key cannot be read.
    """
    if settings.discovery == "kubernetes":
        return KubernetesDiscovery(settings, take, reject)
    endpoint = f"tcp://{settings.discovery_host}:{settings.proxy_port}"
    return Discovery(endpoint, believer_of(settings, goes_on), take, reject)


class KubernetesDiscovery:
    """Announces every engine that has an endpoint in Kubernetes."""

    def __init__(self, settings: Settings, take: Take, reject: Reject, interval_s: float = PING_INTERVAL_S) -> None:
        host = settings.kubernetes_service_host
        shown = f"[{host}]" if ":" in host else host
        self._api = Api(f"https://{shown}:{settings.kubernetes_service_port}", Path(settings.service_account_dir))
        self._selector = settings.discovery_selector
        self._namespace = settings.discovery_namespace
        self._networks = settings.networks()
        self._take = take
        self._refused = Refusals(reject)
        self._interval_s = interval_s
        self._news = asyncio.Event()

    def bind(self) -> None:
        """Read the service account's files.

        Raises:
            OSError: if the process does not run in a pod with a service account's token.
        """
        own = self._api.check()
        self._namespace = self._namespace or own

    async def run(self) -> None:
        """Announce all engines every 3 s, and at once when they change."""
        slices = self._reflector(SLICES_API, "endpointslices", ENGINE_SLICES, Slice)
        pods = self._reflector(PODS_API, "pods", ENGINE_PODS, Pod)
        async with asyncio.TaskGroup() as group:
            group.create_task(slices.run())
            group.create_task(pods.run())
            while True:
                if slices.synced and pods.synced:
                    self._announce(slices, pods)
                await self._pause()

    def close(self) -> None:
        """Do nothing: `run` closes its connections when it is cancelled."""

    def _announce(self, slices: Reflector[Slice], pods: Reflector[Pod]) -> None:
        for ping in announcements(slices.objects.values(), pods.objects):
            try:
                check_networks(ping, self._networks)
                self._take(Announcement(ping=ping, trusted=True))
            except PingRefusedError as refusal:
                self._refused(ping.zmq_address.encode(), refusal)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                await self._news.wait()
        except TimeoutError:
            pass  # nothing changed
        self._news.clear()

    def _reflector(self, group: str, kind: str, label: str, type_: type[T]) -> Reflector[T]:
        path = f"{group}/namespaces/{self._namespace}/{kind}"
        selector = ",".join(part for part in (self._selector, label) if part)
        return Reflector(self._api, path, selector, type_, self._news.set)
