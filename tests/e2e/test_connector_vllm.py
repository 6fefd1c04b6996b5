"""P2pConnector between real vLLM engines on the CPU: token for token what plain vLLM writes, whoever dies, and nothing left behind.

The tests build on each other, because an engine takes half a minute to start: two engines run all of them, and only who was killed starts anew. The short
case runs with all other tests; `make e2e-long` has the others, with CONNECTOR_VLLM_PYTHON=/path/to/python for a vLLM of another version.
"""

import asyncio
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import exclusions_vllm
from support.answers import random_prompt
from support.connector_relay import Relay
from support.handoff import CHAT, stages
from support.handoff_vllm import fronted, post, said, ways
from support.vllm_engines import Answer, Engine, Later, Site, ask, page_of
from support.waiting import until

from pd_contracts.ping import PingType
from pd_proxy.protocol import first_token
from pd_proxy.protocol.exclusions import NO_IDS
from pd_proxy.request import attempt
from pd_routing.names import Routing

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]

# Around a block of 32 tokens, a page of 4 blocks, and a step of 256 tokens; the last ones are more than all landing memory.
LENGTHS = (1, 2, 31, 32, 33, 64, 127, 129, 255, 257, 700, 1500)
PAGE = 4 * 65536
LANDING_PAGES = 4
ORDERS = ("official", "decode first", "named late", "hand-off", "token follows")
PLACE_HOLDER = 5
# How long decode waits within a step: on a busy machine the last layers may take long.
SOON_S = 5
# Prompts of one token that `loads` sends, and prompts of a few that nobody transfers.
SMALL = 10
GONE = (urllib.error.URLError, TimeoutError, OSError)
FP8_PROCESSORS = {"avx512f", "amx_tile"}
CACHING = {True: "--enable-prefix-caching", False: "--no-enable-prefix-caching"}


@dataclass(frozen=True)
class Case:
    """Which engine has prefix caching; `again`: decode after its restart. `python` has another vLLM than the image's; `more` are both engines' options.

    `soon`: an idle decode engine begins a request's step before all of its KV is there.
    """

    prefill: bool
    decode: bool
    again: bool
    thorough: bool = False
    python: str = ""
    more: tuple[str, ...] = ()
    soon: bool = False


CASES = [
    pytest.param(Case(prefill=True, decode=False, again=True), id="short"),
    pytest.param(
        Case(prefill=False, decode=True, again=False, thorough=True), id="the other way round", marks=pytest.mark.long
    ),
    pytest.param(
        Case(prefill=True, decode=True, again=False, more=("--kv-cache-dtype", "fp8")),
        id="FP8",
        marks=pytest.mark.long,
    ),
    pytest.param(Case(prefill=False, decode=True, again=True, soon=True), id="soon", marks=pytest.mark.long),
    pytest.param(
        Case(prefill=False, decode=False, again=True, python=os.environ.get("CONNECTOR_VLLM_PYTHON", "none")),
        id="another vLLM",
        marks=pytest.mark.long,
    ),
]


@dataclass
class Pair:
    """A prefill and a decode engine, and what plain vLLM writes."""

    site: Site
    case: Case
    _plain: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @property
    def p(self) -> Engine:
        return self.site.engines["p"]

    @property
    def d(self) -> Engine:
        return self.site.engines["d"]

    @property
    def relay(self) -> Relay:
        if self.case.python:
            pytest.skip("local processes share an address, so there is no network between them")
        return self.site.relays["d"]

    def start(self, name: str, *, caching: bool) -> Engine:
        """The first decode engine has the connector's halves in two processes, all others in one."""
        settings: dict[str, Any] = {
            "landing_bytes": LANDING_PAGES * PAGE,
            "page_bytes": PAGE,
            "load_timeout_s": 3,
            "early_s": 15,
        }
        relayed, together = name == "d" and not self.case.python, name in ["p", *self.site.engines] or self.case.soon
        if self.case.soon:
            settings |= {
                "landing_bytes": 4 * LANDING_PAGES * PAGE,
                "soon_wait_ms": SOON_S * 1000,
                "soon_lead_ms": 50,
                "soon_transports": ["tcp"],
            }
        arguments = (CACHING[caching], *self.case.more)
        return self.site.start(name, *arguments, relayed=relayed, together=together, **settings)

    def plain(self, prompt: list[int]) -> list[int]:
        """What an engine writes without anybody else's KV, of which its prefix cache may have some; asked once."""
        if tuple(prompt) not in self._plain:
            engine = self.p if self.p.lives() else self.d
            self._plain[tuple(prompt)] = ask(engine, prompt, cache_salt=uuid.uuid4().hex).tokens
        return self._plain[tuple(prompt)]

    def some(self, lengths: tuple[int, ...]) -> Iterator[tuple[int, str]]:
        """Lengths and orders: all of them, or each length in one order."""
        for index, length in enumerate(lengths):
            for step in range(len(ORDERS) if self.case.thorough else 1):
                yield length, ORDERS[(index + step) % len(ORDERS)]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two engines, each able to prefill and to decode, with little landing memory."""
    case: Case = request.param
    if case.python == "none":
        pytest.skip("CONNECTOR_VLLM_PYTHON names no interpreter with another vLLM")
    if "fp8" in case.more and not FP8_PROCESSORS & set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("vLLM keeps FP8 KV only on processors with AVX-512 or AMX")
    if not case.python:
        request.getfixturevalue("vllm_cpu")
    site = Site(tmp_path_factory.mktemp("engines"), case.python)
    found = Pair(site, case)
    try:
        found.start("p", caching=case.prefill)
        found.start("d", caching=case.decode)
        for engine in site.engines.values():
            engine.ready()
        yield found
    finally:
        site.stop()


@pytest.fixture(autouse=True)
def alive(pair: Pair) -> None:
    """Start the engines that the test before has killed, or that have ended, so that one failure is not followed by others."""
    for name, caching in (("p", pair.case.prefill), ("d", pair.case.again)):
        if not pair.site.engines[name].lives():
            pair.start(name, caching=caching).ready()


def both(
    order: str, p: Engine, d: Engine, prompt: list[int], *, stream: bool = False, **fields: Any
) -> tuple[list[int], Answer]:
    """Prefill on one engine and decode on the other; the output's tokens and decode's answer."""
    key, tokens = uuid.uuid4().hex, fields.pop("max_tokens", 12)
    prefill = {"key": key, **({} if order == "named late" else {"to": [d.kv]})}
    decode: dict[str, Any] = {"key": key, "from": p.kv}
    if order in ("official", "named late"):
        ask(p, prompt, prefill, max_tokens=1)
        answer = ask(d, prompt, decode, stream=stream, max_tokens=tokens, **fields)
        return answer.tokens, answer
    if order == "decode first":
        later = Later(ask, d, prompt, decode, stream=stream, max_tokens=tokens, **fields)
        time.sleep(0.05)
        ask(p, prompt, prefill | {"first": "kv"}, max_tokens=1)
        answer = later.result()
        return answer.tokens, answer
    decode["tokens"] = len(prompt)
    if order == "hand-off":
        first = ask(p, prompt, prefill, max_tokens=1).tokens
        answer = ask(d, [*prompt, *first], decode, stream=stream, max_tokens=tokens - 1, **fields)
    else:
        follows = decode | {"token": "follows"}
        later = Later(ask, d, [*prompt, PLACE_HOLDER], follows, stream=stream, max_tokens=tokens - 1, **fields)
        first = ask(p, prompt, prefill, max_tokens=1).tokens
        answer = later.result()
    return [*first, *answer.tokens], answer


def rest(*engines: Engine) -> None:
    """No page but granted ones is left; metrics come with steps, so each engine makes one."""
    states = [f'state="{state}"' for state in ("gathering", "gathered", "moving", "landed", "loading", "limbo")]
    deadline = time.monotonic() + 20
    while True:
        left: dict[str, float] = {}
        for engine in engines:
            ask(engine, [1, 2], max_tokens=1)
            left |= {
                f"{engine.name} {name}": value
                for name, value in engine.metrics().items()
                if value and name.endswith(tuple(states))
            }
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def loads(engine: Engine, outcome: str) -> float:
    ask(engine, [1, 2], max_tokens=1)
    return engine.metrics().get(f'pd_kv_loads_total outcome="{outcome}"', 0)


def test_what_two_engines_write_is_what_one_writes(pair: Pair) -> None:
    p, d = pair.p, pair.d
    before, count = loads(d, "loaded"), 0
    for turn, (length, order) in enumerate(pair.some(LENGTHS)):
        prompt = random_prompt(length, 50 + ORDERS.index(order))
        tokens, _ = both(order, p, d, prompt, stream=turn % 2 == 0)
        assert tokens == pair.plain(prompt), (length, order)
        # The last prompt token is always computed here, so of one token nothing is left to load, unless another follows.
        count += length > 1 or order in ("hand-off", "token follows")
    assert loads(d, "loaded") - before == count, "and none of it was computed again"
    rest(p, d)
    up = [name for name, value in d.metrics().items() if name.startswith("pd_kv_peer_up") and value]
    assert f'pd_kv_peer_up peer="{p.kv}" transport="tcp"' in up, "metrics say which transport it is"
    assert "pd_seeded_draws" not in page_of(d.url), (
        "on a CPU vLLM has the V1 model runner, whose draws follow each other"
    )


def test_with_the_kv_zeroed_on_its_way_the_same_comparison_fails(pair: Pair) -> None:
    with pair.relay.zeros():
        for length in (33, 257):
            tokens, answer = both("official", pair.p, pair.d, random_prompt(length, 1))
            assert answer.pd["outcome"] == "loaded"
            assert tokens != pair.plain(random_prompt(length, 1))


def waits(engine: Engine) -> float:
    """How many steps have waited for KV."""
    ask(engine, [1, 2], max_tokens=1)
    return engine.metrics().get('pd_kv_stage_seconds_count stage="in step"', 0)


@pytest.mark.parametrize(("order", "least"), [("decode first", len(LENGTHS) // 2), ("token follows", 2)])
def test_steps_that_begin_before_their_kv_is_there(pair: Pair, order: str, least: int) -> None:
    """A token that follows and ends a block is waited for before the step."""
    if not pair.case.soon:
        pytest.skip("no step begins before its KV is there")
    p, d = pair.p, pair.d
    both("official", p, d, random_prompt(40, 200))  # so that they are connected
    before, loaded = waits(d), loads(d, "loaded")
    for salt, length in enumerate(LENGTHS[1:], 1000 * len(order)):
        tokens, _ = both(order, p, d, random_prompt(length, salt), stream=salt % 2 == 0)
        assert tokens == pair.plain(random_prompt(length, salt)), length
    assert waits(d) - before >= least, "they waited within their step"
    assert loads(d, "loaded") - loaded == len(LENGTHS) - 1

    with pair.relay.zeros():
        for length in (33, 257):
            before = waits(d)
            prompt = random_prompt(length, len(order))
            tokens, answer = both(order, p, d, prompt)
            assert (answer.pd["outcome"], waits(d)) == ("loaded", before + 1)
            assert tokens != pair.plain(prompt)
    rest(p, d)


def test_the_prefix_cache_has_the_token_that_came_within_the_step(pair: Pair) -> None:
    """It came after the scheduler had counted the prompt's blocks, and is in one that the answer's tokens fill."""
    if not pair.case.soon:
        pytest.skip("no step begins before its KV is there")
    p, d = pair.p, pair.d
    both("official", p, d, random_prompt(40, 229))  # so that they are connected
    for salt in range(230, 240):  # on a busy machine decode may notice too late that KV is near
        prompt, before = random_prompt(710, salt), waits(d)
        tokens, _ = both("token follows", p, d, prompt, max_tokens=60)
        assert tokens == ask(p, prompt, max_tokens=60, cache_salt=uuid.uuid4().hex).tokens
        if waits(d) > before:
            break
    else:
        pytest.fail("no step waited for its KV")
    known = computed(d)
    longer = [*prompt, *tokens[:50]]
    assert ask(d, longer).tokens == pair.plain(longer)
    assert computed(d) - known == len(longer) - 736, "23 blocks are cached, the last of them with prefill's token"
    wrong = [*prompt, PLACE_HOLDER, *tokens[1:50]]
    assert ask(d, wrong).tokens == pair.plain(wrong)
    rest(p, d)


async def test_answers_through_the_proxy_whose_steps_begin_before_their_kv(pair: Pair) -> None:
    if not pair.case.soon:
        pytest.skip("no step begins before its KV is there")
    p, d = pair.p, pair.d
    async with fronted([(PingType.PREFILL, p), (PingType.DECODE, d)]) as (proxy, session):
        await post(session, proxy.url, "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
        before = waits(d)
        for salt, length in enumerate((40, 200, 700, 1000), 240):
            body = {"model": "tiny", "prompt": random_prompt(length, salt), "temperature": 0, "max_tokens": 12}
            body |= {"ignore_eos": True, "stream": salt % 2 == 0}
            reply = await post(session, proxy.url, "/v1/completions", body)
            plain = await post(session, p.url, "/v1/completions", body | {"cache_salt": uuid.uuid4().hex})
            assert said(reply) == said(plain), length
        assert waits(d) - before >= 2, "the token followed within the step"
    rest(p, d)


@pytest.mark.parametrize("order", ["token follows", "decode first"])
def test_a_last_page_that_does_not_come_within_the_step(pair: Pair, order: str) -> None:
    if not pair.case.soon:
        pytest.skip("no step begins before its KV is there")
    p, d = pair.p, pair.d
    both("official", p, d, random_prompt(40, 220))
    prompt, lost = random_prompt(200, 221), loads(d, "lost")
    with pair.relay.holding() as held:
        running = Later(both, order, p, d, prompt)
        assert held.wait(60)
        with pytest.raises(urllib.error.HTTPError, match="500") as failed:
            running.result()
    failed.value.close()
    assert loads(d, "lost") == lost + 1

    # Nobody else gets the blocks that are without KV from the prefix cache, and from now on decode waits as before.
    before = waits(d)
    assert ask(d, prompt).tokens == pair.plain(prompt)
    assert both(order, p, d, random_prompt(300, 222))[0] == pair.plain(random_prompt(300, 222))
    assert waits(d) == before
    rest(p, d)
    d.kill()  # the next engine trusts announcements


def test_several_prompts_and_answers_of_one_request(pair: Pair) -> None:
    p, d = pair.p, pair.d
    prompts = [random_prompt(length, 2) for length in (40, 300, 7)]
    key = uuid.uuid4().hex
    likeliest = {"n": 2, "temperature": 1, "top_k": 1}
    decoded, prefilled = [
        Later(_choices, d, prompts, {"key": key, "from": p.kv}, **likeliest),
        Later(_choices, p, prompts, {"key": key, "to": [d.kv]}, max_tokens=1, **likeliest),
    ]
    prefilled.result()

    assert decoded.result() == [pair.plain(prompt) for prompt in prompts for _ in range(2)]
    rest(p, d)


def _choices(engine: Engine, prompts: list[list[int]], pd: dict[str, Any], **fields: Any) -> list[list[int]]:
    body = {"model": "tiny", "prompt": prompts, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    body |= {"kv_transfer_params": {"pd": pd}, **fields}
    request = urllib.request.Request(
        f"{engine.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        choices = json.load(reply)["choices"]
    return [choice["token_ids"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def test_many_at_once_in_either_direction(pair: Pair) -> None:
    p, d = pair.p, pair.d
    prompts = [random_prompt(60 + 61 * index, 3) for index in range(12)]
    running = [
        Later(both, ORDERS[index % len(ORDERS)], *((p, d) if index % 4 else (d, p)), prompt)
        for index, prompt in enumerate(prompts)
    ]
    found = [one.result()[0] for one in running]

    assert found == [pair.plain(prompt) for prompt in prompts]
    rest(p, d)


def test_kv_that_does_not_come_is_computed(pair: Pair) -> None:
    p, d = pair.p, pair.d
    prompt = random_prompt(200, 4)
    began = time.monotonic()
    answer = ask(d, prompt, {"key": uuid.uuid4().hex, "from": p.kv})
    assert (answer.tokens, answer.pd["outcome"]) == (pair.plain(prompt), "recomputed")
    assert time.monotonic() - began > 3, "it waited for it first"

    nowhere = f"{p.host}:9"
    for _ in range(2):  # where nobody listens there is nothing to wait for
        answer = ask(d, prompt, {"key": uuid.uuid4().hex, "from": nowhere})
        assert answer.tokens == pair.plain(prompt)
    answer = ask(d, [*prompt, 5], {"key": uuid.uuid4().hex, "from": nowhere, "tokens": 200, "token": "follows"})
    assert (answer.finish, str(answer.stop_reason)[:4]) == ("length", "pd: ")


def test_a_wrong_pd_map_or_none_makes_an_ordinary_request(pair: Pair) -> None:
    prompt = random_prompt(33, 5)
    for wrong in ({"key": 5}, {"from": "x"}, {"key": "k", "from": "nowhere"}, {"key": "k", "to": 7}, "x", None):
        answer = ask(pair.d, prompt, wrong)  # type: ignore[arg-type]
        assert (answer.tokens, answer.pd) == (pair.plain(prompt), {}), wrong


def test_decode_on_the_engine_that_prefilled(pair: Pair) -> None:
    p = pair.p
    for order in ("official", "decode first", "token follows"):
        prompt = random_prompt(300, 60 + ORDERS.index(order))
        tokens, answer = both(order, p, p, prompt)
        assert tokens == pair.plain(prompt), order
        if pair.case.prefill:
            assert answer.pd["outcome"] == "cached", order
    rest(p)


def test_prompts_whose_tokens_are_asked_for_are_computed(pair: Pair) -> None:
    if not pair.case.thorough:
        pytest.skip("vLLM compiles for half a minute before it answers")
    prompt = random_prompt(100, 7)
    tokens, answer = both("official", pair.p, pair.d, prompt, prompt_logprobs=1)

    assert (tokens, answer.pd) == (pair.plain(prompt), {})
    rest(pair.p, pair.d)


def test_a_client_that_leaves_while_its_kv_is_waited_for_leaves_nothing(pair: Pair) -> None:
    p, d = pair.p, pair.d
    with pytest.raises(GONE):
        ask(d, random_prompt(300, 8), {"key": uuid.uuid4().hex, "from": p.kv}, timeout=0.5)
    with pytest.raises(GONE):  # and one that leaves while it is computed
        ask(p, random_prompt(2000, 8), {"key": uuid.uuid4().hex, "to": [d.kv]}, max_tokens=1, timeout=0.02)

    rest(p, d)


def test_a_client_that_leaves_while_its_kv_comes_leaves_nothing(pair: Pair) -> None:
    p, d, key = pair.p, pair.d, uuid.uuid4().hex
    with pair.relay.holding() as held:
        prefilled = Later(ask, p, random_prompt(1500, 9), {"key": key, "to": [d.kv]}, max_tokens=1)
        assert held.wait(60)
        with pytest.raises(GONE):
            ask(d, random_prompt(1500, 9), {"key": key, "from": p.kv}, timeout=0.5)
    prefilled.result()

    rest(p, d)
    assert both("official", p, d, random_prompt(300, 9))[0] == pair.plain(random_prompt(300, 9))


def test_kv_that_nobody_asks_for_makes_room(pair: Pair) -> None:
    if not pair.case.thorough:
        pytest.skip("takes seconds; the unit tests have it")
    p, d = pair.p, pair.d
    for salt in (100, 101):
        ask(p, random_prompt(500, salt), {"key": uuid.uuid4().hex, "to": [d.kv]}, max_tokens=1)
    began = time.monotonic()
    tokens, answer = both("official", p, d, random_prompt(1500, 102))

    assert (tokens, answer.pd["outcome"]) == (pair.plain(random_prompt(1500, 102)), "loaded")
    assert time.monotonic() - began < 30
    rest(p, d)


@pytest.mark.parametrize("when", ["before the KV came", "after the token came", "while it runs"])
def test_kv_of_a_request_that_is_given_up_goes_to_the_next_one(pair: Pair, when: str) -> None:
    """A router announces a request and then, because it cannot use prefill's token, asks for the whole answer under the same key."""
    p, d, prompt, key = pair.p, pair.d, random_prompt(700, 90), uuid.uuid4().hex
    before, decode = loads(d, "recomputed"), {"key": key, "from": p.kv}
    follows = decode | {"tokens": len(prompt), "token": "follows"}
    announced = left_alone(d, [*prompt, PLACE_HOLDER], follows)
    time.sleep(0.3)
    if when == "before the KV came":
        announced.close()
        whole = Later(ask, d, prompt, decode)
        time.sleep(0.3)
        ask(p, prompt, {"key": key, "to": [d.kv]}, max_tokens=1)
        answer = whole.result()
    else:
        ask(p, prompt, {"key": key, "to": [d.kv]}, max_tokens=1)
        if when == "after the token came":
            time.sleep(0.3)
            announced.close()
        answer = ask(d, prompt, decode)
        announced.close()

    assert (answer.tokens, answer.pd["outcome"]) == (pair.plain(prompt), "loaded")
    assert loads(d, "recomputed") == before
    rest(p, d)


def left_alone(engine: Engine, prompt: list[int], pd: dict[str, Any]) -> http.client.HTTPConnection:
    """A long request whose answer nobody reads; it is aborted when the connection is closed."""
    connection = http.client.HTTPConnection(engine.url.removeprefix("http://"))
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 1200, "ignore_eos": True}
    body |= {"kv_transfer_params": {"pd": pd}}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def computed(engine: Engine) -> float:
    """Prompt tokens that this engine has computed itself."""
    return engine.value("vllm:prompt_tokens_by_source_total{", 'source="local_compute"')


OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_token_ids": True},
    {"stop": ["e "]},
    {"stop": ["th", "ing", "xyz"], "include_stop_str_in_output": True},
    {"min_tokens": 5, "ignore_eos": False},
    {"repetition_penalty": 1.5},
    {"max_tokens": 1},
]


# Reasons for which the proxy holds prefill's token back. No prompt below has more tokens than LONGEST.
HELD_BACK = ("incomplete_text", "stop_string")
LONGEST = 1500


async def test_through_the_proxy_answers_are_plain_vllms(pair: Pair) -> None:
    p, d, count, firsts = pair.p, pair.d, 0, Counter[str]()
    async with fronted([(PingType.PREFILL, p), (PingType.DECODE, d)]) as (proxy, session):
        before, recomputed = computed(d), loads(d, "recomputed")
        turns = itertools.product((1, 40, 700), (False, True))
        for index, (tokens, stream) in enumerate(turns):
            for way, (path, base) in enumerate(ways(tokens)):
                options = OPTIONS[(2 * index + way) % len(OPTIONS)]
                if pair.case.thorough and not stream:  # vLLM compiles for most of a minute before the first ones
                    asked = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
                    options = options | asked
                body = {"model": "tiny", **base, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **options}
                body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
                reply = await post(session, proxy.url, path, body)
                plain = await post(session, p.url, path, body | {"cache_salt": uuid.uuid4().hex})
                assert (reply.status, plain.status) == (200, 200), (body, reply.body, plain.body)
                assert said(reply) == said(plain), body
                times = stages(reply)
                firsts[times.first_token or times.first_token_reason] += 1
                count += 1
        assert firsts["prefill"] >= (count - firsts[NO_IDS]) * 2 // 3, firsts
        assert bool(pair.case.python) or not firsts[NO_IDS], "an engine before 0.32 takes no token ids for a chat"
        assert (await proxy.stats()).handed_off == firsts["prefill"]
        # Of an announced request the token that follows, and of a whole one its last; nothing of a prompt that prefill has, unless
        # its token was held back while its KV went into blocks of the announced request, which landing memory was too short for.
        again = loads(d, "recomputed") - recomputed
        assert again <= sum(number for reason, number in firsts.items() if reason in HELD_BACK), firsts
        assert computed(d) - before <= 2 * count + SMALL + again * LONGEST
    rest(p, d)


async def test_what_two_engines_would_answer_otherwise_is_written_by_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, d = pair.p, pair.d
    async with fronted([(PingType.PREFILL, p), (PingType.DECODE, d)]) as (proxy, session):

        async def shows(reason: str, case: exclusions_vllm.Case, guard: tuple[Any, str]) -> None:
            """Whole with the guard, the answers are plain vLLM's; one of them is not without it."""
            for index, (path, base) in enumerate(case(p)):
                body = {
                    "model": "tiny",
                    "temperature": 0,
                    "max_tokens": 12,
                    "ignore_eos": True,
                    "stream": index % 2 > 0,
                }
                body |= base
                plain = await post(session, p.url, path, body | {"cache_salt": uuid.uuid4().hex})
                if pair.case.python and b"InternalServerError" in plain.body:
                    continue  # another vLLM may fail on it by itself
                kept = await post(session, proxy.url, path, body)
                assert plain.status == 200, plain.body
                assert said(kept) == said(plain), body
                if pair.case.python:
                    continue  # in which fields two engines differ depends on the version
                if (found := stages(kept).first_token_reason) != reason:
                    assert {found, reason} <= exclusions_vllm.HELD_BACK.keys(), body
                    continue
                with monkeypatch.context() as without:
                    without.setattr(*guard, lambda *_, **__: None)
                    apart = await post(session, proxy.url, path, body)
                assert apart.status != 500, "the proxy itself failed, which shows nothing about the engines"
                if apart.status != 200 or said(apart) != said(plain):
                    return
            assert pair.case.python, f"{reason}: no request shows that it must be excluded"

        for reason, case in exclusions_vllm.cases():
            await shows(reason, case, (attempt, "may_hand_off"))
        for reason, case in exclusions_vllm.HELD_BACK.items():
            await shows(reason, case, (first_token, "held_back"))
    rest(p, d)


async def test_engines_that_do_both_share_requests_as_routing_decides(pair: Pair, tmp_path: Path) -> None:
    p, d = pair.p, pair.d
    # A step takes 21 ms by this profile, so there is time for answers alone, but not for prompts beside them, which take 0.5 ms a token.
    profile = tmp_path / "slow-prompts.toml"
    profile.write_text('base = "demo"\n[prefill]\nbase_ms = 12.0\nper_token_ms = 0.5\n')
    tight = {"routing": Routing.ADAPTIVE, "ttft_slo_ms": 60_000.0, "tpot_slo_ms": 22.0, "step_profile": str(profile)}
    bodies = [
        (path, {"model": "tiny", **base, "temperature": 0, "max_tokens": 30, "ignore_eos": True, "stream": stream})
        for stream in (False, True)
        for path, base in ways(300)
    ]
    before = [loads(engine, "loaded") + loads(engine, "cached") for engine in (p, d)]
    recomputed = [loads(engine, "recomputed") for engine in (p, d)]
    async with fronted([(PingType.BOTH, p), (PingType.BOTH, d)], **tight) as (proxy, session):
        replies = await asyncio.gather(*(post(session, proxy.url, path, body) for path, body in bodies))
        for (path, body), reply in zip(bodies, replies, strict=True):
            salted = body | {"cache_salt": uuid.uuid4().hex}
            assert said(reply) == said(await post(session, p.url, path, salted)), (path, body, stages(reply))
    roles = [(stages(reply).prefill_instance, stages(reply).decode_instance) for reply in replies]
    assert any(prefill and prefill != decode for prefill, decode in roles), roles
    assert sum(loads(engine, "loaded") + loads(engine, "cached") for engine in (p, d)) > sum(before)
    assert [loads(engine, "recomputed") for engine in (p, d)] == recomputed
    rest(p, d)


async def test_decode_is_killed_under_streams_which_go_on_when_another_takes_its_place(pair: Pair) -> None:
    assert pair.relay  # else skipped
    p, d = pair.p, pair.d
    kinds: list[dict[str, Any]] = [{}, {"return_token_ids": True}, {"stop": ["qqqqqqqq", "no such"]}]
    asked = [
        (
            path,
            {"model": "tiny", **base, "temperature": 0, "max_tokens": 1800, "ignore_eos": True, "stream": True} | more,
        )
        for (path, base), more in zip(ways(60), kinds, strict=True)
    ]
    async with fronted([(PingType.PREFILL, p), (PingType.DECODE, d)], migrate=True) as (proxy, session):
        streams = [asyncio.create_task(post(session, proxy.url, path, body)) for path, body in asked]
        # A request without a token yet is not migrated: if it fails, its client gets an error.
        await asyncio.to_thread(until, lambda: d.value("vllm:num_requests_running", "") == len(asked), 60, "streams")
        before = d.value("vllm:generation_tokens_total", "")
        await asyncio.to_thread(until, lambda: d.value("vllm:generation_tokens_total", "") > before + 60, 60, "text")
        await asyncio.to_thread(kill_in_mid_transfer, pair)
        assert not any(stream.done() for stream in streams)
        await asyncio.to_thread(lambda: pair.start("d", caching=pair.case.again).ready())
        for (path, body), reply in zip(asked, await asyncio.gather(*streams), strict=True):
            assert said(reply) == said(await post(session, p.url, path, body)), (path, body)
        assert (await proxy.stats()).migrations == len(asked)


def kill_in_mid_transfer(pair: Pair) -> None:
    p, d = pair.p, pair.d
    with pair.relay.holding() as held:
        running = [Later(both, order, p, d, random_prompt(1500, 10)) for order in ("decode first", "official")]
        assert held.wait(60)
        d.kill()
    for one in running:
        with pytest.raises(GONE):
            one.result()

    # Prefill has nobody left to send to, and serves on.
    assert ask(p, random_prompt(33, 10)).tokens == pair.plain(random_prompt(33, 10))
    rest(p)


def test_decode_comes_back_at_the_same_address(pair: Pair) -> None:
    if pair.case.python:  # where there is no relay it was not killed before
        pair.d.kill()
        pair.start("d", caching=pair.case.again).ready()
    for length, order in pair.some((32, 33, 257, 1500)):
        prompt = random_prompt(length, 70 + ORDERS.index(order))
        assert both(order, pair.p, pair.d, prompt)[0] == pair.plain(prompt), (length, order)
    rest(pair.p, pair.d)


def test_cached_beginnings_on_either_side(pair: Pair) -> None:
    p, d = pair.p, pair.d
    common = random_prompt(400, 20)
    ask(p, common, max_tokens=1)
    ask(d, common[:200], max_tokens=1)
    for order, _ in itertools.product(ORDERS, range(2)):  # the second time all of it is cached
        prompt = [*common, *random_prompt(150, 21 + ORDERS.index(order))]
        assert both(order, p, d, prompt)[0] == pair.plain(prompt), order
    rest(p, d)


def test_the_place_holder_never_gets_into_the_prefix_cache(pair: Pair) -> None:
    prompt = random_prompt(63, 31)  # with the place holder it fills two blocks
    both("token follows", pair.p, pair.d, prompt)
    after = [*prompt, PLACE_HOLDER, *random_prompt(40, 32)]

    assert ask(pair.d, after).tokens == pair.plain(after), "a prompt that really has the place holder at that place"


def test_prefill_is_killed_in_mid_transfer(pair: Pair) -> None:
    p, d = pair.p, pair.d
    prompts = [random_prompt(length, 40) for length in (500, 1400, 1500)]
    expected = [pair.plain(prompt) for prompt in prompts]
    keys = [uuid.uuid4().hex for _ in prompts]
    with pair.relay.holding() as held:
        doomed = [Later(ask, d, prompt, {"key": key, "from": p.kv}) for key, prompt in zip(keys, prompts, strict=True)]
        for key, prompt in zip(keys, prompts, strict=True):
            Later(ask, p, prompt, {"key": key, "to": [d.kv]}, max_tokens=1)
        assert held.wait(60)
        p.kill()
    found = [outcome(one) for one in doomed]

    recomputed = [(tokens, "recomputed") for tokens in expected]
    # The one whose step has begun cannot be computed anew.
    assert [one for one in found if one != FAILED] == [
        one for one, was in zip(recomputed, found, strict=True) if was != FAILED
    ]
    assert found.count(FAILED) <= pair.case.soon
    rest(d)


FAILED: tuple[list[int], str] = ([], "failed")


def outcome(running: Later) -> tuple[list[int], str]:
    """The tokens of an answer, and what became of its KV."""
    try:
        answer = running.result()
    except urllib.error.HTTPError as error:
        error.close()
        return [], f"{FAILED[1]} with {error.code}" if error.code != 500 else FAILED[1]
    return answer.tokens, answer.pd["outcome"]


def test_prefill_comes_back_at_the_same_address(pair: Pair) -> None:
    if not pair.case.thorough:
        pytest.skip("takes half a minute; decode's return has been seen")
    for length, order in pair.some((32, 33, 257, 1500)):
        prompt = random_prompt(length, 80 + ORDERS.index(order))
        assert both(order, pair.p, pair.d, prompt)[0] == pair.plain(prompt), (length, order)
    rest(pair.p, pair.d)
