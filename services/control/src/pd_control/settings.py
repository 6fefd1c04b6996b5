"""Settings of pdctl from the environment and `.env`: the same variables that compose and the services read."""

import ipaddress
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from pd_contracts.deployment import STATIC_ROUTING, manner_of
from pd_contracts.names import Connector
from pd_contracts.ports import Port, Ports

LOOPBACK = ("127.0.0.1", "localhost")


class ControlSettings(Ports, frozen=True, kw_only=True):
    """Addresses, GPUs and the model of a deployment on this machine."""

    http_proxy_port: Annotated[Port, Meta(description="port on which clients reach the proxy")] = 10001
    proxy_port: Annotated[Port, Meta(description="discovery port of the proxy (zmq)")] = 30001
    monitor_port: Annotated[Port, Meta(description="port of the GPU monitor")] = 9835
    prefill_gpu: Annotated[int, Meta(ge=0, description="GPU of the one prefill engine")] = 0
    decode_gpu: Annotated[int, Meta(ge=0, description="GPU of the one decode engine")] = 1
    prefill_gpus: Annotated[tuple[int, ...], Meta(description="GPUs of several prefill engines")] = ()
    decode_gpus: Annotated[tuple[int, ...], Meta(description="GPUs of several decode engines")] = ()
    combined_gpus: Annotated[
        tuple[int, ...], Meta(description="GPUs of combined engines; all of the above if unset")
    ] = ()
    tensor_parallel_size: Annotated[int, Meta(ge=1, description="GPUs per engine")] = 1
    model: Annotated[str, Meta(description="model to serve; a simulator serves any name")] = ""
    kv_connector: Annotated[Connector, Meta(description="how KV travels from prefill to decode")] = Connector.P2P
    kv_both: Annotated[
        bool, Meta(description="combined engines with P2pConnector both send and receive KV, as ROUTING decides")
    ] = False
    routing: Annotated[
        str, Meta(description="the proxy's ROUTING; a comparison names combined engines after it, unless it is static")
    ] = STATIC_ROUTING
    proxy_host: Annotated[
        str, Meta(description="host of the proxy that engines announce themselves to; this machine if empty")
    ] = "127.0.0.1"
    discovery_host: Annotated[
        str, Meta(description="numeric address on which the proxy receives pings; that of PROXY_HOST if empty")
    ] = ""
    vllm_host_ip: Annotated[
        str,
        Meta(description="numeric address that engines announce; detected if empty and PROXY_HOST is another machine"),
    ] = ""
    instance: Annotated[int, Meta(ge=0, description="which engine of its role `pdctl prefill` and the like start")] = 0
    bind_host: Annotated[str, Meta(description="address that processes listen on")] = "0.0.0.0"
    engine_python: Annotated[str, Meta(description="Python that has vLLM, for --engine vllm as processes")] = "python3"
    state_dir: Annotated[
        str, Meta(description="folder for the state file, process ids and logs; each deployment needs its own")
    ] = ".pdstack"

    @property
    def manner(self) -> str:
        """What sets combined engines apart from plain ones; empty if nothing does."""
        return manner_of(routing=self.routing, both_roles=self.kv_both)

    @property
    def proxy_url(self) -> str:
        """Where clients reach the proxy."""
        return f"http://{self.proxy_host}:{self.http_proxy_port}"

    @property
    def heard_on(self) -> str:
        """Where the proxy listens for engines: on the loopback only, unless PROXY_HOST allows engines on other hosts."""
        if self.discovery_host or self.proxy_host in LOOPBACK:
            return self.discovery_host or LOOPBACK[0]
        try:
            return str(ipaddress.IPv4Address(self.proxy_host))
        except ValueError:
            return "0.0.0.0"  # a name may resolve to another address on this host

    @property
    def announced_address(self) -> str:
        """The address that engines announce; empty if they detect it from their route to the proxy."""
        return self.vllm_host_ip or ("127.0.0.1" if self.proxy_host in LOOPBACK else "")


def find_root(start: Path) -> Path:
    """The repository around `start`, known by its compose file and its services; `start` itself if there is none."""
    for folder in (start, *start.parents):
        if (folder / "docker-compose.yml").exists() and (folder / "services").is_dir():
            return folder
    return start
