"""Hosts for a test: network namespaces on one bridge, each with one real address and its loopback switched off."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

NETWORK = "10.98.7"


class Host:
    """A namespace that stands for a host."""

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace = namespace
        self.address = f"{NETWORK}.{number}"

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def pdctl(
        self, *words: str, env: Mapping[str, str], cwd: Path, timeout: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run pdctl here to its end."""
        command = self.command(sys.executable, "-m", "pd_control", *words)
        return subprocess.run(
            command,
            env=env,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str, env: Mapping[str, str], cwd: Path, log: Path) -> "subprocess.Popen[bytes]":
        """Run pdctl here in the foreground."""
        with log.open("wb") as file:
            command = self.command(sys.executable, "-m", "pd_control", *words)
            return subprocess.Popen(command, env=env, cwd=cwd, stdout=file, stderr=subprocess.STDOUT)

    def peers(self, port: int) -> set[str]:
        """Addresses of those who are, or just were, connected with `port` of this host."""
        table = subprocess.run(self.command("cat", "/proc/net/tcp"), capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in table.splitlines()[1:]]
        pairs = [(row[1].split(":"), row[2].split(":")) for row in rows]
        return {_dotted(remote[0]) for local, remote in pairs if int(local[1], 16) == port and remote[1] != "0000"}


def _dotted(word: str) -> str:
    # The kernel writes an IPv4 address as one number, its first byte last.
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(word)))


@contextmanager
def hosts(count: int) -> Iterator[Sequence[Host]]:
    """`count` hosts that reach each other and nothing else; skips where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    mark = uuid.uuid4().hex[:6]
    switch = f"pd{mark}s"
    with ExitStack() as stack:
        _namespace(stack, switch, skip=True)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        made = [Host(f"pd{mark}{number}", number) for number in range(1, count + 1)]
        for host in made:
            _namespace(stack, host.namespace)
            _plug(host, switch)
        yield made


def _namespace(stack: ExitStack, name: str, *, skip: bool = False) -> None:
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode != 0 and skip:
        pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    stack.callback(_ip, "netns", "del", name)


def _plug(host: Host, switch: str) -> None:
    name, port = host.namespace, f"p{host.namespace[2:]}"
    _ip("link", "add", name, "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "bridge0")
    _ip("-n", switch, "link", "set", port, "up")
    _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", name)
    _ip("-n", name, "link", "set", name, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
