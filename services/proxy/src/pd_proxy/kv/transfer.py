"""How KV gets from prefill to decode, connector by connector: ids, headers and bodies. Pure.

P2pConnector (ours) names a prompt's KV by a key in the body. If a request ends early, it leaves nothing behind at either engine.

P2pNcclConnector reads both engines' KV addresses out of the request id (vLLM 0.23.0, `p2p_nccl_connector.py`): the producer
searches `___decode_addr_(.*):(\\d+)`, the consumer `___prefill_addr_(.*):(\\d+)___`. Both patterns are greedy and
unanchored, so the id must hold nothing that a client chose, and no colon with digits may follow decode's address.
Tensors are keyed by the id: it is the same on both sides, and never used twice.

NixlConnector returns from prefill the parameters with which decode fetches the KV; they go to decode verbatim.
ExampleConnector keys KV by the tokens themselves in a shared folder, so both engines just get the same prompt.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw, Struct

from pd_contracts.names import REQUEST_ID_HEADER, Connector
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import BrokenReplyError
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.ids import unique
from pd_proxy.protocol.body import SAMPLING, Fields, encode, encoded, inner
from pd_proxy.protocol.endpoints import PROMPT, Endpoint
from pd_proxy.protocol.generation import conversations, count

# Long enough for at least one block of KV (16 tokens) to be handed over.
SHORT_PROMPT: Final = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
# As many token ids, which every vocabulary has.
SHORT_TOKENS: Final = list(range(100, 117))

KV_PARAMS: Final = "kv_transfer_params"
# With Python 3.11, finding an endpoint in a set or a table takes a third of the time that naming a member of the enumeration takes.
# Endpoints at which vLLM reads the request's id from the body.
IDS_IN_BODIES: Final = frozenset({Endpoint.RESPONSES})
# The field that limits the output, or holds the limit.
LIMITS: Final = {
    **dict.fromkeys(Endpoint, "max_tokens"),
    Endpoint.RESPONSES: "max_output_tokens",
    Endpoint.GENERATE: SAMPLING,
}
# Fields that are refused or useless with a limit of one token.
OF_MANY_TOKENS: Final = ("min_tokens", "stream_options")
_ONE: Final = Raw(b"1")
_FALSE: Final = Raw(b"false")
NIXL_PREFILL_PARAMS: Final = Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)


class Leg(Struct, frozen=True):
    """One request to one engine."""

    headers: Mapping[str, str]
    body: bytes


class HandOver(Struct, frozen=True):
    """The hand-over that prefill's answer makes possible.

    Attributes:
        fields: the body of decode's request; its final form depends on the endpoint.
        pushed: whether prefill has pushed KV that must be consumed.
        stand_in: returns the body of a short request that can replace KV left at decode under this id; see `debts`.
    """

    endpoint: Endpoint
    engine_id: str
    headers: Mapping[str, str]
    fields: Fields
    pushed: bool
    stand_in: Callable[[], Fields] | None = None

    def decode(self) -> Leg:
        return leg(self.endpoint, self.engine_id, self.fields, self.headers)

    def drain(self) -> Leg:
        """Decode's request for one token: makes decode consume KV that no client needs any more."""
        return leg(self.endpoint, self.engine_id, one_token(self.endpoint, self.fields), self.headers)


class Plan(Struct, frozen=True):
    """One attempt with one pair.

    Attributes:
        endpoint: the path at both engines.
        uuid: the part of the id that the client sees.
        engine_id: the id that both engines get.
        prefill: the request for prefill.
        receive: makes the hand-over from the body of prefill's 200; raises BrokenReplyError if it is invalid.
        stand_in: as in `HandOver`.
        abortable: prefill may be aborted, because the connector cleans up by itself.
    """

    endpoint: Endpoint
    uuid: str
    engine_id: str
    prefill: Leg
    receive: Callable[[bytes], HandOver]
    stand_in: Callable[[], Fields] | None = None
    abortable: bool = False

    @property
    def secret(self) -> bytes:
        """The part of the engine's id that holds addresses; it is removed from answers, which leaves the public id."""
        return self.engine_id.removesuffix(self.uuid).encode()


def p2p_request_id(prefill_zmq: str, decode_zmq: str, uuid: str) -> str:
    """The id in which P2pNcclConnector finds both addresses; `uuid` comes from `fresh_id`."""
    return f"___prefill_addr_{prefill_zmq}___decode_addr_{decode_zmq}_{uuid}"


def fresh_id(endpoint: Endpoint) -> str:
    """32 hexadecimal digits. For a response, with the prefix that vLLM would choose, because that id is also the answer's."""
    return f"resp_{unique()}" if endpoint in IDS_IN_BODIES else unique()


def plan(pair: Pair, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> Plan:
    """Plan one attempt, with a fresh id; `headers` are those of the client's headers that are forwarded to engines."""
    return _PLANNERS.get(pair.decode.connector, _p2p)(pair, endpoint, fields, headers)


def plan_late(prefill: Instance, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> Plan:
    """Plan one attempt whose decode is not chosen yet; only P2pConnector's prefill keeps KV until decode asks for it."""
    return _keyed(prefill, None, endpoint, fields, headers)


def plain(endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> tuple[str, Leg]:
    """A fresh id, and the one request that a combined engine gets."""
    uuid = fresh_id(endpoint)
    return uuid, leg(endpoint, uuid, fields, headers)


def one_token(endpoint: Endpoint, fields: Fields) -> dict[str, Raw]:
    """The same request for a single token without streaming: what prefill and a drain get.

    `n` and the prompts stay, because each sequence hands over KV of its own. For a chat, max_completion_tokens takes precedence. If it
    stayed above 1, prefill would go on decoding, which crashes P2pNcclConnector.
    """
    short = {**fields, "stream": _FALSE}
    for name in OF_MANY_TOKENS:
        short.pop(name, None)
    limit = LIMITS[endpoint]
    if limit == SAMPLING:
        sampling = {name: value for name, value in _sampling(fields).items() if name != "min_tokens"}
        short[SAMPLING] = encoded({**sampling, "max_tokens": 1})
        return short
    short[limit] = _ONE
    if "max_completion_tokens" in short:
        short["max_completion_tokens"] = _ONE
    if "thinking" in short and endpoint is Endpoint.MESSAGES and _budgeted(short["thinking"]):
        # vLLM compares this budget with `max_tokens`. It limits the output only, so the prompt does not change.
        del short["thinking"]
    return short


class _Thinking(Struct):
    type: str = ""


def _budgeted(thinking: Raw) -> bool:
    try:
        return msgspec.json.decode(thinking, type=_Thinking).type == "enabled"
    except (msgspec.MsgspecError, RecursionError):
        return False  # the engine reports what is wrong with it


def stand_in(endpoint: Endpoint, fields: Fields) -> dict[str, Raw]:
    """A body that makes as many sequences under the same ids, each with a short prompt and for one token."""
    kept = {name: fields[name] for name in ("model", "n", "store") if name in fields}
    if endpoint is Endpoint.GENERATE:
        kept[SAMPLING] = encoded({name: value for name, value in _sampling(fields).items() if name == "n"})
    return one_token(endpoint, kept) | {PROMPT[endpoint]: encoded(_short_prompt(endpoint, fields))}


def _sampling(fields: Fields) -> dict[str, Raw]:
    return inner(fields, SAMPLING) or {}


def _short_prompt(endpoint: Endpoint, fields: Fields) -> object:
    message = {"role": "user", "content": SHORT_PROMPT}
    match endpoint:
        case Endpoint.CHAT | Endpoint.MESSAGES:
            return [message]
        case Endpoint.BATCH:
            return [[message]] * conversations(fields)
        case Endpoint.GENERATE:
            return SHORT_TOKENS
        case Endpoint.COMPLETIONS if "prompt" in fields and (prompts := count(fields["prompt"])) > 1:
            return [SHORT_PROMPT] * prompts
    return SHORT_PROMPT


def again(debt: Debt) -> Plan:
    """The exchange that repays a debt, under the id of the one that failed."""
    return _pushed(Endpoint(debt.path), debt.engine_id, "", debt.fields, {})


def leg(endpoint: Endpoint, engine_id: str, fields: Fields, headers: Mapping[str, str]) -> Leg:
    """One request with the id that its engine must use. vLLM reads the id of a response from the body, and all others from a header."""
    if endpoint in IDS_IN_BODIES:
        fields = {**fields, "request_id": encoded(engine_id)}
    return Leg({**headers, "Content-Type": "application/json", REQUEST_ID_HEADER: engine_id}, encode(fields))


def _p2p(pair: Pair, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> Plan:
    uuid = fresh_id(endpoint)
    engine_id = p2p_request_id(pair.prefill.zmq_address, pair.decode.zmq_address, uuid)
    return _pushed(endpoint, engine_id, uuid, fields, headers)


def _pushed(endpoint: Endpoint, engine_id: str, uuid: str, fields: Fields, headers: Mapping[str, str]) -> Plan:
    short = partial(stand_in, endpoint, fields)

    def receive(answer: bytes) -> HandOver:
        check_computed(answer)
        return HandOver(endpoint, engine_id, headers, fields, pushed=True, stand_in=short)

    return Plan(
        endpoint=endpoint,
        uuid=uuid,
        engine_id=engine_id,
        prefill=leg(endpoint, engine_id, one_token(endpoint, fields), headers),
        receive=receive,
        stand_in=short,
    )


def _keyed(
    prefill: Instance, decode: Instance | None, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]
) -> Plan:
    """P2pConnector: prefill sends KV to decode while it computes, if decode is known; the key in both bodies is unique."""
    uuid, key = fresh_id(endpoint), unique()
    # A request that continues another engine's tokens has its prompt with it.
    told = msgspec.json.decode(fields[KV_PARAMS], type=dict[str, Raw]) if KV_PARAMS in fields else {}

    def receive(answer: bytes) -> HandOver:
        check_named(answer, key)
        source = {**told, "pd": {"key": key, "from": prefill.zmq_address}}
        return HandOver(endpoint, uuid, headers, {**fields, KV_PARAMS: encoded(source)}, pushed=False)

    mine = {"key": key} if decode is None else {"key": key, "to": [decode.zmq_address]}
    wanted = {**told, "pd": mine}
    return Plan(
        endpoint=endpoint,
        uuid=uuid,
        engine_id=uuid,
        prefill=leg(endpoint, uuid, {**one_token(endpoint, fields), KV_PARAMS: encoded(wanted)}, headers),
        receive=receive,
        abortable=True,
    )


def _example(_pair: Pair, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> Plan:
    uuid = fresh_id(endpoint)
    return Plan(
        endpoint=endpoint,
        uuid=uuid,
        engine_id=uuid,
        prefill=leg(endpoint, uuid, one_token(endpoint, fields), headers),
        receive=lambda _: HandOver(endpoint, uuid, headers, fields, pushed=False),
    )


def _nixl(_pair: Pair, endpoint: Endpoint, fields: Fields, headers: Mapping[str, str]) -> Plan:
    uuid = fresh_id(endpoint)

    def receive(answer: bytes) -> HandOver:
        params = _answered(answer)
        if params is None:
            return HandOver(endpoint, uuid, headers, fields, pushed=False)
        return HandOver(endpoint, uuid, headers, {**fields, KV_PARAMS: params}, pushed=True)

    return Plan(
        endpoint=endpoint,
        uuid=uuid,
        engine_id=uuid,
        prefill=leg(endpoint, uuid, {**one_token(endpoint, fields), KV_PARAMS: NIXL_PREFILL_PARAMS}, headers),
        receive=receive,
    )


_PLANNERS: Final[Mapping[Connector | None, Callable[[Pair, Endpoint, Fields, Mapping[str, str]], Plan]]] = {
    Connector.P2P: lambda pair, *request: _keyed(pair.prefill, pair.decode, *request),
    Connector.NIXL: _nixl,
    Connector.EXAMPLE: _example,
}


class _Answer(Struct):
    kv_transfer_params: Raw = Raw(b"null")


class _End(Struct):
    finish_reason: str | None = None


class _Ends(Struct):
    choices: list[_End] = []


class _Keyed(Struct):
    key: str = ""


class _Pd(Struct):
    pd: _Keyed | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)
_ends_decoder = msgspec.json.Decoder(_Ends)
_pd_decoder = msgspec.json.Decoder(_Pd)
# With these, vLLM answers 200 to a request that it has given up, for example because it was told to pause.
_GIVEN_UP: Final = frozenset({"abort", "error"})


def check_computed(answer: bytes) -> None:
    """Check that prefill has computed every prompt.

    Raises:
        BrokenReplyError: if it gave one up: decode would wait for its KV in vain.
    """
    try:
        choices = _ends_decoder.decode(answer).choices
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # an endpoint without choices
    if any(choice.finish_reason in _GIVEN_UP for choice in choices):
        raise BrokenReplyError("prefill gave the request up")


def check_named(answer: bytes, key: str) -> None:
    """Check that prefill has the KV that it was asked for.

    Raises:
        BrokenReplyError: if prefill does not name this key: decode would wait for its KV in vain.
    """
    if _named(answer) != key:
        raise BrokenReplyError("prefill's answer does not name the requested KV")


def _named(answer: bytes) -> str:
    """The key in prefill's answer; empty if there is none."""
    params = _answered(answer)
    try:
        told = _pd_decoder.decode(params).pd if params is not None else None
    except msgspec.MsgspecError:
        return ""
    return told.key if told else ""


def _answered(answer: bytes) -> Raw | None:
    """The parameters in prefill's answer, unchanged; None if it keeps no KV for decode (a prompt below one block).

    Raises:
        BrokenReplyError: if the body of prefill's 200 is not a JSON object.
    """
    try:
        params = _answer_decoder.decode(answer).kv_transfer_params
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BrokenReplyError("prefill's answer is not valid JSON") from None
    return None if bytes(params) == b"null" else params
