"""REJECT=slo and ROUTING through a running proxy: what clients get, what engines are asked for, and what it says about why."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.aio import until
from support.proxy import MODEL, FakeEngine, RunningProxy, failing, running_proxy, whole_and_streamed
from support.simulator import settings_for, spawned

from pd_contracts import sse, timing
from pd_contracts.names import Connector, Role
from pd_proxy.kv.budget import Budget
from pd_routing import adaptive
from pd_routing.books import Books
from pd_routing.names import Reject, Routing
from pd_routing.pace import LEAST
from pd_simulator.profile import load_profile

PROMPT = [1] * 1000
TEXT: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4}
# With this profile a prompt of 1000 tokens takes 150 + 100 ms and a step 18 ms and more.
SLOW = {"step_profile": "slow-exact", "step_margin": 1.0}
REJECT = {"reject": Reject.SLO, "ttft_slo_ms": 1000.0, "tpot_slo_ms": 100.0, **SLOW}
ADAPTIVE = {"routing": Routing.ADAPTIVE, "ttft_slo_ms": 5000.0, "tpot_slo_ms": 100.0, **SLOW}
ROLES = pytest.mark.parametrize("roles", [(Role.COMBINED,), (Role.PREFILL, Role.DECODE)], ids=["combined", "pair"])


@asynccontextmanager
async def gated(proxy: RunningProxy, roles: tuple[Role, ...]) -> AsyncIterator[FakeEngine]:
    """Engines of these roles, of which the first answers nothing while the context lasts."""
    engines = [await proxy.engine(role) for role in roles]
    engines[0].gate.clear()
    try:
        yield engines[0]
    finally:
        engines[0].gate.set()


@whole_and_streamed(TEXT)
@ROLES
async def test_what_would_come_too_late_gets_429_before_any_engine_hears_of_it(
    roles: tuple[Role, ...], body: dict[str, Any]
) -> None:
    async with running_proxy(**REJECT) as proxy, gated(proxy, roles) as first:
        running: list[asyncio.Task[Any]] = []
        while len(running) < 60:
            running.append(asyncio.create_task(proxy.post(body)))
            await until(lambda: len(first.calls) == len(running) or running[-1].done())
            if running[-1].done():
                break
        refused = running.pop().result()

        assert (refused.status, refused.error["code"], refused.error["type"]) == (
            429,
            "slo_not_met",
            "rate_limit_error",
        )
        assert "the first token would come after" in refused.error["message"]
        assert "TTFT_SLO_MS is 1000" in refused.error["message"]
        assert int(refused.headers["Retry-After"]) >= 1
        assert 2 <= len(first.calls) == len(running) < 60
        stats = await proxy.stats()
        assert stats.routing is not None
        assert stats.routing.rejected == 1
        assert stats.routing.engines[0].queue_ms > 400
        first.gate.set()
        assert [(await one).status for one in running] == [200] * len(running)
        await proxy.settled()
        assert 'pd_proxy_failures_total{cause="slo"} 1.0' in (await proxy.get("/metrics")).body.decode()


async def test_prompts_that_an_engine_refuses_leave_no_queue_behind() -> None:
    async with running_proxy(**REJECT) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.answer = failing(400)
        for body in (TEXT, TEXT | {"stream": True}):
            for _ in range(10):
                assert (await proxy.post(body | {"prompt": [1] * 4000})).status == 400
        await proxy.settled()
        routing = (await proxy.stats()).routing
        assert routing is not None
        assert routing.engines[0].queue_ms == 0


async def test_too_many_answers_at_once_get_429_with_the_token_time() -> None:
    async with running_proxy(**REJECT | {"tpot_slo_ms": 25.0}) as proxy, gated(proxy, (Role.COMBINED,)):
        short = TEXT | {"prompt": [1, 2], "stream": True}
        tasks = [asyncio.create_task(proxy.post(short)) for _ in range(60)]
        await until(lambda: any(task.done() for task in tasks))
        refused = next(task for task in tasks if task.done()).result()

        assert refused.status == 429
        assert "TPOT_SLO_MS is 25" in refused.error["message"]


async def test_nothing_is_rejected_unless_asked_for() -> None:
    async with running_proxy() as proxy, gated(proxy, (Role.COMBINED,)) as engine:
        running = [asyncio.create_task(proxy.post(TEXT)) for _ in range(12)]
        await until(lambda: len(engine.calls) == 12)
        assert (await proxy.stats()).routing is None
        engine.gate.set()
        assert {(await one).status for one in running} == {200}


@ROLES
async def test_clients_who_ask_for_timing_read_the_prediction(roles: tuple[Role, ...]) -> None:
    async with running_proxy(**REJECT) as proxy:
        for role in roles:
            await proxy.engine(role)
        whole = await proxy.post(TEXT, **{"X-PD-Timing": "1"})
        streamed = await proxy.post(TEXT | {"stream": True}, **{"X-PD-Timing": "1"})

        said = [timing.decode(whole.headers["X-PD-Timing"])]
        said += [timing.decode(item.text) for item in streamed.items if isinstance(item, sse.Comment)]
        assert len(said) == 2
        for stages in said:
            assert stages is not None
            assert stages.predicted_ttft is not None
            assert 250 <= stages.predicted_ttft <= 500
            assert stages.predicted_tpot is not None
            assert stages.predicted_tpot >= 18


async def test_the_books_are_empty_when_everything_is_over() -> None:
    async with running_proxy(**REJECT) as proxy:
        await proxy.pair()
        await proxy.engine(Role.COMBINED)
        for body in (TEXT, TEXT | {"stream": True}, TEXT | {"echo": True}, TEXT | {"n": 2}):
            assert (await proxy.post(body)).status == 200
        stats = (await proxy.settled()).routing
        assert stats is not None
        assert [(engine.sequences, engine.context_tokens) for engine in stats.engines] == [(0, 0)] * 3
        assert 2 <= stats.answer_tokens <= 8


async def test_a_request_that_waits_for_room_is_predicted_again_but_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, counted = [], []

    async def released(_: Budget) -> None:
        looks.append(True)
        await asyncio.sleep(0)

    monkeypatch.setattr(Budget, "released", released)
    monkeypatch.setattr(Books, "predicted", lambda *_, late, **__: counted.append(late))
    async with running_proxy(**REJECT, kv_bytes_per_token=1, kv_in_flight_bytes=1500) as proxy:
        prefill, _ = await proxy.pair()
        prefill.gate.clear()
        running = [asyncio.create_task(proxy.post(TEXT)) for _ in range(2)]
        await until(lambda: len(looks) > 2)
        prefill.gate.set()
        assert [(await one).status for one in running] == [200] * 2
    assert len(counted) == 2


async def test_adaptive_serves_engines_without_a_connector_where_requests_come_to() -> None:
    async with running_proxy(**ADAPTIVE) as proxy:
        engines = [await proxy.engine(Role.COMBINED, boot_id=f"b{n}") for n in range(2)]
        replies = await asyncio.gather(*(proxy.post(TEXT, **{"X-PD-Timing": "1"}) for _ in range(4)))

        assert [reply.status for reply in replies] == [200] * 4
        assert sorted(len(engine.calls) for engine in engines) == [2, 2]
        assert json.loads(replies[0].headers["X-PD-Timing"])["why"] == "plain"
        stats = (await proxy.stats()).routing
        assert stats is not None
        assert (stats.routing, stats.mode, stats.reject) == ("adaptive", "plain", "off")


async def test_engines_that_are_faster_than_the_profile_lower_its_costs() -> None:
    async with running_proxy(**ADAPTIVE) as proxy:
        await proxy.engine(Role.COMBINED)
        for _ in range(25):
            assert (await proxy.post(TEXT | {"stream": True})).status == 200
        stats = (await proxy.settled()).routing

    assert stats is not None
    assert stats.pace == LEAST


async def test_adaptive_leaves_prefill_and_decode_to_the_policy() -> None:
    async with running_proxy(**ADAPTIVE) as proxy:
        prefill, decode = await proxy.pair()

        assert (await proxy.post(TEXT)).status == 200
        assert (len(prefill.calls), len(decode.calls)) == (1, 1)


async def both(proxy: RunningProxy, count: int, draws: Sequence[bool] = ()) -> list[str]:
    """Start simulated engines that do both, and wait until all pairs of them are admitted; returns their URLs.

    `draws`: whether each of the first ones draws by position.
    """
    shared: dict[str, Any] = {
        "proxy_port": proxy.settings.proxy_port,
        "proxy_host": "127.0.0.1",
        "model": MODEL,
        "sim_profile": "demo",
    }
    engines = [
        await proxy.engines.enter_async_context(
            spawned(
                settings_for(
                    kv_both=True, kv_connector=Connector.P2P, instance=number, sim_draws_by_position=one, **shared
                )
            )
        )
        for number, one in enumerate([*draws, *[True] * count][:count])
    ]
    pairs = count * (count - 1)
    await proxy.stats_where(
        lambda s: (
            sum(i.state == "ready" for i in s.instances) == count
            and sum(p.canary == "passed" for p in s.pairs) == pairs
        ),
        timeout_s=30,
    )
    return [engine.url for engine in engines]


# There is time for answers alone (a step takes 21 ms), but not for prompts beside them. Simulated engines ping as seldom as real ones.
TIGHT: dict[str, Any] = {
    "routing": Routing.ADAPTIVE,
    "ttft_slo_ms": 60_000.0,
    "tpot_slo_ms": 26.0,
    "step_profile": "demo",
    "ping_ttl_s": 10.0,
    "canary": True,
}


async def test_roles_emerge_and_answers_stay_what_they_were() -> None:
    body = {"model": MODEL, "prompt": [7] * 1000, "max_tokens": 8, "temperature": 0}
    async with running_proxy(**TIGHT) as proxy:
        urls = await both(proxy, 3)
        async with proxy.session.post(f"{urls[0]}/v1/completions", json=body) as answer:
            expected = (await answer.json())["choices"][0]["text"]
        bodies = [body, body | {"stream": True}] * 4

        replies = await asyncio.gather(*(proxy.post(one, **{"X-PD-Timing": "1"}) for one in bodies))
        several = await proxy.post(body | {"n": 2, "max_tokens": 2}, **{"X-PD-Timing": "1"})
        stats = (await proxy.settled()).routing

        assert {reply.status for reply in (*replies, several)} == {200}
        assert {said(reply) for reply in replies} == {expected}
        stages = [found(reply) for reply in replies]
        handed_over = [one for one in stages if one.prefill_instance and one.prefill_instance != one.decode_instance]
        assert handed_over
        assert {one.first_token for one in handed_over} == {"prefill"}
        assert {one.why for one in stages} <= {"plain", "handed over", "overflow", "waits", "least late"}
        assert found(several).prefill_instance == ""  # several answers to one prompt need one engine
        assert stats is not None
        assert stats.mode == "split"
        assert [(engine.sequences, engine.context_tokens) for engine in stats.engines] == [(0, 0)] * 3
        assert [engine.room_tokens for engine in stats.engines] == [load_profile("demo").memory.kv_tokens] * 3


async def test_a_seeded_answer_is_continued_only_where_tokens_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "decode_on", lambda _costs, _view, engines, _prompt: max(engines))  # the last one
    body = {"model": MODEL, "prompt": [7] * 1000, "max_tokens": 8, "temperature": 1, "seed": 3}
    async with running_proxy(**TIGHT) as proxy:
        await both(proxy, 3, draws=(True, True, False))
        replies = await asyncio.gather(*(proxy.post(body, **{"X-PD-Timing": "1"}) for _ in range(12)))
        stages, otherwise = [found(reply) for reply in replies], "combined-2"

        assert {reply.status for reply in replies} == {200}
        handed_off = [one for one in stages if one.first_token == "prefill"]
        assert handed_off
        assert not any(otherwise in (one.prefill_instance, one.decode_instance) for one in handed_off)
        assert "seed" in {one.first_token_reason for one in stages if otherwise == one.prefill_instance}


async def three_apart(proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Three engines that do both. The first one that may computes a prompt, and the last one that may decodes."""

    def place(_costs: Any, _view: Any, _mode: Any, engines: Sequence[int], _prompt: int) -> adaptive.Placement:
        return adaptive.Placement(min(engines), local=False, why=adaptive.Why.HANDED_OVER)

    monkeypatch.setattr(adaptive, "place", place)
    monkeypatch.setattr(adaptive, "decode_on", lambda _costs, _view, engines, _prompt: max(engines))
    engines = []
    for number in range(3):
        engines.append(await proxy.start(FakeEngine(Role.COMBINED, Connector.P2P, f"b{number}")))
        await proxy.state_of(engines[-1], "ready")
    return engines


@whole_and_streamed(TEXT)
async def test_an_engine_that_failed_to_decode_a_request_does_not_get_it_again(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    async with running_proxy(**ADAPTIVE) as proxy:
        engines = await three_apart(proxy, monkeypatch)
        engines[2].answer = failing(500)

        assert (await proxy.post(body)).status == 200
        assert [len(engine.calls) for engine in engines] == [2, 1, 1]


def said(reply: Any) -> str:
    """The text of an answer, streamed or not."""
    if reply.headers["Content-Type"].startswith("application/json"):
        return str(reply.json["choices"][0]["text"])
    chunks = [json.loads(data) for data in reply.events if data != "[DONE]"]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def found(reply: Any) -> timing.Stages:
    """What X-PD-Timing says."""
    texts = (
        [reply.headers["X-PD-Timing"]]
        if "X-PD-Timing" in reply.headers
        else [i.text for i in reply.items if isinstance(i, sse.Comment)]
    )
    stages = timing.decode(texts[-1])
    assert stages is not None
    return stages
