"""The node's own network namespace: Kubernetes' changes to interfaces and packet filters end with it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAMESPACE: Final = "pdstack-node"
HOST: Final = "10.254.0.1"
NODE: Final = "10.254.0.2"
PODS: Final = "10.254.1.0/24"
SERVICES: Final = "10.254.2.0/24"
DNS: Final = NODE
EVERYTHING: Final = "10.254.0.0/16"
# Before a command: runs it in the namespace. Not `ip netns exec`, which gives it other mounts than Docker's.
INSIDE: Final = ("nsenter", f"--net=/run/netns/{NAMESPACE}", "--")
_LINK: Final = "pdstack0"


def run(*command: str) -> None:
    """Run a command.

    Raises:
        RuntimeError: with what it said, if it fails.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode != 0:
        msg = f"{' '.join(command)}: {result.stderr.strip()}"
        raise RuntimeError(msg)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[None]:
    """Make the namespace, a cable from here to it and the pods' network configuration; they end with the block."""
    _remove()
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "link", "add", _LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        run("ip", "address", "add", f"{HOST}/30", "dev", _LINK)
        run("ip", "link", "set", _LINK, "up")
        run("ip", "route", "add", EVERYTHING, "via", NODE)
        run(*INSIDE, "ip", "address", "add", f"{NODE}/30", "dev", "eth0")
        run(*INSIDE, "ip", "link", "set", "eth0", "up")
        run(*INSIDE, "ip", "link", "set", "lo", "up")
        run(*INSIDE, "ip", "route", "add", "default", "via", HOST)
        # A pod's address that nobody has any more is said to be so, instead of sent around.
        run(*INSIDE, "ip", "route", "add", "unreachable", PODS)
        # Refusals of a service without endpoints are limited to one a second, so that many clients would wait instead.
        for setting, value in (("ip_forward", 1), ("icmp_ratelimit", 0)):
            run(*INSIDE, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{setting}")
        # kube-proxy changes the table of refusals before that of addresses. A connection that is opened in between keeps the
        # service's address for as long as the kernel remembers it, and is lost; if it is dropped here, its retransmission arrives.
        run(*INSIDE, "iptables", "-A", "FORWARD", "-d", SERVICES, "-j", "DROP")
        _configure_pods(folder)
        yield
    finally:
        _remove()


def _remove() -> None:
    """The cable's other end goes with the namespace."""
    for command in (("ip", "netns", "delete", NAMESPACE), ("ip", "link", "delete", _LINK)):
        with contextlib.suppress(RuntimeError):  # it may not be there
            run(*command)


def _configure_pods(folder: Path) -> None:
    """Every pod has a cable of its own to the node: whatever goes from pod to pod is routed, so filters see it."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "addresses"),
    }
    plugins = [{"type": "ptp", "ipam": addresses}]
    (folder / "cni").mkdir()
    (folder / "cni/10-pdstack.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "pdstack", "plugins": plugins})
    )
