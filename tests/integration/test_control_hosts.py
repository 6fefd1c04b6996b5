"""Proxy, prefill and decode on three hosts: `pdctl proxy`, `pdctl prefill` and `pdctl decode`, each told where the proxy is.

The hosts are network namespaces without a loopback, so whatever still spoke to 127.0.0.1 would fail here.
"""

import signal
import subprocess
from pathlib import Path

import pytest
from support.control import environment
from support.hosts import Host, hosts
from support.waiting import until

from pd_contracts.names import Connector

PREFILL_KV_PORT, DECODE_KV_PORT = 21001, 22001


def variables(folder: Path, proxy: Host, **more: str) -> dict[str, str]:
    """What a user sets on each host; the namespaces have every port for themselves."""
    kept = {"PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV"}
    own = {key: value for key, value in environment(folder).items() if key in kept}
    return {**own, "STATE_DIR": str(folder), "PROXY_HOST": proxy.address, "SIM_PROFILE": "demo", **more}


@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL])
def test_three_hosts_make_one_deployment(connector: Connector, tmp_path: Path) -> None:
    with hosts(3) as (proxy, prefill, decode):
        roles = {"proxy": proxy, "prefill": prefill, "decode": decode}
        envs = {name: variables(tmp_path / name, proxy, KV_CONNECTOR=connector.value) for name in roles}
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name, host in roles.items():
                words = [name] if name == "proxy" else [name, "--engine", "sim"]
                log = tmp_path / f"{name}.log"
                started.append(host.start(*words, env=envs[name], cwd=tmp_path, log=log))
            # A user of the decode host, which knows where the proxy is.
            until(lambda: decode.pdctl("smoke", env=envs["decode"], cwd=tmp_path).returncode == 0, 60)
            takes, peer, port = (
                (decode, prefill, DECODE_KV_PORT)
                if connector is Connector.P2P_NCCL
                else (prefill, decode, PREFILL_KV_PORT)
            )
            # P2pNccl's prefill sends KV to decode; with NIXL decode fetches it from prefill.
            assert takes.peers(port) == {peer.address}
            status = prefill.pdctl("status", env=envs["prefill"], cwd=tmp_path)
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            ended = [process.wait(20) for process in started]

    assert status.returncode == 0, status.stdout
    assert "ready" in next(line for line in status.stdout.splitlines() if line.startswith("prefill-0"))
    assert ended == [0, 0, 0], [(tmp_path / f"{name}.log").read_text() for name in roles]


def test_an_engine_that_would_announce_a_loopback_to_another_host_does_not_start(tmp_path: Path) -> None:
    with hosts(2) as (proxy, decode):
        env = variables(tmp_path / "state", proxy, VLLM_HOST_IP="127.0.0.1")
        done = decode.pdctl("decode", "--engine", "sim", env=env, cwd=tmp_path)

    assert done.returncode == 1
    assert f"127.0.0.1 would be announced to the proxy at {proxy.address}" in " ".join(done.stdout.split())
