"""The cluster's DNS: dnsmasq, with the names of services and of the pods behind headless ones."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.cluster.network import DNS, INSIDE
from support.control_plane import ControlPlane, Refused, process

DOMAIN = "cluster.local"
_PERIOD_S = 0.5


@contextlib.contextmanager
def names(plane: ControlPlane) -> Iterator[None]:
    """Serve names until the end of the block; they follow the API server by a second at most."""
    hosts = plane.folder / "hosts"
    hosts.mkdir()
    command = [*INSIDE, "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="]
    command += [f"--listen-address={DNS}", "--bind-interfaces", f"--local=/{DOMAIN}/", f"--hostsdir={hosts}"]
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(plane, hosts / "services", ended), daemon=True)
    with process([*command, "--local-ttl=0"], plane.folder / "dns.log"):
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _follow(plane: ControlPlane, file: Path, ended: threading.Event) -> None:
    before: list[str] = []
    while not ended.wait(_PERIOD_S):
        try:
            services = plane.ask("GET", "/api/v1/services")["items"]
            endpoints = plane.ask("GET", "/api/v1/endpoints")["items"]
        except (OSError, Refused):
            continue  # it is being stopped, or busy: the names of before stand
        lines = sorted(lines_of(services, endpoints))
        if lines != before:
            # dnsmasq forgets what a file of its folder had only if the file is removed first.
            file.unlink(missing_ok=True)
            file.write_text("\n".join(lines) + "\n")
            before = lines


def lines_of(services: list[dict[str, Any]], endpoints: list[dict[str, Any]]) -> Iterator[str]:
    """`/etc/hosts` for these services: their own address, or those of their pods if they have none."""
    pods = {_key(item): list(_addresses(item)) for item in endpoints}
    for service in services:
        namespace, name = _key(service)
        full = f"{name}.{namespace}.svc.{DOMAIN}"
        if service["spec"].get("clusterIP") not in {None, "", "None"}:
            yield f"{service['spec']['clusterIP']} {full}"
            continue
        for address in pods.get((namespace, name), []):
            yield f"{address['ip']} {full}"
            if address.get("hostname"):
                yield f"{address['ip']} {address['hostname']}.{full}"


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _addresses(endpoints: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that are not ready are here only if the service publishes them, and then as ready ones."""
    for subset in endpoints.get("subsets") or []:
        yield from subset.get("addresses") or []
