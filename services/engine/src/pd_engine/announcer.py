"""Pings for an engine that does not ping by itself; ends when the engine, its parent process, is gone.

It pings from the start, as vLLM's own connector does: a ping says "I exist", the proxy asks /health whether it is ready.
"""

import contextlib
import os
import sys
import time

import msgspec
import zmq

from pd_contracts.deployment import read_key
from pd_contracts.names import Connector, Role
from pd_contracts.ping import PING_INTERVAL_S, Ping, PingType, sign_ping
from pd_engine.plan import announced_address, pings_itself
from pd_engine.settings import EngineSettings, Host

PARENT_CHECK_S = 0.5


def ping_of(settings: EngineSettings, host: Host, boot_id: str) -> Ping:
    """What this engine says of itself."""
    address = announced_address(settings, host)
    return Ping(
        type=PingType[settings.pd_role.name],
        http_address=f"{address}:{settings.http_port}",
        zmq_address=f"{address}:{settings.kv_port}",
        connector=None if settings.pd_role is Role.COMBINED else settings.kv_connector,
        boot_id=boot_id,
        model=settings.name,
        engine="vllm",
        version=host.versions.get("vllm") or ".".join(map(str, host.vllm_version)),
        versions={name: version for name, version in host.versions.items() if name != "vllm"},
        gpus=settings.engine_gpus or host.gpus.uuids,
        gpu_model=settings.engine_gpu_model or host.gpus.model,
        transport=_transport(settings),
        image=settings.engine_image,
        number=settings.instance,
        deployment=settings.deployment,
    )


def _transport(settings: EngineSettings) -> str:
    if settings.pd_role is Role.COMBINED:
        return ""
    chosen = settings.ucx_tls or ("tcp" if settings.engine_device == "cpu" else "")
    ways = {
        Connector.P2P: "tcp" if settings.engine_device == "cpu" else ",".join(settings.kv_transports),
        Connector.P2P_NCCL: "nccl",
        Connector.EXAMPLE: "files",
        Connector.NIXL: f"ucx:{chosen}" if chosen else "ucx",
    }
    return ways.get(settings.kv_connector, "")


def identity_of(settings: EngineSettings, host: Host) -> str:
    """The ZMQ identity of the announcer; two connections with one identity would put each other out again and again."""
    address = f"{announced_address(settings, host)}:{settings.kv_port}"
    return f"{address}/announcer" if pings_itself(settings) else address


def announce(ping: Ping, key: str, endpoint: str, identity: str, parent: int) -> None:
    """Send `ping`, signed with `key` if there is one, to the ROUTER at `endpoint` every 3 s while `parent` is our parent."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.setsockopt(zmq.LINGER, 0)
        # One waiting ping is enough: a proxy that was away must not get a burst of old ones.
        dealer.setsockopt(zmq.SNDHWM, 1)
        dealer.connect(endpoint)
        due = time.monotonic()
        while os.getppid() == parent:
            if time.monotonic() >= due:
                due += PING_INTERVAL_S
                with contextlib.suppress(zmq.Again):  # the proxy is away and one ping waits already
                    dealer.send(sign_ping(ping, key, time.time()), zmq.NOBLOCK)
            time.sleep(PARENT_CHECK_S)


def main() -> None:
    """Run as `python3 -m pd_engine.announcer PARENT ENDPOINT PING [IDENTITY]` (the ping as JSON); the key comes from the environment."""
    parent, endpoint, text, *rest = sys.argv[1:]
    ping = msgspec.json.decode(text, type=Ping)
    key = read_key(os.environ.get("PING_KEY", ""), os.environ.get("PING_KEY_FILE", ""))
    announce(ping, key, endpoint, rest[0] if rest else ping.zmq_address, int(parent))


if __name__ == "__main__":
    main()
