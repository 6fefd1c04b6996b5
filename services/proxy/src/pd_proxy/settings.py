"""Every knob of the proxy with its default and unit; read once at start."""

from typing import Annotated

import msgspec
from msgspec import Meta

from pd_contracts.names import Connector
from pd_contracts.ports import Port

Seconds = Annotated[float, Meta(gt=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of `pd-proxy`; field `x_y` is variable X_Y and option --x-y."""

    http_proxy_port: Annotated[Port, Meta(description="port that clients talk to")] = 10001
    proxy_port: Annotated[Port, Meta(description="ZMQ port that engines announce themselves to")] = 30001
    bind_host: Annotated[str, Meta(description="numeric address that both ports listen on")] = "0.0.0.0"
    model: Annotated[str, Meta(description="admit only engines that serve this model; empty: any")] = ""
    kv_connector: Annotated[
        Connector, Meta(description="connector of engines whose ping names none, as vLLM's own pings do")
    ] = Connector.P2P_NCCL
    log_level: Annotated[str, Meta(description="DEBUG, INFO, WARNING or ERROR")] = "INFO"

    ping_ttl_s: Annotated[Seconds, Meta(description="an engine without a ping for so long is lost, s")] = 10.0
    health_interval_s: Annotated[Seconds, Meta(description="time between two health checks of an engine, s")] = 1.0
    health_timeout_s: Annotated[Seconds, Meta(description="time an engine has to answer a health check, s")] = 5.0
    health_failures: Annotated[
        int, Meta(ge=1, description="failed health checks in a row that take a ready engine out")
    ] = 3

    connect_timeout_s: Annotated[Seconds, Meta(description="time to connect to an engine, s")] = 5.0
    prefill_timeout_s: Annotated[
        Seconds, Meta(description="time a client waits for prefill, its queue included, before it gets 504, s")
    ] = 300.0
    decode_stall_timeout_s: Annotated[
        Seconds, Meta(description="an engine none of whose streams moved for so long is suspect, s")
    ] = 60.0
    probe_interval_s: Annotated[Seconds, Meta(description="time between probes of a suspect engine, s")] = 5.0
    abort_grace_s: Annotated[
        float,
        Meta(ge=0, description="a decode request is not aborted before its first byte or before this age, s"),
    ] = 2.0

    max_body_bytes: Annotated[int, Meta(ge=1, description="largest request body, bytes")] = 32 * 1024 * 1024
    keep_alive_s: Annotated[Seconds, Meta(description="an idle client connection is closed after this, s")] = 65.0
    drain_timeout_s: Annotated[
        float, Meta(ge=0, description="time that running requests have to end after SIGTERM, s")
    ] = 30.0
