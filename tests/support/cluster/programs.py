"""Where the programs of a node are, and whether this machine can run one at all."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Not configurable in the kubelet of 1.20, whose device manager has the path compiled in.
KUBELET: Final = Path("/var/lib/kubelet")
CNI: Final = Path("/usr/lib/cni")
CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices")

PROGRAMS: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "pause",
    "device-plugin",
)
COMMANDS: Final = ("dnsmasq", "socat", "conntrack", "iptables", "ip", "nsenter", "openssl", "docker")


class CannotRunError(Exception):
    """This machine cannot run a node; the message gives the reason."""


@dataclass(frozen=True)
class Programs:
    """The folder that build.sh fills."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def programs() -> Programs:
    """What build.sh built.

    Raises:
        CannotRunError: if something that a node needs is missing here.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdstack/kubernetes-1.20"
    folder = Path(os.environ.get("PDSTACK_KUBERNETES") or cache) / "bin"
    missing = [program for program in PROGRAMS if not os.access(folder / program, os.X_OK)]
    missing += [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        msg = f"no {', '.join(missing)} (looked in {folder}): `sh tests/cluster/build.sh` builds and installs them"
        raise CannotRunError(msg)
    _machine()
    return Programs(folder)


def _machine() -> None:
    if os.geteuid() != 0:
        msg = "a kubelet needs root"
        raise CannotRunError(msg)
    lacking = [name for name in CONTROLLERS if not Path("/sys/fs/cgroup", name).is_dir()]
    if lacking:
        msg = f"the kubelet of 1.20 needs control groups of version 1, and {', '.join(lacking)} is not mounted"
        raise CannotRunError(msg)
    driver = subprocess.run(
        ["docker", "info", "--format", "{{.CgroupDriver}}"], capture_output=True, text=True, check=False, timeout=60
    )
    if driver.returncode != 0:
        msg = "no Docker engine answers"
        raise CannotRunError(msg)
    if driver.stdout.strip() != "cgroupfs":
        msg = f"Docker's control groups are made by {driver.stdout.strip()}; this node is set up for cgroupfs"
        raise CannotRunError(msg)
