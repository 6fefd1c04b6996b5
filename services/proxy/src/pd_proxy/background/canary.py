"""Checks that each pair of a prefill and a decode answers correctly, before clients get answers from it.

A decode that lost its KV does not say so: vLLM 0.23 goes on with what lies in memory, and answers 200. So prefill is asked for
the first token after a fixed prompt, decode for the first three from the KV that it was handed, and prefill for the token after
prompt and first token; greedy, the two must agree. Engines whose answers are not fixed need CANARY=off.
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Raw

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Pair, compatible
from pd_proxy.engines.registry import State
from pd_proxy.engines.trust import Judgment
from pd_proxy.errors import BrokenReplyError, ProxyError
from pd_proxy.kv.engine_page import transport_to
from pd_proxy.kv.transfer import plan
from pd_proxy.protocol.body import Fields
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.exchange import Exchange
from pd_proxy.supervisor import Supervisor

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.1
TOKENS: Final = 3
PROMPT: Final = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. How vexingly quick daft zebras jump."


class Verdict(StrEnum):
    """The result of a pair's canary."""

    PASSED = "passed"
    WRONG = "wrong"
    FAILED = "failed"


class _Choice(msgspec.Struct):
    token_ids: list[int]
    prompt_token_ids: list[int] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class Result:
    """A verdict with its reason."""

    verdict: Verdict
    reason: str = ""


def judge(first: int, second: int, decoded: list[int]) -> Result:
    """Compare prefill's first and second token with what decode wrote."""
    if decoded[:2] == [first, second]:
        return Result(Verdict.PASSED)
    return Result(Verdict.WRONG, f"decode wrote tokens {decoded[:2]}, but prefill wrote [{first}, {second}]")


class Canary:
    """Examines pairs when both engines are ready, and all of them on demand."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context
        self._due: dict[tuple[int, int], float] = {}

    async def run(self) -> None:
        """Examine every new pair, forever. A pair whose canary failed for another reason than a wrong answer is examined again."""
        async with asyncio.TaskGroup() as group:
            while True:
                now = asyncio.get_running_loop().time()
                for pair in pairs(self._context):
                    key = _key(pair)
                    if not self._context.trust.judged(pair.prefill, pair.decode) and now >= self._due.get(key, 0.0):
                        self._due[key] = float("inf")
                        group.create_task(self._examine_new(pair))
                await asyncio.sleep(PERIOD_S)

    async def _examine_new(self, pair: Pair) -> None:
        await examine(self._context, pair)
        again = asyncio.get_running_loop().time() + self._context.settings.probe_interval_s
        self._due[_key(pair)] = again


def pairs(context: Supervisor) -> list[Pair]:
    """All pairs of ready engines that may have to hand over KV, whatever their canaries said."""
    ready = [i for i in context.registry.view() if i.state is State.READY]
    decodes = [i for i in ready if i.role is Role.DECODE]
    found = [Pair(p, d) for p in ready if p.role is Role.PREFILL for d in decodes if compatible(p, d)]
    if context.router is None:
        return found
    both = [i for i in ready if i.role is Role.COMBINED and i.connector is not None]
    return found + [Pair(p, d) for p in both for d in both if p is not d and compatible(p, d)]


async def examine(context: Supervisor, pair: Pair) -> Result:
    """Run one pair's canary and remember its verdict."""
    try:
        result = await _ask_both(context, pair)
    except ProxyError as error:
        result = Result(Verdict.FAILED, error.message)
    except TimeoutError:
        result = Result(Verdict.FAILED, f"{pair.decode.name} did not answer in time")
    context.metrics.canary(result.verdict)
    level = logging.INFO if result.verdict is Verdict.PASSED else logging.WARNING
    logger.log(
        level,
        "canary",
        extra={
            "prefill": pair.prefill.name,
            "decode": pair.decode.name,
            "verdict": result.verdict,
            "reason": result.reason,
        },
    )
    if result.verdict is not Verdict.FAILED:
        judgment = Judgment(result.verdict is Verdict.PASSED, result.reason)
        context.trust.judge(pair.prefill, pair.decode, judgment)
        # Only /stats shows the transport, so clients need not wait for it.
        transport = await _transport(context, pair) if judgment.right else ""
        if transport and context.trust.judged(pair.prefill, pair.decode):  # otherwise one of them has restarted
            context.trust.judge(pair.prefill, pair.decode, judgment._replace(transport=transport))
    return result


async def _transport(context: Supervisor, pair: Pair) -> str:
    """The transport of P2pConnector's KV to decode, from prefill's metrics; empty if it cannot be read, which does no harm."""
    if pair.prefill.connector is not Connector.P2P:
        return ""
    try:
        page = await context.upstream.get(pair.prefill, "/metrics", context.settings.health_timeout_s)
    except (ProxyError, TimeoutError) as error:
        logger.info("the KV transport of a pair is unknown", extra={"prefill": pair.prefill.name, "cause": str(error)})
        return ""
    return transport_to(pair.decode.zmq_address, page)


async def _ask_both(context: Supervisor, pair: Pair) -> Result:
    model = next(model for model in pair.prefill.models if model in pair.decode.models)
    before, decoded = await _exchange(context, pair, _body(model, PROMPT, TOKENS))
    first = before.token_ids[0]
    if before.prompt_token_ids is None:
        raise BrokenReplyError(f"{pair.prefill.name} does not say its prompt's token ids")
    # Its KV goes to decode like any other, and is consumed there for one token.
    after, _ = await _exchange(context, pair, _body(model, [*before.prompt_token_ids, first], 1))
    return judge(first, after.token_ids[0], decoded.token_ids)


async def _exchange(context: Supervisor, pair: Pair, fields: Fields) -> tuple[_Choice, _Choice]:
    exchange = Exchange(context, pair, plan(pair, Endpoint.COMPLETIONS, fields, {}))
    handover = await exchange.prefill()
    decoded = await exchange.decode(handover, context.settings.decode_stall_timeout_s)
    return _choice(exchange.prefilled), _choice(decoded)


def _choice(answer: bytes) -> _Choice:
    try:
        choice = msgspec.json.decode(answer, type=_Answer).choices[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
        raise BrokenReplyError("the canary's answer has no token ids") from None
    if not choice.token_ids:
        raise BrokenReplyError("the canary's answer has no tokens")
    return choice


def _body(model: str, prompt: str | list[int], tokens: int) -> Fields:
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": False,
    }
    return {name: Raw(msgspec.json.encode(value)) for name, value in body.items()}


def _key(pair: Pair) -> tuple[int, int]:
    return pair.prefill.incarnation, pair.decode.incarnation
