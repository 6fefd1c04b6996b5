"""All settings of the proxy, with defaults and units; read once at start."""

import ipaddress
import re
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from pd_contracts.names import Connector
from pd_contracts.ports import Port
from pd_contracts.profiles import shipped
from pd_contracts.settings import fields, shown
from pd_proxy.engines.policy import Policy
from pd_proxy.protocol.generation import IMAGE_MAX_TOKENS, MAX_BODY_ITEMS, MAX_PROMPTS, Limits
from pd_routing.costs import MARGIN, Costs, read_costs
from pd_routing.names import Reject, Routing
from pd_routing.view import Objectives

# Credentials, ids, and headers that describe the message's encoding.
OWN_HEADERS: Final = frozenset(
    {"authorization", "x-api-key", "cookie", "x-request-id", "host", "connection", "content-type", "content-length",
     "content-encoding", "transfer-encoding", "accept-encoding", "expect", "upgrade", "x-data-parallel-rank"}
)  # fmt: skip
_HOST: Final = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])"
_PORT: Final = r"(?::[1-9][0-9]{0,4})?"
# As browsers send them, because any other form would never match; pages from a file have the origin `null`.
_ORIGIN: Final = re.compile(
    rf"\*|null|http://{_HOST}(?!:80$){_PORT}|https://{_HOST}(?!:443$){_PORT}|(?!https?:)[a-z][a-z0-9+.-]*://[^/?#\s@*]+"
)

# What decides how requests are served, and so belongs to the records of a measurement.
_SERVING: Final = frozenset(
    {"policy", "routing", "reject", "ttft_slo_ms", "tpot_slo_ms", "step_profile", "step_margin", "max_num_batched_tokens",
     "proxy_replicas", "proxy_workers", "disagg_min_tokens", "max_in_flight", "first_token", "decode_asked", "migrate",
     "kv_in_flight_bytes", "kv_bytes_per_token"}
)  # fmt: skip

Seconds = Annotated[float, Meta(gt=0)]


class Writer(StrEnum):
    """The role that writes the first token of an answer."""

    PREFILL = "prefill"
    DECODE = "decode"


class When(StrEnum):
    """When decode gets a request."""

    AT_ONCE = "at_once"
    AFTER_PREFILL = "after_prefill"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of `pd-proxy`; field `x_y` is variable X_Y and option --x-y."""

    http_proxy_port: Annotated[Port, Meta(description="port that clients connect to")] = 10001
    proxy_port: Annotated[Port, Meta(description="ZMQ port that engines announce themselves to")] = 30001
    bind_host: Annotated[str, Meta(description="numeric address on which clients are served")] = "0.0.0.0"
    discovery_host: Annotated[
        str, Meta(description="numeric address on which the proxy receives pings; 0.0.0.0 for engines on other hosts")
    ] = "127.0.0.1"
    deployment: Annotated[
        str, Meta(max_length=200, description="identity of the deployment; engines of another are not admitted")
    ] = ""
    ping_key: Annotated[
        str, Meta(description="key that engines sign their pings with; unsigned pings are accepted if empty")
    ] = ""
    ping_key_file: Annotated[str, Meta(description="file that holds PING_KEY")] = ""
    unsigned_pings: Annotated[
        bool,
        Meta(
            description="accept vLLM's own, unsigned pings if they come from the address that they announce; off: never"
        ),
    ] = True
    proxy_workers: Annotated[
        int, Meta(ge=1, le=64, description="processes that serve clients, on one port; 1: no other process is started")
    ] = 1
    model: Annotated[str, Meta(description="admit only engines that serve this model; empty: any")] = ""
    kv_connector: Annotated[
        Connector,
        Meta(
            description="connector of engines whose pings name none, which are stock ones; so P2pConnector means P2pNcclConnector here"
        ),
    ] = Connector.P2P
    log_level: Annotated[str, Meta(description="DEBUG, INFO, WARNING or ERROR")] = "INFO"

    discovery: Annotated[
        Literal["ping", "kubernetes"],
        Meta(description="how engines are found: by their pings, or by EndpointSlices and pods of Kubernetes' API"),
    ] = "ping"
    discovery_selector: Annotated[
        str,
        Meta(
            description="labels of the EndpointSlices and pods, a=b,c=d; in addition to the chart's labels of engines"
        ),
    ] = ""
    discovery_namespace: Annotated[
        str, Meta(description="namespace of the EndpointSlices and pods; the pod's own if empty")
    ] = ""
    kubernetes_service_host: Annotated[
        str, Meta(description="address of the API server; Kubernetes sets it in every pod")
    ] = "kubernetes.default"
    kubernetes_service_port: Annotated[
        Port, Meta(description="HTTPS port of the API server; Kubernetes sets it in every pod")
    ] = 443
    service_account_dir: Annotated[
        str, Meta(description="folder with token, ca.crt and namespace of the pod's service account")
    ] = "/var/run/secrets/kubernetes.io/serviceaccount"

    ping_ttl_s: Annotated[Seconds, Meta(description="time without a ping after which an engine is lost, s")] = 10.0
    health_interval_s: Annotated[Seconds, Meta(description="time between two health checks of an engine, s")] = 1.0
    health_timeout_s: Annotated[Seconds, Meta(description="time an engine has to answer a health check, s")] = 5.0
    models_interval_s: Annotated[
        Seconds, Meta(description="time after which an engine is asked again which models it serves, s")
    ] = 10.0
    health_failures: Annotated[
        int, Meta(ge=1, description="failed health checks in a row that take a ready engine out")
    ] = 3

    engine_api_key: Annotated[
        str, Meta(description="API key that engines require (their ENGINE_API_KEY); clients never see it")
    ] = ""
    engine_tls: Annotated[
        Literal["off", "on", "any_name"],
        Meta(
            description="whether engines speak HTTPS; any_name: their certificates may be for another name or address"
        ),
    ] = "off"
    engine_ca_file: Annotated[
        str,
        Meta(description="certificate authorities of the engines, or a self-signed certificate; the system's if empty"),
    ] = ""
    connect_timeout_s: Annotated[Seconds, Meta(description="time to connect to an engine, s")] = 5.0
    prefill_timeout_s: Annotated[
        Seconds, Meta(description="time a client waits for prefill, its queue included, before it gets 504, s")
    ] = 300.0
    decode_stall_timeout_s: Annotated[
        Seconds, Meta(description="time without progress on any of its streams after which an engine is suspect, s")
    ] = 60.0
    standstill_s: Annotated[
        float,
        Meta(
            ge=0,
            description="an engine whose requests have all got nothing for this long gets new ones only if there is no other, s; 0: off",
        ),
    ] = 10.0
    give_up_s: Annotated[
        Seconds,
        Meta(
            description="time after which a request is given up if its engine sends nothing of the answer (not streamed: has not finished it), s"
        ),
    ] = 1800.0
    probe_interval_s: Annotated[Seconds, Meta(description="time between probes of a suspect engine, s")] = 5.0
    retries: Annotated[
        int, Meta(ge=0, description="attempts with other engines after one that failed before the first byte")
    ] = 2
    retry_budget_s: Annotated[
        float, Meta(ge=0, description="no attempt begins later than this after the request arrived, s")
    ] = 60.0
    policy: Annotated[
        Policy, Meta(description="how engines are chosen; prefix_affinity: same prompt beginnings to the same prefill")
    ] = Policy.ROUND_ROBIN
    routing: Annotated[
        Routing,
        Meta(
            description="static: POLICY chooses among engines with fixed roles; adaptive: engines that can do both get roles by load, to meet TTFT_SLO_MS and TPOT_SLO_MS; local_first: such an engine does the whole request unless that would be too slow"
        ),
    ] = Routing.STATIC
    reject: Annotated[
        Reject,
        Meta(
            description="slo: a request gets 429 with Retry-After if its predicted TTFT or TPOT breaks TTFT_SLO_MS or TPOT_SLO_MS"
        ),
    ] = Reject.OFF
    ttft_slo_ms: Annotated[float, Meta(ge=0, description="objective for the time to first token, ms; 0: none")] = 0.0
    tpot_slo_ms: Annotated[float, Meta(ge=0, description="objective for the time per output token, ms; 0: none")] = 0.0
    step_profile: Annotated[
        str,
        Meta(
            description="step times of these engines, for predictions: the path of a profile that `pd-plan calibrate` wrote, or the name of a shipped one"
        ),
    ] = ""
    step_margin: Annotated[Seconds, Meta(description="factor on the step times of the profile, for predictions")] = (
        MARGIN
    )
    max_num_batched_tokens: Annotated[
        int, Meta(ge=1, description="maximum number of tokens in one step of an engine, for predictions")
    ] = 8192
    proxy_replicas: Annotated[
        int,
        Meta(
            ge=1,
            description="number of proxies that share these engines, for predictions: the others are assumed to send as much",
        ),
    ] = 1
    disagg_min_tokens: Annotated[
        int, Meta(ge=0, description="prompts estimated to be shorter go to a combined engine if one is ready, tokens")
    ] = 0
    max_in_flight: Annotated[
        int, Meta(ge=0, description="requests served or queued at once; more get 429; 0: no limit")
    ] = 0
    max_connections_per_client: Annotated[
        int,
        Meta(
            ge=0,
            description="connections per client address; more get 429; 0: nine tenths of the available file descriptors",
        ),
    ] = 0
    first_token: Annotated[
        Writer,
        Meta(
            description="who sends the first token with P2pConnector; prefill: before decode has begun, where the answer stays the same"
        ),
    ] = Writer.PREFILL
    decode_asked: Annotated[
        When,
        Meta(description="when decode gets a request with P2pConnector; other connectors: always after prefill"),
    ] = When.AT_ONCE
    migrate: Annotated[
        bool,
        Meta(
            description="streams of an engine that dies continue on another if they are greedy, or seeded where draws depend on the position; on: engines also send token ids, at a small cost per chunk"
        ),
    ] = False
    kv_in_flight_bytes: Annotated[
        int, Meta(ge=0, description="KV on its way to one decode engine, bytes; more waits; 0: no limit")
    ] = 0
    kv_bytes_per_token: Annotated[
        int, Meta(ge=1, description="KV of one prompt token, bytes (131072: Llama 3 8B in 16 bits)")
    ] = 131072
    queue_timeout_s: Annotated[
        Seconds,
        Meta(
            description="time a request waits for room for its KV, or a stream whose engine died for another engine, before the client gets an error, s"
        ),
    ] = 30.0
    client_stall_timeout_s: Annotated[
        Seconds, Meta(description="time without reading after which a client's stream is ended, s")
    ] = 120.0
    max_answer_bytes: Annotated[
        int,
        Meta(ge=1, description="largest non-streamed answer, bytes; the client gets 502 for a larger one"),
    ] = 256 * 1024 * 1024
    upload_idle_timeout_s: Annotated[
        Seconds, Meta(description="time without a byte of the request body after which the client gets 408, s")
    ] = 60.0
    abort_grace_s: Annotated[
        float,
        Meta(ge=0, description="a decode request is not aborted before its first byte or before this age, s"),
    ] = 2.0

    canary: Annotated[
        bool, Meta(description="a pair gets requests only after it answered a fixed prompt correctly; off: at once")
    ] = True
    api_keys_file: Annotated[
        str,
        Meta(
            description="file of keys, one per line; clients of /v1 must send one as a bearer token; empty: they need none"
        ),
    ] = ""
    ping_networks: Annotated[
        tuple[str, ...], Meta(description="networks (10.0.0.0/8,…) in which engines may announce addresses; empty: any")
    ] = ()
    admin_key: Annotated[str, Meta(description="key for /admin, sent as a bearer token; empty: /admin is closed")] = ""

    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="origins (https://chat.example) whose pages may call the proxy from a browser; *: any; empty: none"
        ),
    ] = ()
    passed_headers: Annotated[
        tuple[str, ...],
        Meta(description="request headers that are passed on to engines; never keys and ids"),
    ] = ("traceparent", "tracestate", "x-session-id", "x-vllm-priority")
    max_body_bytes: Annotated[int, Meta(ge=1, description="largest request body, bytes")] = 32 * 1024 * 1024
    max_upload_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="memory for requests of all clients that are still arriving, bytes, in each worker; above it, the one that has held the most for the longest gets 503; 0: no limit",
        ),
    ] = 256 * 1024 * 1024
    max_prompts: Annotated[int, Meta(ge=1, description="prompts per request; more get 400")] = MAX_PROMPTS
    max_body_items: Annotated[
        int,
        Meta(ge=1, description="strings, lists, objects and names per request body; more get 400"),
    ] = MAX_BODY_ITEMS
    image_max_tokens: Annotated[
        int, Meta(ge=1, description="maximum number of tokens that the model makes of one image, for estimates")
    ] = IMAGE_MAX_TOKENS
    keep_alive_s: Annotated[Seconds, Meta(description="time after which an idle client connection is closed, s")] = 65.0
    drain_timeout_s: Annotated[
        float, Meta(ge=0, description="time that running requests have to end after SIGTERM, s")
    ] = 30.0

    def __post_init__(self) -> None:
        """Refuse invalid networks and origins, headers that only the proxy may set, and predictions without the settings that they need."""
        self.networks()
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                msg = f"CORS_ORIGINS: {origin!r} is not an origin as browsers send it, such as https://chat.example or http://localhost:3000: in lower case, without a path, a * or the scheme's own port"
                raise ValueError(msg)
        if own := OWN_HEADERS.intersection(self.passed_headers):
            msg = f"PASSED_HEADERS: {min(own)} is set by the proxy itself and cannot be passed on"
            raise ValueError(msg)
        if any(name != name.lower() or not name for name in self.passed_headers):
            msg = f"PASSED_HEADERS={','.join(self.passed_headers)}: names are written in lower case"
            raise ValueError(msg)
        if 0 < self.max_upload_bytes < self.max_body_bytes:
            msg = f"MAX_UPLOAD_BYTES={self.max_upload_bytes} is less than MAX_BODY_BYTES={self.max_body_bytes}: the largest request could never arrive"
            raise ValueError(msg)
        self._check_predictions()

    @property
    def predicts(self) -> bool:
        """Whether REJECT or ROUTING needs predictions."""
        return self.routing is not Routing.STATIC or self.reject is not Reject.OFF

    def _check_predictions(self) -> None:
        if not self.predicts:
            return
        asking = "REJECT=slo" if self.routing is Routing.STATIC else f"ROUTING={self.routing}"
        if self.routing is not Routing.STATIC and not (self.ttft_slo_ms and self.tpot_slo_ms):
            msg = f"{asking} needs TTFT_SLO_MS and TPOT_SLO_MS, the limits to meet"
            raise ValueError(msg)
        if not self.ttft_slo_ms and not self.tpot_slo_ms:
            msg = f"{asking} needs TTFT_SLO_MS or TPOT_SLO_MS, the limit to meet"
            raise ValueError(msg)
        if not self.step_profile:
            msg = f"{asking} needs STEP_PROFILE: the step times of your GPUs (`pd-plan calibrate`), or a shipped profile: {', '.join(shipped())}"
            raise ValueError(msg)
        if self.proxy_workers > 1:
            msg = f"{asking} needs PROXY_WORKERS=1, because predictions need all requests in one process"
            raise ValueError(msg)
        self.costs()

    def serving(self) -> dict[str, str]:
        """The settings that decide how requests are served, by variable, where they are not the defaults. Paths are cut to file names."""
        found = {field: getattr(self, field.name) for field in fields(Settings) if field.name in _SERVING}
        told = {field.variable: shown(value) for field, value in found.items() if value != field.default}
        return {**told, **({"STEP_PROFILE": Path(self.step_profile).name} if self.step_profile else {})}

    def objectives(self) -> Objectives:
        """TTFT_SLO_MS and TPOT_SLO_MS; infinite if not set."""
        return Objectives(self.ttft_slo_ms or inf, self.tpot_slo_ms or inf)

    def costs(self) -> Costs:
        """The costs of engine steps, from STEP_PROFILE and STEP_MARGIN.

        Raises:
            CostsError: if STEP_PROFILE cannot be used.
        """
        return read_costs(
            self.step_profile, self.kv_connector, margin=self.step_margin, budget=self.max_num_batched_tokens
        )

    def limits(self) -> Limits:
        """The limits of a request body."""
        return Limits(self.max_prompts, self.max_body_items, self.image_max_tokens)

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks of PING_NETWORKS.

        Raises:
            ValueError: naming the variable.
        """
        try:
            return tuple(ipaddress.ip_network(network) for network in self.ping_networks)
        except ValueError as error:
            msg = f"PING_NETWORKS: {error}"
            raise ValueError(msg) from error
