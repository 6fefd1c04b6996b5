"""Pings for an engine that does not ping by itself; ends when the engine, its parent process, is gone.

It pings from the start, as vLLM's own connector does: a ping says "I exist", the proxy asks /health whether it is ready.
"""

import contextlib
import os
import sys
import time

import msgspec
import zmq

from pd_contracts.names import Role
from pd_contracts.ping import PING_INTERVAL_S, Ping, PingType, encode_ping
from pd_engine.plan import announced_address
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
        version=".".join(map(str, host.vllm_version)),
    )


def announce(ping: Ping, endpoint: str, parent: int) -> None:
    """Send `ping` to the ROUTER at `endpoint` every 3 s for as long as process `parent` is our parent."""
    payload = encode_ping(ping)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IDENTITY, ping.zmq_address.encode())
        dealer.setsockopt(zmq.LINGER, 0)
        # One waiting ping is enough: a proxy that was away must not get a burst of old ones.
        dealer.setsockopt(zmq.SNDHWM, 1)
        dealer.connect(endpoint)
        due = time.monotonic()
        while os.getppid() == parent:
            if time.monotonic() >= due:
                due += PING_INTERVAL_S
                with contextlib.suppress(zmq.Again):  # the proxy is away and one ping waits already
                    dealer.send(payload, zmq.NOBLOCK)
            time.sleep(PARENT_CHECK_S)


def main() -> None:
    """Run as `python3 -m pd_engine.announcer PARENT ENDPOINT PING` (the ping as JSON)."""
    parent, endpoint, text = sys.argv[1:]
    announce(msgspec.json.decode(text, type=Ping), endpoint, int(parent))


if __name__ == "__main__":
    main()
