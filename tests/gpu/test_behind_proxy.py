"""On one or two GPUs: P2pConnector behind the proxy. Answers are plain vLLM's, streams of a killed decode go on, and no client hangs.

Run by hand where vLLM is installed: `pytest -m gpu tests/gpu/test_behind_proxy.py`, or `-k exact` for one deployment. OUT is the folder for logs
and results; GPU_MODEL may name a model whose token ids below 1000 are ordinary ones. The killed streams need one that is batch-invariant: on an H200
with vLLM 0.33 the default model is not (two undisturbed runs differ in 77 of 200 streams, so that test fails in its control), and eight layers
of Llama's shape are (`benchmarks/gpu/shape.py llama-3.1-8b FOLDER --layers 8 --random`). REHEARSE=1
runs it on simulators, REHEARSE=cpu on vLLM's CPU engine.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.answers import random_prompt
from support.connector_gpu import gap_to_best
from support.gpu import gpus
from support.gpu_stand import (
    CACHE,
    REHEARSE,
    SIMULATED,
    STEPS,
    Clients,
    Engine,
    Fleet,
    Got,
    Kind,
    Place,
    Stand,
    apart,
    bodies_of,
    record,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]

LENGTHS = (1, 15, 16, 17, 37, 512, 1000, 2048, 4000)
OUTPUT_TOKENS = 24
STREAMS, STREAM_TOKENS = (200, 300) if REHEARSE != "cpu" else (12, 60)
LOAD, LOAD_TOKENS = (48, 200) if REHEARSE != "cpu" else (8, 60)
KILLS = int(os.environ.get("KILLS", "10"))
KILL_S = float(os.environ.get("KILL_S", "240"))
FIRST, SECOND = "0", "1" if SIMULATED or gpus() > 1 else "0"
MIGRATE = {"MIGRATE": "on"}
# Sums in the same order whatever else is in the batch and however many tokens a step has. With vLLM's default compilation two of three
# moved streams parted all the same (0.33, H200), so there is none; graphs are of decode alone.
MODE = """--compilation-config '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128]}'"""
INVARIANT = {"VLLM_BATCH_INVARIANT": "1", "ENGINE_ARGS": f"{STEPS} {MODE} {CACHE}"} if REHEARSE != "cpu" else {}
# Logits of Llama's shape with random weights are between 16 and 32, where float16 has steps of 1/64.
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "pair",
            (
                Place("pair-p", "prefill", FIRST),
                Place("pair-d0", "decode", SECOND),
                Place("pair-d1", "decode", FIRST, 1),
            ),
            plain=SECOND,
            proxy=MIGRATE,
            tie_nats=0.0625,
        ),
        Kind(
            "exact",
            tuple(Place(f"exact-{role[0]}{n}", role, FIRST, n) for role in ("prefill", "decode") for n in range(3)),
            plain=FIRST,
            engines=INVARIANT,
            proxy=MIGRATE,
            tie_nats=0.0,
        ),
    )
}
MIGRATING = ["exact", "pair"]
DRAWN = ({"temperature": 0.8}, {"temperature": 1.2, "top_p": 0.9}, {"temperature": 1.0, "top_k": 20, "min_p": 0.02})


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every stand that a selected test needs."""
    if not REHEARSE and not gpus():
        pytest.skip("needs an NVIDIA GPU")
    selected = {item.callspec.params.get("stand") for item in request.session.items if hasattr(item, "callspec")}
    scratch = tmp_path_factory.mktemp("gpu")
    found = Fleet(
        [kind for name, kind in KINDS.items() if name in selected], Path(os.environ.get("OUT") or scratch), scratch
    )
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def stand(request: pytest.FixtureRequest, fleet: Fleet) -> Stand:
    """The deployment of a case; all of it serves."""
    found = fleet.stands[request.param]
    found.ready()  # also after a test that has left one in its start
    return found


def greedy(length: int, *, streamed: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": random_prompt(length, 0), "max_tokens": OUTPUT_TOKENS, "temperature": 0}
    return {**body, "ignore_eos": True, "return_token_ids": True, "stream": streamed}


def ask(url: str, bodies: Sequence[dict[str, Any]]) -> list[Got]:
    return asyncio.run(Clients(url).all(bodies))


def judged(stand: Stand, found: Sequence[Got], expected: Sequence[Got]) -> list[tuple[int, int, float]]:
    """Where answers part from the expected ones: the prompt's length, after how many tokens, and by how much the expected token is likelier (nats).

    Of two tokens as good as equal rounding decides. Draws have no such measure: NaN.
    """
    parted = []
    for got, plain in zip(found, expected, strict=True):
        at = apart(got, plain) if got.whole and plain.whole else None
        if at is not None and "seed" in got.body:
            parted.append((len(got.body["prompt"]), at, float("nan")))
        elif at is not None:
            gap = gap_to_best(stand.reference, got.body["prompt"] + plain.tokens[:at], got.tokens[at])
            parted.append((len(got.body["prompt"]), at, gap))
    return parted


def as_plain(stand: Stand, found: Sequence[Got], expected: Sequence[Got]) -> list[tuple[int, int, float]]:
    """All are whole, and those that part from plain vLLM's do so only between two tokens that are as good as equal."""
    assert all(got.whole and len(got.tokens) == got.body["max_tokens"] for got in (*found, *expected)), found
    parted = judged(stand, found, expected)
    assert all(gap <= stand.kind.tie_nats for *_, gap in parted), parted
    return parted


def parity(stand: Stand) -> list[tuple[int, int, float]]:
    """One by one and all at once, streamed and not; gives where answers part from plain vLLM's, at ties."""
    ties = []
    for streamed in (False, True):
        bodies = [greedy(length, streamed=streamed) for length in LENGTHS]
        expected = [ask(stand.reference.url, [body])[0] for body in bodies]
        record(
            "plain beside itself",
            kind=stand.kind.name,
            parted=judged(stand, ask(stand.reference.url, bodies), expected),
        )
        ties += as_plain(stand, [ask(stand.url, [body])[0] for body in bodies], expected)
        ties += as_plain(stand, ask(stand.url, bodies), expected)
    return ties


@pytest.mark.parametrize("stand", list(KINDS), indirect=True)
def test_answers_are_those_of_plain_vllm(stand: Stand) -> None:
    before = {instance["name"]: instance["requests"] for instance in stand.stats()["instances"]}
    began = time.monotonic()
    ties = parity(stand)
    seconds = round(time.monotonic() - began, 1)
    asked = 4 * len(LENGTHS)
    sent = {"prefill": 0, "decode": 0}
    for instance in stand.stats()["instances"]:
        sent[instance["role"]] += instance["requests"] - before[instance["name"]]
    series = {name: engine.series() for name, engine in stand.engines.items()}
    loads = sum(values.get('pd_kv_loads_total outcome="loaded"', 0) for values in series.values())
    moved = {key.rpartition(" ")[2] for values in series.values() for key in values if "received_bytes" in key}
    record(
        "parity",
        kind=stand.kind.name,
        answers=asked,
        ties=ties,
        seconds=seconds,
        sent=sent,
        loads=loads,
        by=sorted(moved),
    )
    # Decode is asked once more where prefill's token is half a character.
    assert sent["prefill"] == asked <= sent["decode"]
    assert len(ties) <= asked // 2
    if not SIMULATED:
        assert loads >= asked - 4, "of one token there may be nothing to load; all else must come from prefill"
        assert moved == {f'transport="{"tcp" if REHEARSE else "vmm"}"'}
    stand.nothing_left()


def seeded(number: int, length: int, *, streamed: bool) -> dict[str, Any]:
    return greedy(length, streamed=streamed) | DRAWN[number % len(DRAWN)] | {"seed": 77 + number}


@pytest.mark.skipif(REHEARSE == "cpu", reason="a seed ends vLLM 0.32's CPU engine")
@pytest.mark.parametrize("stand", ["exact"], indirect=True)
def test_seeded_answers_are_those_of_plain_vllm_with_a_first_token_of_prefills(stand: Stand) -> None:
    before, others = stand.stats()["handed_off"], 0
    for streamed in (False, True):
        bodies = [seeded(number, length, streamed=streamed) for number, length in enumerate(LENGTHS)]
        expected = [ask(stand.reference.url, [body])[0] for body in bodies]
        as_plain(stand, [ask(stand.url, [body])[0] for body in bodies], expected)
        as_plain(stand, ask(stand.url, bodies), expected)
        otherwise = ask(stand.reference.url, [body | {"seed": body["seed"] + 1000} for body in bodies])
        others += sum(apart(*two) is not None for two in zip(otherwise, expected, strict=True))
    asked, handed_off = 4 * len(LENGTHS), stand.stats()["handed_off"] - before
    record("seeded", kind=stand.kind.name, answers=asked, handed_off=handed_off, other_seeds_differ=others)
    # Decode writes all of it where prefill's token is half a character.
    assert handed_off > asked // 2
    assert others > len(LENGTHS), "a seed must matter, or this shows nothing"
    stand.nothing_left()


async def disturbed(url: str, bodies: Sequence[dict[str, Any]], share: float, victim: Engine) -> tuple[list[Got], int]:
    """Ask, and kill an engine once the clients have that share of all tokens."""
    clients = Clients(url)
    running = asyncio.create_task(clients.all(bodies))
    goal = share * sum(body["max_tokens"] for body in bodies)
    while clients.written < goal and not running.done():  # noqa: ASYNC110  clients count as they read
        await asyncio.sleep(0.002)
    written = clients.written
    victim.kill()
    return await running, written


def continued(stand: Stand, answers: Sequence[Got]) -> list[bool]:
    """Whether a plain engine that is given prompt and first tokens of an answer writes another end than that answer has: rounding alone."""
    bodies = []
    for got in answers:
        cut = len(got.tokens) // 3
        bodies.append(
            {**got.body, "prompt": got.body["prompt"] + got.tokens[:cut], "max_tokens": len(got.tokens) - cut}
        )
    again = ask(stand.reference.url, bodies)
    assert all(got.whole for got in again)
    return [one.tokens != two.tokens[-len(one.tokens) :] for one, two in zip(again, answers, strict=True)]


@pytest.mark.parametrize("stand", MIGRATING, indirect=True)
def test_streams_of_a_killed_decode_go_on_as_if_nothing_had_happened(stand: Stand) -> None:
    bodies = bodies_of(STREAMS, 1, STREAM_TOKENS)
    undisturbed, again = ask(stand.url, bodies), ask(stand.url, bodies)
    assert all(got.whole for got in (*undisturbed, *again))
    before, victim = stand.stats()["migrations"], stand.of("decode")[-1]

    found, written = asyncio.run(disturbed(stand.url, bodies, 0.3, victim))
    victim.start()

    moved = stand.stats()["migrations"] - before
    seeded = ["seed" in body for body in bodies]
    differ = [apart(*two) is not None for two in zip(found, undisturbed, strict=True)]
    control = [apart(*two) is not None for two in zip(again, undisturbed, strict=True)]
    rounded = continued(stand, undisturbed)
    gaps = [gap for *_, gap in judged(stand, found, undisturbed) if gap == gap]  # noqa: PLR0124  not those of draws

    def both(of: Sequence[bool]) -> dict[str, int]:
        return {
            "greedy": sum(one and not two for one, two in zip(of, seeded, strict=True)),
            "seeded": sum(one and two for one, two in zip(of, seeded, strict=True)),
        }

    record(
        "a decode killed under streams",
        kind=stand.kind.name,
        streams=len(bodies),
        seeded=sum(seeded),
        tokens=sum(len(got.tokens) for got in found),
        killed_at=written,
        migrated=moved,
        whole=sum(got.whole for got in found),
        not_whole=[(got.status, got.error, got.broken, len(got.tokens)) for got in found if not got.whole][:10],
        differ=both(differ),
        differ_undisturbed=both(control),
        differ_when_a_plain_engine_goes_on=both(rounded),
        greedy_gaps=sorted(gaps)[-10:],
        longest_pause_s=round(max(got.longest_pause for got in found), 2),
        longest_pause_undisturbed_s=round(max(got.longest_pause for got in undisturbed), 2),
        seconds=round(max(got.seconds for got in found), 1),
        seconds_undisturbed=round(max(got.seconds for got in undisturbed), 1),
    )
    assert all(got.whole and len(got.tokens) == STREAM_TOKENS for got in found)
    assert moved > STREAMS // 10
    if stand.kind.tie_nats == 0:
        assert not any(control), "this model is not batch-invariant here: see GPU_MODEL above"
        assert not any(rounded), "an engine that goes on rounds otherwise than one that has written it all"
        assert not any(differ)
    assert all(gap <= stand.kind.tie_nats for gap in gaps)
    # A third of the streams move, and all of `rounded` do.
    assert sum(differ) <= sum(control) + sum(rounded)
    stand.all_serve()
    stand.nothing_left()


def can_lose(stand: Stand, victim: Engine) -> bool:
    """Whether it serves, and another one of its role does."""
    alike = [engine for engine in stand.of(victim.place.role) if stand.serves(engine)]
    return victim in alike and len(alike) > 1


@pytest.mark.parametrize("stand", ["exact"], indirect=True)
def test_engines_killed_one_after_the_other_cost_no_client_anything(stand: Stand) -> None:
    bodies = bodies_of(LOAD, 2, LOAD_TOKENS) + bodies_of(LOAD // 4, 3, LOAD_TOKENS, streamed=False)
    expected = ask(stand.url, bodies)
    assert all(got.whole for got in expected)
    end, kills, parted, lost = time.monotonic() + KILL_S, 0, [], 0
    victims = itertools.cycle(
        [engine for pair in zip(stand.of("prefill"), stand.of("decode"), strict=True) for engine in pair]
    )
    shares = itertools.cycle((0.02, 0.3, 0.1, 0.5))
    for victim, share in zip(victims, shares, strict=False):
        while not can_lose(stand, victim) and time.monotonic() < end:
            time.sleep(0.3)
        if kills == KILLS or time.monotonic() > end:
            break
        found, written = asyncio.run(disturbed(stand.url, bodies, share, victim))
        victim.start()
        kills += 1
        lost += sum(not got.whole for got in found)
        parted += (differ := judged(stand, found, expected))
        record(
            "kill -9",
            number=kills,
            of=victim.place.name,
            killed_at=written,
            answers=len(found),
            whole=sum(got.whole for got in found),
            not_whole=[(got.status, got.error, got.broken, bool(got.body["stream"])) for got in found if not got.whole][
                :10
            ],
            hang=sum("hangs" in got.broken for got in found),
            parted=differ[:12],
            migrations=stand.stats()["migrations"],
            retries=stand.stats()["retries"],
            slowest_s=round(max(got.seconds for got in found), 1),
            slowest_undisturbed_s=round(max(got.seconds for got in expected), 1),
        )
        assert all(got.promised for got in found)
    assert kills >= min(KILLS, 2)
    stand.all_serve()
    record(
        "after the kills",
        kills=kills,
        starts=sum(engine.starts for engine in stand.engines.values()),
        parted=parity(stand),
    )
    stand.nothing_left()
    assert not lost
    assert not parted


@pytest.mark.parametrize("stand", ["pair"], indirect=True)
def test_the_only_prefill_is_killed(stand: Stand) -> None:
    bodies = bodies_of(LOAD, 4, LOAD_TOKENS) + bodies_of(LOAD // 4, 5, LOAD_TOKENS, streamed=False)
    (victim,) = stand.of("prefill")
    found, written = asyncio.run(disturbed(stand.url, bodies, 0.02, victim))
    victim.start()
    record(
        "the only prefill killed",
        killed_at=written,
        answers=len(found),
        whole=sum(got.whole for got in found),
        errors=sum(not got.whole and got.promised for got in found),
        neither=[(got.status, got.error, got.broken) for got in found if not got.promised][:10],
        slowest_s=round(max(got.seconds for got in found), 1),
    )
    assert all(got.promised for got in found)
    stand.all_serve()
    record("after the only prefill was killed", ties=parity(stand))
    stand.nothing_left()
