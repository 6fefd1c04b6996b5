"""The answer of the proxy's `GET /stats`, read by pdctl and the load generator. It has names, never addresses."""

import ssl
from collections.abc import Mapping

import msgspec

from pd_contracts.http_call import CallError, call
from pd_contracts.names import Connector, Role


class InstanceStats(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as the proxy sees it.

    Attributes:
        name: role and number, "prefill-0": the number that the engine announced, else one in order of joining.
        state: "joining" (pings, not yet healthy), "ready", "draining" (gets no new requests), "suspect" (its streams have stalled) or "lost" (stopped pinging).
        reason: a sentence, where the state needs one.
        in_flight: requests at the engine now.
        requests: requests sent to it since it joined.
        failures: those of them that failed.
        kv_bytes: KV on its way there, in bytes as estimated from the prompts.
        last_ping_s: seconds since its last ping.
    """

    name: str
    role: Role
    state: str
    connector: Connector | None = None
    model: str = ""
    engine: str = ""
    version: str = ""
    boot_id: str = ""
    reason: str = ""
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    kv_bytes: int = 0
    last_ping_s: float = 0.0


class PairStats(msgspec.Struct, frozen=True, kw_only=True):
    """Two ready engines that could serve together.

    Attributes:
        canary: "passed", "wrong" (gets no requests; `reason` says what it answered), "unknown" (not asked yet) or "off".
        transport: how P2pConnector moved the canary's KV ("vmm", "nccl" or "tcp"); empty for other connectors, and if the engine does not say.
    """

    prefill: str
    decode: str
    canary: str
    reason: str = ""
    transport: str = ""


class EngineLoadStats(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's estimate of one engine's work, from the requests that it sent there.

    Attributes:
        sequences: answers that it writes, or will.
        context_tokens: tokens behind them, prompts included.
        queue_ms: time until the prompts that were sent there are computed.
        tpot_ms: what one more answer would take a token there; None if that is without bound.
        room_tokens: tokens of its KV cache that its answers leave free when they are complete; None if it did not tell the size.
    """

    name: str
    sequences: int = 0
    context_tokens: int = 0
    queue_ms: float = 0.0
    tpot_ms: float | None = None
    room_tokens: int | None = None


class RoutingStats(msgspec.Struct, frozen=True, kw_only=True):
    """What ROUTING and REJECT decide from.

    Attributes:
        rejected: requests that got 429 because they would have broken an objective.
        mode: with ROUTING=adaptive, "plain" (everything stays where it comes to) or "split" (prompts and answers are kept apart).
        plain_tpot_ms: the TPOT that nine in ten answers would keep were nothing handed over; "split" begins when it comes near the objective.
        ttft_slo_ms, tpot_slo_ms: the objectives; None if there is none.
        correction: what the TPOT objective is multiplied by, after answers that missed it.
        pace: what the profile's costs are multiplied by; below 1 if prompts take less time than it says.
        requests_per_s, answer_tokens: the traffic: arrivals, and the mean length of answers.
    """

    routing: str
    reject: str
    rejected: int = 0
    mode: str = ""
    plain_tpot_ms: float | None = None
    ttft_slo_ms: float | None = None
    tpot_slo_ms: float | None = None
    correction: float = 1.0
    pace: float = 1.0
    requests_per_s: float = 0.0
    answer_tokens: float = 0.0
    engines: list[EngineLoadStats] = []


class ProxyStats(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's view of the deployment.

    Attributes:
        ready: what `GET /ready` answers.
        workers: processes that serve requests.
        handed_off: requests whose first token prefill wrote.
        migrations: streams that went on at other engines when theirs failed.
        worker_restarts: how many of them ended and were replaced.
        api_keys: what is wrong with API_KEYS_FILE, and what follows; empty if nothing is.
        routing: what ROUTING and REJECT decide from; None if neither predicts anything.
    """

    ready: bool
    instances: list[InstanceStats]
    pairs: list[PairStats] = []
    version: str = ""
    policy: str = "round_robin"
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    rejected_pings: int = 0
    drained: int = 0
    retries: int = 0
    handed_off: int = 0
    migrations: int = 0
    workers: int = 1
    worker_restarts: int = 0
    uptime_s: float = 0.0
    api_keys: str = ""
    routing: RoutingStats | None = None


def ask(
    url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = 5.0, context: ssl.SSLContext | None = None
) -> ProxyStats | None:
    """The statistics of the proxy at `url`; None if it does not answer, or if another server does."""
    try:
        reply = call(f"{url}/stats", headers=headers or {}, timeout_s=timeout_s, context=context)
        return msgspec.json.decode(reply.body, type=ProxyStats) if reply.status == 200 else None
    except (CallError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
