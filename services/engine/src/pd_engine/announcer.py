"""Pings for an engine that does not ping by itself; ends when the engine, its parent process, is gone.

It pings from the start, as vLLM's own connector does: a ping says "I exist", the proxy asks /health whether it is ready.
"""

import os
import sys
import time
from collections.abc import Mapping

import msgspec
import zmq

from pd_contracts.deployment import read_key
from pd_contracts.names import Connector
from pd_contracts.ping import PING_INTERVAL_S, Ping, ping_type, sign_ping
from pd_contracts.proxies import Dealers, Proxies
from pd_engine.plan import announced_address, pings_itself
from pd_engine.settings import EngineSettings, Host

PARENT_CHECK_S = 0.5
START_CHECK_S = 0.05


def ping_of(settings: EngineSettings, host: Host, boot_id: str, alike: Mapping[str, str]) -> Ping:
    """This engine's ping; `alike` as in `Ping`."""
    address = announced_address(settings, host)
    return Ping(
        type=ping_type(settings.pd_role, moves_kv=settings.moves_kv),
        http_address=f"{address}:{settings.http_port}",
        zmq_address=f"{address}:{settings.kv_port}",
        connector=settings.kv_connector if settings.moves_kv else None,
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
        alike=dict(alike),
    )


def _transport(settings: EngineSettings) -> str:
    if not settings.moves_kv:
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
    """The ZMQ identity of the announcer; two connections with the same identity would disconnect each other again and again."""
    address = f"{announced_address(settings, host)}:{settings.kv_port}"
    return f"{address}/announcer" if pings_itself(settings) else address


def announce(ping: Ping, key: str, proxies: Proxies, identity: str, parent: int) -> None:
    """Send `ping`, signed with `key` if there is one, to all proxies every 3 s while `parent` is our parent."""
    proxies.start()
    with zmq.Context() as context:
        dealers = Dealers(context, identity)
        due = time.monotonic()
        while os.getppid() == parent:
            known = proxies.known()
            if known and time.monotonic() >= due:
                due = time.monotonic() + PING_INTERVAL_S
                dealers.send(sign_ping(ping, key, time.time(), time.monotonic()), known)
            time.sleep(PARENT_CHECK_S if known else START_CHECK_S)
        dealers.close()


def main() -> None:
    """Run as `python3 -m pd_engine.announcer PARENT HOSTS PORT PING [IDENTITY]` (the ping as JSON); the key comes from the environment."""
    parent, hosts, port, text, *rest = sys.argv[1:]
    ping = msgspec.json.decode(text, type=Ping)
    key = read_key(os.environ.get("PING_KEY", ""), os.environ.get("PING_KEY_FILE", ""))
    announce(ping, key, Proxies(hosts, int(port)), rest[0] if rest else ping.zmq_address, int(parent))


if __name__ == "__main__":
    main()
