"""One node: kubelet and kube-proxy, and the removal of what they leave on the machine."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from support.cluster.names import DOMAIN
from support.cluster.network import DNS, INSIDE, NODE, PODS
from support.cluster.programs import CNI, KUBELET, CannotRunError, Programs
from support.control_plane import ControlPlane, process

NAME: Final = "node-1"
PAUSE: Final = "pdstack/pause:cluster-test"
LOGS: Final = (Path("/var/log/pods"), Path("/var/log/containers"))
DOCKERSHIM: Final = Path("/var/lib/dockershim")
CGROUPS: Final = "pdstack-node"
# The kubelet sets these for the whole machine.
KERNEL: Final = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
MEMORY: Final = Path("/run/pdstack-cluster.json")
POD_LABEL: Final = "io.kubernetes.pod.uid"


@contextlib.contextmanager
def node(plane: ControlPlane, programs: Programs) -> Iterator[None]:
    """Run them until the end of the block. Images are never collected: they may be other people's.

    Raises:
        CannotRunError: if the machine is a node already.
    """
    sweep(killed=True)
    if KUBELET.exists() and any(KUBELET.iterdir()):
        msg = f"{KUBELET} is not empty: this machine is, or was, a node of another cluster"
        raise CannotRunError(msg)
    _remember(plane.folder)
    _make_pause_image(programs)
    _make_cgroups()
    try:
        with _kubelet(plane, programs), _kube_proxy(plane, programs):
            yield
    finally:
        sweep()


def sweep(*, killed: bool = False) -> None:
    """Put the machine back as it was; nothing, if no run left anything. After one that was `killed`, its control plane's folder goes too."""
    if not MEMORY.exists():
        return
    before = json.loads(MEMORY.read_text())
    _remove_containers()
    _unmount(KUBELET)
    for folder in [*before["folders"], *([before["plane"]] if killed else [])]:
        shutil.rmtree(folder, ignore_errors=True)
    _remove_cgroups()
    for name, value in before["kernel"].items():
        Path("/proc/sys", name).write_text(value)
    _docker("rmi", "--force", PAUSE)
    MEMORY.unlink()


def _remember(plane: Path) -> None:
    """Keep what must be put back in a file, which outlives this process."""
    kernel = {name: Path("/proc/sys", name).read_text() for name in KERNEL}
    folders = [str(folder) for folder in (*LOGS, DOCKERSHIM, KUBELET) if not folder.exists()]
    MEMORY.write_text(json.dumps({"kernel": kernel, "folders": folders, "plane": str(plane)}))


@contextlib.contextmanager
def _kubelet(plane: ControlPlane, programs: Programs) -> Iterator[None]:
    config = plane.folder / "kubelet.json"
    (plane.folder / "resolv.conf").write_text("")
    config.write_text(json.dumps(_configuration(plane.folder)))
    command = [*INSIDE, programs["kubelet"], "--config", config, "--kubeconfig", plane.kubeconfig]
    command += ["--hostname-override", NAME, "--node-ip", NODE, "--cert-dir", plane.folder / "kubelet"]
    # Not below its own: root may lack the right to (see build.sh).
    command += ["--oom-score-adj", "0"]
    command += ["--container-runtime", "docker", "--pod-infra-container-image", PAUSE]
    command += ["--network-plugin", "cni", "--cni-bin-dir", CNI, "--cni-conf-dir", plane.folder / "cni"]
    command += ["--cni-cache-dir", plane.folder / "cni-cache"]
    with process(command, plane.folder / "kubelet.log"):
        yield


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        # As Docker's, whatever made it so.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUPS}",
        "enforceNodeAllocatable": ["pods"],
        "clusterDNS": [DNS],
        "clusterDomain": DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "hairpinMode": "none",
        "failSwapOn": False,
        # Neither images nor pods are removed because a disk is full: both may be other people's doing.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
        # What a test waits for: a container's restart after its first failures, and news of the node.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
    }


@contextlib.contextmanager
def _kube_proxy(plane: ControlPlane, programs: Programs) -> Iterator[None]:
    command = [*INSIDE, programs["kube-proxy"], "--kubeconfig", plane.kubeconfig, "--hostname-override", NAME]
    command += [
        "--oom-score-adj",
        "0",
        "--proxy-mode",
        "iptables",
        "--cluster-cidr",
        PODS,
        "--iptables-min-sync-period",
        "0s",
    ]
    # The table of connections is the whole machine's: its size stays.
    command += ["--conntrack-max-per-core", "0", "--conntrack-min", "0"]
    command += ["--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"]
    with process(command, plane.folder / "kube-proxy.log"):
        yield


def _make_pause_image(programs: Programs) -> None:
    """The container that holds a pod's namespaces."""
    packed = subprocess.run(
        ["tar", "--create", "--directory", str(programs.folder), "pause"], capture_output=True, check=True, timeout=60
    )
    command = ["docker", "import", "--change", 'ENTRYPOINT ["/pause"]', "-", PAUSE]
    subprocess.run(command, input=packed.stdout, capture_output=True, check=True, timeout=60)


def _docker(*arguments: str) -> list[str]:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    return result.stdout.split()


def _remove_containers() -> None:
    """All that this kubelet made; it was the only one here."""
    for _ in range(3):
        containers = _docker("ps", "--all", "--quiet", "--filter", f"label={POD_LABEL}")
        if not containers:
            return
        _docker("rm", "--force", "--volumes", *containers)


def _unmount(root: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if Path(mount).is_relative_to(root)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True, timeout=60)


def _make_cgroups() -> None:
    """The kubelet makes those of pods in one that must be there."""
    for controller in Path("/sys/fs/cgroup").iterdir():
        if controller.is_symlink() or not (controller / "cgroup.procs").exists():
            continue
        folder = controller / CGROUPS
        folder.mkdir(exist_ok=True)
        if controller.name == "cpu":  # all pods together would weigh as much as one process outside
            (folder / "cpu.shares").write_text("8192")
        for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one, which then takes no process
            if (controller / name).exists() and controller.name == "cpuset":
                (folder / name).write_text((controller / name).read_text())


def _remove_cgroups() -> None:
    for controller in Path("/sys/fs/cgroup").iterdir():
        for folder in sorted(controller.glob(f"{CGROUPS}/**/"), key=lambda path: len(path.parts), reverse=True):
            _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    for _ in range(20):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)  # its last process is still on its way out
        else:
            return
