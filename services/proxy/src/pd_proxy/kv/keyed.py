"""P2pConnector's orders in which decode hears of a request early: its requests to either engine. Pure.

The connector promises what makes that safe. Decode waits for KV without blocking anybody, hears at once when it will not come, and then computes
the prompt itself; either engine may be aborted at any time, and nothing is left behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import Raw

from pd_contracts.names import SIMULATED_ENGINE
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.kv.transfer import KV_PARAMS, Leg, fresh_id, leg, one_token
from pd_proxy.protocol.body import Fields, encoded
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import limit_of, minimum_of
from pd_proxy.protocol.generation import Generation

# vLLM takes a chat's prompt as token ids from here on.
CHAT_IDS_SINCE: Final = (0, 32)
_TRUE: Final = Raw(b"true")


@dataclass(frozen=True, slots=True)
class Keyed:
    """One request on its way through one pair.

    Attributes:
        key: names its KV; nobody else has it.
        uuid: the id that both engines get and the client sees.
        late: who decodes is chosen when prefill has answered, which keeps the KV until it is asked for it.
    """

    pair: Pair
    generation: Generation
    headers: Mapping[str, str]
    uuid: str
    key: str = field(default_factory=lambda: uuid4().hex)
    late: bool = False

    @classmethod
    def new(cls, pair: Pair, generation: Generation, headers: Mapping[str, str], *, late: bool = False) -> "Keyed":
        """With a fresh id and a fresh key."""
        return cls(pair, generation, headers, fresh_id(generation.endpoint), late=late)

    def again(self) -> "Keyed":
        """The same under another id, because decode may still have a request under this one."""
        return replace(self, uuid=fresh_id(self.generation.endpoint))

    def prefill(self) -> Leg:
        """Prefill's request, if decode writes the whole answer."""
        return self._leg({**one_token(self.generation.endpoint, self.generation.fields), KV_PARAMS: self._to()})

    def first_token(self) -> Leg:
        """Prefill's request, if its token is the client's first."""
        fields = {
            **self.generation.fields,
            **limited(self.generation, 1),
            "return_token_ids": _TRUE,
            KV_PARAMS: self._to(),
        }
        if minimum_of(self.generation):
            fields["min_tokens"] = Raw(b"1")
        return self._leg(fields)

    def decode(self) -> Leg:
        """Decode's request, if it writes the whole answer."""
        return self._leg({**self.generation.fields, KV_PARAMS: encoded({"pd": self._from()})})

    def announced(self, prompt: Raw, stand_in: int) -> Leg:
        """Decode's request while prefill's token is unknown; the token follows from engine to engine."""
        tokens = bytes(prompt).count(b",") + 1
        pd = {**self._from(), "tokens": tokens, "token": "follows"}
        return self._leg(going_on(self.generation, prompt, [stand_in], {"pd": pd}))

    def going_on(self, prompt: Raw, token: int) -> Leg:
        """Decode's request, if prefill's token is the client's first."""
        tokens = bytes(prompt).count(b",") + 1
        return self._leg(going_on(self.generation, prompt, [token], {"pd": {**self._from(), "tokens": tokens}}))

    def _to(self) -> Raw:
        to = {} if self.late else {"to": [self.pair.decode.zmq_address]}
        return encoded({"pd": {"key": self.key, **to}})

    def _from(self) -> dict[str, Any]:
        return {"key": self.key, "from": self.pair.prefill.zmq_address}

    def _leg(self, fields: Fields) -> Leg:
        return leg(self.generation.endpoint, self.uuid, fields, self.headers)


def going_on(generation: Generation, prompt: Raw, tokens: list[int], params: Mapping[str, Any]) -> dict[str, Raw]:
    """The body of a request that goes on behind `tokens`, which the client has."""
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
    """The fields that say how many tokens the answer may have, with another number."""
    fields = {"max_tokens": encoded(tokens)}
    if "max_completion_tokens" in generation.fields:
        fields["max_completion_tokens"] = encoded(tokens)
    return fields


def takes_chat_ids(engine: Instance) -> bool:
    """Whether an engine takes the prompt of a chat as token ids. Engines that do not say their version do not."""
    if engine.engine == SIMULATED_ENGINE:
        return True
    numbers = engine.version.split(".")[:2]
    if not all(number.isdigit() for number in numbers) or len(numbers) < 2:
        return False
    return (int(numbers[0]), int(numbers[1])) >= CHAT_IDS_SINCE
