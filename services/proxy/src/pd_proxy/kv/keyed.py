"""The requests to prefill and decode with P2pConnector, with which decode can get a request before prefill has answered. Pure.

The connector makes that safe. Decode waits for KV without blocking other requests. It learns at once if the KV will not come, and then
computes the prompt itself. Requests may be aborted at either engine at any time, and nothing is left behind.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field
from msgspec.structs import replace

from pd_contracts.names import SIMULATED_ENGINE
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.kv.ids import unique
from pd_proxy.kv.transfer import KV_PARAMS, Leg, fresh_id, leg, one_token
from pd_proxy.protocol.body import Fields, encoded
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import limit_of, minimum_of
from pd_proxy.protocol.generation import Generation

# The first vLLM version that accepts a chat's prompt as token ids.
CHAT_IDS_SINCE: Final = (0, 32)
_TRUE: Final = Raw(b"true")


class Keyed(Struct, frozen=True):
    """One request on its way through one pair.

    Attributes:
        key: the unique name of its KV.
        uuid: the request id that both engines get and the client sees.
        late: decode is chosen when prefill has answered; prefill keeps the KV until then.
    """

    pair: Pair
    generation: Generation
    headers: Mapping[str, str]
    uuid: str
    key: str = field(default_factory=unique)
    late: bool = False

    @classmethod
    def new(cls, pair: Pair, generation: Generation, headers: Mapping[str, str], *, late: bool = False) -> "Keyed":
        """A request with a fresh id and a fresh key."""
        return cls(pair, generation, headers, fresh_id(generation.endpoint), late=late)

    def again(self) -> "Keyed":
        """The same request under another id, because decode may still have a request under this one."""
        return replace(self, uuid=fresh_id(self.generation.endpoint))

    def prefill(self) -> Leg:
        """Prefill's request if decode writes the whole answer, so that the client waits for the KV."""
        fields = one_token(self.generation.endpoint, self.generation.fields)
        return self._leg({**fields, KV_PARAMS: self._to({"first": "kv"})})

    def first_token(self) -> Leg:
        """Prefill's request if it writes the first token."""
        fields = {
            **self.generation.fields,
            **limited(self.generation, 1),
            "return_token_ids": _TRUE,
            KV_PARAMS: self._to({}),
        }
        if minimum_of(self.generation):
            fields["min_tokens"] = Raw(b"1")
        return self._leg(fields)

    def decode(self) -> Leg:
        """Decode's request if it writes the whole answer."""
        return self._leg({**self.generation.fields, KV_PARAMS: encoded({"pd": self._from()})})

    def announced(self, prompt: Raw, stand_in: int) -> Leg:
        """Decode's request before prefill's token is known; prefill sends the token to decode directly."""
        tokens = bytes(prompt).count(b",") + 1
        pd = {**self._from(), "tokens": tokens, "token": "follows"}
        return self._leg(going_on(self.generation, prompt, [stand_in], {"pd": pd}))

    def going_on(self, prompt: Raw, token: int) -> Leg:
        """Decode's request if prefill wrote the first token."""
        tokens = bytes(prompt).count(b",") + 1
        return self._leg(going_on(self.generation, prompt, [token], {"pd": {**self._from(), "tokens": tokens}}))

    def _to(self, more: Mapping[str, str]) -> Raw:
        to = {} if self.late else {"to": [self.pair.decode.zmq_address]}
        return encoded({"pd": {"key": self.key, **to, **more}})

    def _from(self) -> dict[str, Any]:
        return {"key": self.key, "from": self.pair.prefill.zmq_address}

    def _leg(self, fields: Fields) -> Leg:
        return leg(self.generation.endpoint, self.uuid, fields, self.headers)


def going_on(generation: Generation, prompt: Raw, tokens: list[int], params: Mapping[str, Any]) -> dict[str, Raw]:
    """The body of a request that continues after `tokens`, which the client already has."""
    ids = Raw(bytes(prompt).rstrip()[:-1] + b"," + msgspec.json.encode(tokens)[1:])
    fields = {**generation.fields}
    limit, minimum = limit_of(generation), minimum_of(generation)
    if limit is not None:
        fields |= limited(generation, limit - len(tokens))
    if minimum:
        fields["min_tokens"] = encoded(max(0, minimum - len(tokens)))
    told: dict[str, Any] = dict(params)
    if generation.endpoint is Endpoint.CHAT:
        told["prompt_token_ids"] = ids
    else:
        fields["prompt"] = ids
    if told:
        fields[KV_PARAMS] = encoded(told)
    return fields


def limited(generation: Generation, tokens: int) -> dict[str, Raw]:
    """The fields that limit the number of output tokens, set to `tokens`."""
    fields = {"max_tokens": encoded(tokens)}
    if "max_completion_tokens" in generation.fields:
        fields["max_completion_tokens"] = encoded(tokens)
    return fields


def takes_chat_ids(engine: Instance) -> bool:
    """Whether an engine accepts the prompt of a chat as token ids; False if its version is unknown."""
    if engine.engine == SIMULATED_ENGINE:
        return True
    numbers = engine.version.split(".")[:2]
    if not all(number.isdigit() for number in numbers) or len(numbers) < 2:
        return False
    return (int(numbers[0]), int(numbers[1])) >= CHAT_IDS_SINCE
