"""The step model's arithmetic, on round numbers."""

import msgspec
import pytest

from pd_contracts.names import Connector, Role
from pd_simulator.profile import Decode, Handoff, Mixed, Prefill, Profile, load_profile
from pd_simulator.steps.step_time import Sent, StepModel, StepWork


@pytest.fixture(name="profile")
def _profile() -> Profile:
    return load_profile("slow-exact")


def seconds(profile: Profile, work: StepWork, connector: Connector | None = None) -> float:
    return StepModel(profile, connector).step(work).seconds


def test_prompt_tokens_cost_a_base_and_their_number(profile: Profile) -> None:
    assert seconds(profile, StepWork(prefill_tokens=512)) == pytest.approx(0.150 + 0.0001 * 512)


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_decodes_cost_a_base_and_their_number(profile: Profile, batch: int) -> None:
    assert seconds(profile, StepWork(decodes=batch)) == pytest.approx(0.018 + 0.002 * batch)


def test_decodes_cost_what_they_look_back_on(profile: Profile) -> None:
    decode = msgspec.structs.replace(profile.decode, per_context_token_ms=0.01)
    longer = msgspec.structs.replace(profile, decode=decode)

    assert seconds(longer, StepWork(decodes=2, context_tokens=3000)) == pytest.approx(0.022 + 0.030)


def test_a_step_with_both_takes_their_sum(profile: Profile) -> None:
    assert seconds(profile, StepWork(prefill_tokens=1000, decodes=4)) == pytest.approx(0.250 + 0.026)


def test_what_a_mixed_step_saves_is_saved_only_in_a_mixed_step(profile: Profile) -> None:
    saving = msgspec.structs.replace(profile, mixed=Mixed(overlap_ms=10, prefill_token_share=0.5))

    assert seconds(saving, StepWork(prefill_tokens=1000, decodes=4)) == pytest.approx(0.200 + 0.026 - 0.010)
    assert seconds(saving, StepWork(prefill_tokens=1000)) == pytest.approx(0.250)


def test_an_empty_step_takes_no_time(profile: Profile) -> None:
    assert seconds(profile, StepWork()) == 0


def test_loading_kv_holds_the_step_up(profile: Profile) -> None:
    assert seconds(profile, StepWork(decodes=1, stall_s=0.5)) == pytest.approx(0.520)


def sending(profile: Profile, handoff: Handoff) -> Profile:
    return msgspec.structs.replace(profile, handoff={Connector.P2P_NCCL: handoff})


def test_hand_shakes_cost_only_what_the_compute_does_not_cover(profile: Profile) -> None:
    slow = sending(profile, Handoff(send_floor_ms=200, send_tail_ms=5, send_tail_per_token_ms=0.01))

    short = seconds(slow, StepWork(prefill_tokens=100, sent=(Sent(100),)), Connector.P2P_NCCL)
    long = seconds(slow, StepWork(prefill_tokens=1000, sent=(Sent(1000),)), Connector.P2P_NCCL)
    two = seconds(slow, StepWork(prefill_tokens=200, sent=(Sent(100), Sent(100))), Connector.P2P_NCCL)

    assert short == pytest.approx(0.200 + 0.005 + 0.001)
    assert long == pytest.approx(0.250 + 0.005 + 0.010)
    assert two == pytest.approx(0.400 + 0.005 + 0.002)  # the tail is the step's, not each request's


def test_a_step_that_sends_has_a_hand_shake_of_its_own_beside_those_of_its_requests(profile: Profile) -> None:
    slow = sending(profile, Handoff(send_floor_ms=100, send_floor_per_step_ms=150))

    def took(requests: int) -> float:
        work = StepWork(prefill_tokens=100, sent=tuple(Sent(100) for _ in range(requests)))
        return seconds(slow, work, Connector.P2P_NCCL)

    assert took(1) == pytest.approx(0.250)
    assert took(2) == pytest.approx(0.350)


def test_every_further_receiver_of_a_step_costs_each_of_its_requests(profile: Profile) -> None:
    slow = sending(profile, Handoff(send_floor_ms=200, send_floor_per_peer_ms=30))

    def took(*peers: int) -> float:
        sent = tuple(Sent(100, peer) for peer in peers)
        return seconds(slow, StepWork(prefill_tokens=100, sent=sent), Connector.P2P_NCCL)

    assert took(1) == pytest.approx(0.200)
    assert took(1, 1) == pytest.approx(0.400)
    assert took(1, 2) == pytest.approx(0.460)
    assert took(1, 2, 3) == pytest.approx(3 * 0.260)


def test_short_kv_loads_beside_the_step(profile: Profile) -> None:
    model = StepModel(
        sending(profile, Handoff(stall_ms=2, stall_per_token_ms=0.01, stall_free_tokens=300)), Connector.P2P_NCCL
    )

    assert [model.stall_s(tokens) for tokens in (100, 300, 1300)] == pytest.approx([0.002, 0.002, 0.012])


def test_attention_grows_with_the_square_of_a_prompt(profile: Profile) -> None:
    quadratic = msgspec.structs.replace(profile, prefill=Prefill(base_ms=0, per_token_ms=0, per_pair_ns=2))

    assert seconds(quadratic, StepWork(prefill_tokens=1000, prefill_pairs=500_000)) == pytest.approx(0.001)


def test_plain_engines_decode_at_their_own_cost(profile: Profile) -> None:
    both = msgspec.structs.replace(profile, combined=Decode(base_ms=10, per_sequence_ms=1))
    work = StepWork(decodes=5)

    assert StepModel(both, None).step(work).seconds == pytest.approx(0.015)
    assert StepModel(both, None, role=Role.COMBINED).step(work).seconds == pytest.approx(0.015)
    assert StepModel(both, Connector.NIXL, role=Role.DECODE).step(work).seconds == pytest.approx(0.028)


def test_an_engine_without_a_connector_hands_nothing_over(profile: Profile) -> None:
    model = StepModel(profile, None)

    assert model.stall_s(1000) == model.wait_s(1000) == 0


def test_the_board_is_told_how_long_a_step_computes(profile: Profile) -> None:
    step = StepModel(profile, None).step(StepWork(prefill_tokens=1000, decodes=4, stall_s=0.1))

    assert (step.prefill_s, step.decode_s) == pytest.approx((0.250, 0.026))
    assert step.seconds == pytest.approx(step.prefill_s + step.decode_s + 0.1)
