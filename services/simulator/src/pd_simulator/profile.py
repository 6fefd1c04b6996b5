"""A profile: every number of the model of one GPU, one engine and one network, read from a TOML file.

All times are milliseconds unless a name says otherwise, all powers watts. Shipped profiles lie in `pd_contracts.profiles`; each says where its numbers
come from. `pd-plan calibrate` writes one from run folders.
"""

from math import isfinite
from typing import Annotated

import msgspec

from pd_contracts import profiles
from pd_contracts.libraries import plain
from pd_contracts.names import Connector, Role
from pd_contracts.profiles import ProfileError

Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Watts = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Prefill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Part of a step that has prompt tokens in it: `base + per_token · tokens + per_pair · pairs`.

    A pair is a prompt token and one that it looks back on: attention's part, which grows with the square of a prompt's length.
    """

    base_ms: Milliseconds
    per_token_ms: Milliseconds
    per_pair_ns: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Decode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Part of a step that decodes: `base + per_sequence · batch + per_context_token · tokens the batch looks back on`."""

    base_ms: Milliseconds
    per_sequence_ms: Milliseconds
    per_context_token_ms: Milliseconds = 0.0


class Mixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a step with both parts saves: weights are read and kernels launched once, and decodes fill up the prompt's matrices.

    The mixed step takes `prefill + decode − overlap`, where a prompt token costs `prefill_token_share` of its normal time.
    """

    overlap_ms: Milliseconds = 0.0
    prefill_token_share: Share = 1.0


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What it takes the processor to launch a step that has prompts, on an engine that also decodes.

    A step of at most `graph_tokens` tokens is one CUDA graph, and launching it costs nothing here. A larger one is launched kernel by kernel,
    which takes the same time however short its prompts are. If the board needs less for the step, the step waits for its launch.

    Attributes:
        ms: equally likely times, because a core that is shared is not always equally fast; empty if launching costs nothing.
        tail_ms: from the launch until the step ends, at least.
        period_s: for how long one of these times holds.
    """

    ms: list[Milliseconds] = []
    tail_ms: Milliseconds = 0.0
    period_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    graph_tokens: Annotated[int, msgspec.Meta(ge=0)] = 512


class Handoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What moving the KV of one request costs.

    Attributes:
        send_floor_ms: prefill's step takes at least this long a request that it sends; the transfer's hand-shakes run beside the compute.
        send_floor_per_step_ms: so much more a step that sends, however many requests. Only fits to runs of P2pNcclConnector find it;
            profiles without it have 0.
        send_floor_per_peer_ms: so much more a request for every further decode engine that the same step sends to.
        send_tail_ms: what a step that sends takes after the compute; send_tail_per_token_ms: and for every token that it sends.
        late_answers: launching a step waits for what the connector does in it, so the answers of a step come when the next one has ended,
            if there is one at once.
        wait_ms, wait_per_token_ms: from the moment that decode has the bytes, or may fetch them, until the request may join the batch;
            only this request waits.
        stall_ms, stall_per_token_ms: loading that happens inside decode's step, so that the whole batch waits;
            stall_free_tokens: as many tokens load beside the step.
        receive_ms, receive_per_token_ms: a decode engine takes one request's KV after another, whoever sends it. P2pNcclConnector: from the
            moment that prefill computes it, and prefill's step does not end before. NixlConnector: from the moment that decode asks for it.
        at_once_ms, at_once_per_token_ms: from prefill's end until the request may join decode's batch, if decode was asked when prefill was
            (DECODE_ASKED=at_once), instead of a second request and `wait_ms`.
        first_token_ms: from prefill's end until the client has prefill's token (FIRST_TOKEN=prefill).
    """

    send_floor_ms: Milliseconds = 0.0
    send_floor_per_step_ms: Milliseconds = 0.0
    send_floor_per_peer_ms: Milliseconds = 0.0
    send_tail_ms: Milliseconds = 0.0
    send_tail_per_token_ms: Milliseconds = 0.0
    late_answers: bool = False
    wait_ms: Milliseconds = 0.0
    wait_per_token_ms: Milliseconds = 0.0
    stall_ms: Milliseconds = 0.0
    stall_per_token_ms: Milliseconds = 0.0
    stall_free_tokens: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    receive_ms: Milliseconds = 0.0
    receive_per_token_ms: Milliseconds = 0.0
    at_once_ms: Milliseconds = 0.0
    at_once_per_token_ms: Milliseconds = 0.0
    first_token_ms: Milliseconds = 0.0


class Draw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the board of one role draws.

    Attributes:
        idle_w: with the engine's memory and context, doing nothing.
        prefill_w: more than that while it computes prompts.
        decode_w, per_sequence_w: more than that while it decodes, and for every sequence of the batch.
    """

    idle_w: Watts
    prefill_w: Watts = 0.0
    decode_w: Watts = 0.0
    per_sequence_w: Watts = 0.0


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The board's power: by role, and what its limit and clocks are."""

    prefill: Draw
    decode: Draw
    combined: Draw
    limit_w: Watts
    idle_clock_mhz: int
    clock_mhz: int
    memory_clock_mhz: int
    ambient_c: float = 26.0
    degrees_per_watt: float = 0.06

    def __post_init__(self) -> None:
        """The limit holds for every state."""
        if max(self.of(role).idle_w for role in Role) > self.limit_w:
            msg = "power: expected idle_w <= limit_w for every role"
            raise ValueError(msg)

    def of(self, role: Role) -> Draw:
        """The draw of an engine of this role."""
        return {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.COMBINED: self.combined}[role]


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The board's memory in bytes, and how much of it the simulated model takes.

    Attributes:
        operations_per_token: floating-point operations for a prompt token; 0 if unknown.
        window_tokens, window_share: as many tokens does a layer with a sliding window look back on, and such layers of all; 0 without them.
            Nothing is simulated by these two: such layers count as full attention, which a plan says.
    """

    total_bytes: Count
    weights_bytes: Count
    kv_bytes_per_token: Count
    kv_tokens: Count
    operations_per_token: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    window_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    window_share: Share = 0.0


class HeldOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The error of predictions of one deployment's runs by fits that did not see them: medians of the absolute relative errors.

    Attributes:
        prefills, others, connector, batched: the deployment; `prefills` 0 means plain engines.
        capacity: error of the highest rate within the limits, over all kinds of requests.
    """

    runs: Count
    prefills: int = 0
    others: int = 1
    connector: Connector | None = None
    batched: bool = False
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    tpot_p50: float | None = None
    tpot_p99: float | None = None
    joules_per_token: float | None = None
    capacity: float | None = None


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a profile's numbers come from.

    Attributes:
        kind: measured, or analytic (computed from the model's shape and the board's data sheet).
        model, engine: of the runs.
        runs, requests: how many the numbers were fitted to.
        prompt_tokens, output_tokens: the shortest and the longest of these requests.
        fitted: labels of their deployments.
        held_out: by deployment, the errors of predicting runs that the fit did not see.
    """

    kind: str = "measured"
    model: str = ""
    engine: str = ""
    runs: int = 0
    requests: int = 0
    prompt_tokens: tuple[int, int] | None = None
    output_tokens: tuple[int, int] | None = None
    fitted: list[str] = []
    held_out: dict[str, HeldOut] = {}


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How well the numbers are known.

    Attributes:
        names, covariance: dotted names of numbers, and the covariance of their logarithms.
        slow_prompt_ms: not used; profiles of pdstack 0.2 have it, and `launch` explains it.
    """

    names: list[str]
    covariance: list[list[float]]
    slow_prompt_ms: list[float] = []

    def __post_init__(self) -> None:
        """Square, and as large as there are names."""
        if {len(row) for row in self.covariance} | {len(self.covariance)} != {len(self.names)}:
            msg = "spread: expected one row and one column of covariance for each name"
            raise ValueError(msg)


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole profile.

    Attributes:
        description: where the numbers come from, in a sentence.
        board: the board's name, without the word "simulated".
        decode: of an engine that takes KV over; `combined`: of an engine that computes its prompts itself, if it differs.
        api_ms: from a request's arrival until the scheduler sees it (parsing, tokenising, crossing to the engine process).
        batched: P2pNcclConnector with one message per request, which pdstack once had and recordings still hold; in place of its entry in
            `handoff`; prefill's step does not wait for the listener.
        max_model_len: tokens of a prompt and its answer that the model takes at most; 0 if unknown.
        eos_one_in: one of this number of tokens ends the output; 0 for never.
        async_scheduling: a step is planned while the one before it runs.
    """

    description: str
    board: str
    prefill: Prefill
    decode: Decode
    power: Power
    memory: Memory
    combined: Decode | None = None
    mixed: Mixed = Mixed()
    launch: Launch = Launch()
    handoff: dict[Connector, Handoff] = {}
    batched: Handoff = Handoff()
    async_scheduling: bool = False
    api_ms: Milliseconds = 0.0
    max_model_len: Annotated[int, msgspec.Meta(ge=0)] = 0
    eos_one_in: Annotated[int, msgspec.Meta(ge=0)] = 0
    provenance: Provenance | None = None
    spread: Spread | None = None

    def decode_of(self, role: Role) -> Decode:
        """The decode numbers of an engine of this role."""
        return self.decode if self.combined is None or role is not Role.COMBINED else self.combined

    def launch_of(self, role: Role) -> Launch:
        """What launching steps costs an engine of this role: nothing, if it does not compute prompts beside decodes."""
        return self.launch if role is Role.COMBINED else Launch()

    def handoff_of(self, connector: Connector | None, *, batched: bool = False) -> Handoff:
        """The hand-over of this connector; of none, one that costs nothing."""
        if batched and connector is Connector.P2P_NCCL:
            return self.batched
        return self.handoff.get(connector, Handoff()) if connector else Handoff()


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    return profiles.shipped()


def _endless(value: object, place: str = "") -> str:
    """Where a document has a number that is infinite or none; empty if nowhere."""
    if isinstance(value, float):
        return "" if isfinite(value) else place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, one in items if (found := _endless(one, f"{place}.{key}".lstrip(".")))), "")


def load_profile(name: str) -> Profile:
    """Read a profile: see `profiles.document`.

    Raises:
        ProfileError: if there is none, or a value in it does not fit.
    """
    document = profiles.document(name)
    if place := _endless(document):
        raise ProfileError("profile {name}: {place} is no finite number", name=name, place=place)
    try:
        return msgspec.convert(document, Profile)
    except msgspec.ValidationError as error:
        raise ProfileError("profile {name}: {reason}", name=name, reason=plain(error)) from error
