"""The planner's event loop gives the same steps as the simulator's scheduler; it is fast because it skips steps, not because it approximates."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import H200, crowded, deployments, loads, oracle, poisson

from pd_contracts.names import Connector, Role
from pd_planner.des import decoding
from pd_planner.des.compiled import COMPILED, cache_folder
from pd_planner.des.deployment import round_robin, simulate
from pd_planner.des.model import BATCH, DECODES, PROMPTS, TRANSFER
from pd_planner.des.power import shares, watts, watts_by_role
from pd_planner.profile.numbers import changed
from pd_planner.traffic.load import Load
from pd_simulator.profile import Launch, Profile
from pd_simulator.steps.engines import Engines, Order

PLAIN = Engines(0, 1, None, 152_000)


@given(deployments(), loads())
@settings(max_examples=150, deadline=None)
def test_the_planner_equals_the_simulators_scheduler(engines: Engines, load: Load) -> None:
    outcome = simulate(H200, engines, load)

    first, last = oracle(H200, engines, load)
    np.testing.assert_allclose(outcome.first, first, rtol=0, atol=1e-7)
    np.testing.assert_allclose(outcome.last, last, rtol=0, atol=1e-7)


@given(st.sampled_from([0.0, 8.0, 60.0]), deployments([Connector.P2P_NCCL]), loads())
@settings(max_examples=60, deadline=None)
def test_a_steps_own_hand_shake_is_the_simulators(hand_shake_ms: float, engines: Engines, load: Load) -> None:
    shaken = changed(H200, {"handoff.P2pNcclConnector.send_floor_per_step_ms": hand_shake_ms})
    outcome = simulate(shaken, engines, load)

    first, last = oracle(shaken, engines, load)
    np.testing.assert_allclose(outcome.first, first, rtol=0, atol=1e-7)
    np.testing.assert_allclose(outcome.last, last, rtol=0, atol=1e-7)


@given(crowded())
@settings(max_examples=150, deadline=None)
def test_it_preempts_as_the_simulators_scheduler(crowd: tuple[Engines, Load]) -> None:
    engines, load = crowd
    outcome = simulate(H200, engines, load)

    first, last = oracle(H200, engines, load)
    np.testing.assert_allclose(outcome.first, first, rtol=0, atol=1e-7)
    np.testing.assert_allclose(outcome.last, last, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("connector", "engines"),
    [(None, 0), (Connector.NIXL, 1), (Connector.P2P, 1), (Connector.P2P_NCCL, 1), (Connector.EXAMPLE, 1)],
)
def test_a_preempted_answer_comes_late(connector: Connector | None, engines: int) -> None:
    """Two answers grow until their KV no longer fits; the second waits for the end of the first."""
    load = Load.of([0.0, 0.0], 1600, 800)
    roomy, full = (Engines(engines, 1, connector, room) for room in (4800, 4000))
    free, crowded = (simulate(H200, each, load) for each in (roomy, full))

    assert free.preempted.tolist() == [0, 0]
    assert crowded.preempted.tolist() == [0, 1]
    assert crowded.last[0] < free.last[0]  # alone in the batch from then on
    assert crowded.last[1] > free.last[1] + 1.0
    np.testing.assert_allclose(crowded.first, free.first)
    np.testing.assert_allclose(crowded.last, oracle(H200, full, load)[1])


def test_who_hands_over_once_computes_a_preempted_prompt_again() -> None:
    load = Load.of([0.0, 0.0], 1600, 800)

    def computed(connector: Connector) -> float:
        return float(simulate(H200, Engines(1, 1, connector, 4000), load).busy[1][PROMPTS])

    assert min(computed(Connector.NIXL), computed(Connector.P2P)) > 40
    assert 0 < max(computed(Connector.EXAMPLE), computed(Connector.P2P_NCCL)) < 20  # only what had been written


def test_the_planner_equals_it_without_numba_too() -> None:
    code = """
import sys
sys.modules["numba"] = None
import hypothesis
from pd_planner.des.compiled import COMPILED
from pd_planner.des.deployment import simulate
from support.planning import H200, crowded, deployments, loads, oracle
from hypothesis import strategies as st
assert not COMPILED

@hypothesis.given(st.tuples(deployments(), loads()) | crowded())
@hypothesis.settings(max_examples=60, deadline=None, database=None)
def check(crowd):
    engines, load = crowd
    outcome = simulate(H200, engines, load)
    first, last = oracle(H200, engines, load)
    assert abs(outcome.first - first).max() < 1e-7 and abs(outcome.last - last).max() < 1e-7

check()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, cwd="tests"
    )

    assert done.returncode == 0, done.stderr


def test_the_tests_have_numba() -> None:
    assert COMPILED


def test_compiled_code_of_other_sources_is_never_run(tmp_path: Path) -> None:
    inner = tmp_path / "inner.py"
    (tmp_path / "outer.py").write_text("import inner")
    inner.write_text("one = 1")
    before = cache_folder(tmp_path, "")
    inner.write_text("one = 2")

    assert cache_folder(tmp_path, "") != before
    assert cache_folder(tmp_path, "/kept").parent == Path("/kept")
    assert (
        f"/{cache_folder(Path(decoding.__file__).parent, '').name}/"
        in f"{cast('Any', decoding.serve).stats.cache_path}/"
    )


SLOW = msgspec.structs.replace(H200, launch=Launch(ms=[30.0], tail_ms=2.0))


def test_short_prompts_beside_decodes_wait_for_their_launch() -> None:
    # The second prompt is computed beside the first answer: with it, a step has more than 512 tokens, and is launched kernel by kernel.
    load = Load.of([0.0, 0.1], [512, 512], [100, 2])
    free, slow = (simulate(profile, PLAIN, load) for profile in (_free(), SLOW))

    assert slow.first[0] == free.first[0]  # alone, it is one CUDA graph
    step = H200.decode_of(Role.COMBINED).base_ms + 0.1
    assert 30 + 2 - 2 * step < 1e3 * (slow.last[0] - free.last[0]) + _beside(512) < 30 + 2


def test_a_launch_is_hidden_by_a_long_prompt() -> None:
    load = Load.of([0.0, 0.1], [2048, 2048], [100, 2])
    free, slow = (simulate(profile, PLAIN, load) for profile in (_free(), SLOW))

    np.testing.assert_allclose(slow.last, free.last)


def test_tokens_wait_while_the_next_step_is_launched() -> None:
    # The second request's first token is written just before the third prompt's step is launched.
    alone, followed = (simulate(SLOW, PLAIN, Load.of(at, 512, 100)).first[1] for at in ([0.0, 0.1], [0.0, 0.1, 0.125]))

    assert followed - alone == pytest.approx(0.028, abs=0.003)


def test_a_processor_is_not_always_equally_fast() -> None:
    varied = msgspec.structs.replace(H200, launch=Launch(ms=[12.0, 40.0], tail_ms=2.0, period_s=1.0))
    load = poisson(20, 20, 512, 64)

    outcomes = [simulate(varied, PLAIN, load, processors=number) for number in (0, 0, 1)]

    assert (outcomes[0].last == outcomes[1].last).all()
    assert (outcomes[0].last != outcomes[2].last).any()


def _free() -> Profile:
    return msgspec.structs.replace(H200, launch=Launch())


def _beside(tokens: int) -> float:
    """What a prompt adds to a step with decodes, milliseconds."""
    cost, mixed = H200.prefill, H200.mixed
    return cost.base_ms - mixed.overlap_ms + mixed.prefill_token_share * cost.per_token_ms * tokens


def test_late_answers_are_seen_on_a_busy_prefill_engine() -> None:
    # KV_BATCHED sends beside the next step, and yet prefill answers later than NIXL's on the same load: its answers come a step late.
    load = poisson(14, 30, 2048, 128)

    def waited(connector: Connector, *, batched: bool = False) -> float:
        outcome = simulate(H200, Engines(1, 1, connector, 152_000, batched=batched), load)
        return float(np.median(outcome.answered - load.at))

    assert waited(Connector.P2P_NCCL, batched=True) > 1.5 * waited(Connector.NIXL)


def test_with_hand_off_the_client_has_prefills_token() -> None:
    load = Load.of([0.0, 5.0], [512, 512], [64, 1])
    asked, handed_off = (
        simulate(H200, Engines(1, 1, Connector.P2P, 152_000, order=order), load)
        for order in (Order.AT_ONCE, Order.HAND_OFF)
    )

    relay = H200.handoff[Connector.P2P].first_token_ms / 1e3
    np.testing.assert_allclose(handed_off.first, handed_off.answered + relay)
    assert handed_off.last[1] == handed_off.first[1]  # prefill's token was the whole answer
    assert asked.last[1] > asked.answered[1] + H200.decode.base_ms / 1e3
    assert handed_off.last[0] < asked.last[0]  # decode had one token less to write


def test_an_order_needs_a_connector_that_can_do_it() -> None:
    with pytest.raises(ValueError, match="with NixlConnector decode gets a request after prefill"):
        Engines(1, 1, Connector.NIXL, 152_000, order=Order.HAND_OFF)


def test_pairs_are_taken_as_the_proxy_takes_them() -> None:
    engines = Engines(2, 2, Connector.NIXL, 152_000)

    route = round_robin(engines, 9)

    assert list(zip(route.prefill.tolist(), route.other.tolist(), strict=True)) == [
        (0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 0), (0, 0),
    ]  # fmt: skip
    assert [engines.turn(number) for number in range(9)] == list(
        zip(route.prefill.tolist(), route.other.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("engines", "lengths", "reason"),
    [
        (Engines(0, 1, None, 1000), (900, 200), "900 \\+ 200 tokens do not fit"),
        (Engines(1, 1, Connector.P2P_NCCL, 90_000), (9000, 5), "computes a prompt in one step, and 9000 tokens"),
        (Engines(1, 1, Connector.NIXL, 90_000), (9000, 5), "^$"),
    ],
)
def test_what_could_never_be_served_is_said(engines: Engines, lengths: tuple[int, int], reason: str) -> None:
    assert re.search(reason, engines.refusal(*lengths))
    if engines.refusal(*lengths):
        with pytest.raises(ValueError, match=reason):
            oracle(H200, engines, Load.of([0.0], *lengths))


def test_a_batch_of_sequences_without_room_for_their_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(100\) is below max_num_seqs \(256\)"):
        Engines(0, 1, None, 1000, max_num_batched_tokens=100)


def test_busy_times_are_those_of_the_steps() -> None:
    # One request: a prompt, then 63 decode steps of a batch of one.
    outcome = simulate(H200, PLAIN, Load.of([0.0], 512, 64))

    busy = outcome.busy[0]
    assert busy[PROMPTS] + busy[DECODES] == pytest.approx(1e3 * outcome.last[0] - H200.api_ms)
    assert busy[BATCH] == pytest.approx(busy[DECODES])
    assert busy[TRANSFER] == 0


def test_power_follows_from_what_engines_did() -> None:
    outcome = simulate(H200, PLAIN, poisson(20, 20, 512, 64))
    seconds = float(outcome.last.max())

    drawn = watts_by_role(H200.power, outcome, 0, seconds)[Role.COMBINED]

    draw, share = H200.power.combined, shares(outcome.busy, seconds)[0]
    assert 0 < share[0] < 1
    assert 0 < share[1] < 1
    wanted = draw.idle_w + draw.prefill_w * share[0] + draw.decode_w * share[1] + draw.per_sequence_w * share[2]
    assert drawn == pytest.approx(wanted)


def test_no_board_draws_more_than_its_limit_on_average() -> None:
    assert watts(H200.power, Role.PREFILL, np.array([[1.0, 0.0, 0.0]]))[0] == H200.power.limit_w
    assert watts(H200.power, Role.PREFILL, np.zeros((1, 3)))[0] == H200.power.prefill.idle_w
