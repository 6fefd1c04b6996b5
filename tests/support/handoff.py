"""Simulated engines with P2pConnector behind a proxy, and one plain engine that gives the expected answers."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from support.proxy import Reply, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts import sse, timing
from pd_contracts.names import TIMING_HEADER, Role

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# What differs from one request to the next, whoever serves it; and what the proxy always takes out.
VOLATILE = ("id", "created", "kv_transfer_params")


@dataclass
class Stand:
    """A proxy with its engines, and `plain` beside them."""

    proxy: RunningProxy
    prefills: list[Simulator]
    decodes: list[Simulator]
    plain: Simulator

    async def ask(self, path: str, body: dict[str, Any]) -> tuple[Any, timing.Stages]:
        """What a client gets, and where the time went."""
        reply = await self.proxy.post(body, path, **{TIMING_HEADER: "1"})
        assert reply.status == 200, reply.body
        return shown(reply), stages(reply)

    async def expected(self, path: str, body: dict[str, Any]) -> Any:
        """What plain vLLM would answer."""
        async with self.plain.session.post(self.plain.url + path, json=body) as response:
            return shown(Reply(response.status, response.headers.copy(), await response.read()))


@contextlib.asynccontextmanager
async def stand(
    *,
    prefills: int = 1,
    decodes: int = 1,
    step_ms: float = 0.5,
    profile: dict[str, Any] | None = None,
    draws: Sequence[bool] = (),
    prefill_draws: bool = True,
    **fields: Any,
) -> AsyncIterator[Stand]:
    """Everything, ready; `fields` are the proxy's settings, `profile` changes the engines'.

    `draws`: whether a decode draws by position, for each of the first ones; the plain engine draws as the first decode.
    `prefill_draws`: whether prefills do.
    """
    async with contextlib.AsyncExitStack() as stack, running_proxy(**{"ping_ttl_s": 30.0, **fields}) as proxy:
        found: dict[Role, list[Simulator]] = {Role.PREFILL: [], Role.DECODE: []}
        by_position = [*draws, *[True] * decodes][:decodes]
        roles = [(Role.PREFILL, prefill_draws)] * prefills + [(Role.DECODE, one) for one in by_position]
        for role, one in roles:
            settings = settings_for(
                role, proxy_port=proxy.settings.proxy_port, kv_load_timeout_s=0.5, sim_draws_by_position=one
            )
            found[role].append(
                await stack.enter_async_context(running(settings, fast_profile(step_ms, **profile or {})))
            )
        alone = settings_for(sim_draws_by_position=by_position[0])
        plain = await stack.enter_async_context(running(alone, fast_profile(step_ms, **profile or {})))
        await proxy.stats_where(lambda s: sum(i.state == "ready" for i in s.instances) == prefills + decodes)
        yield Stand(proxy, found[Role.PREFILL], found[Role.DECODE], plain)


def stages(reply: Reply) -> timing.Stages:
    """What the proxy says of the request."""
    if TIMING_HEADER in reply.headers:
        found = timing.decode(reply.headers[TIMING_HEADER])
    else:
        comments = [item.text for item in reply.items if isinstance(item, sse.Comment)]
        found = timing.decode(comments[-1])
    assert found is not None
    return found


def shown(reply: Reply) -> Any:
    """An answer without what always differs; a stream as the list of its events, where all must have one id and one time."""
    if "event-stream" not in reply.headers.get("Content-Type", ""):
        return _steady(json.loads(reply.body))
    *events, last = reply.events
    assert last == sse.DONE
    documents = [json.loads(event) for event in events]
    assert len({(document["id"], document["created"]) for document in documents}) == 1
    return [_steady(document) for document in documents]


def text_of(events: list[Any]) -> str:
    """The text of a stream."""
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


def _steady(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in VOLATILE}
