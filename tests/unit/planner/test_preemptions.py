"""The planner's event loop preempts whom vLLM preempted, and writes first and last tokens in the same steps."""

import msgspec
import pytest
from support.planning import H200
from support.preemptions import ROOM, SEQUENCES, STEP_TOKENS, Planned, recorded, steps_of

from pd_planner.des.deployment import simulate
from pd_planner.traffic.load import Load
from pd_simulator.profile import Decode, Launch, Mixed, Prefill, Profile
from pd_simulator.steps.engines import Engines

ENGINES = Engines(0, 1, None, ROOM, max_num_seqs=SEQUENCES, max_num_batched_tokens=STEP_TOKENS)


def a_second_a_step(*, async_scheduling: bool) -> Profile:
    """Every step takes one second, whatever it computes."""
    return msgspec.structs.replace(
        H200,
        async_scheduling=async_scheduling,
        api_ms=0.0,
        launch=Launch(),
        prefill=Prefill(base_ms=1000, per_token_ms=0, per_pair_ns=0),
        decode=Decode(base_ms=1000, per_sequence_ms=0, per_context_token_ms=0),
        combined=None,
        mixed=Mixed(overlap_ms=1000, prefill_token_share=1.0),
    )


@pytest.mark.parametrize("run", recorded())
def test_first_and_last_tokens_and_preemptions_are_vllms(run: Planned) -> None:
    # Step n begins at n seconds, and is planned then, or when the step before begins.
    ahead = 1.5 if run.async_scheduling else 0.5
    at = [max(0.0, asked.seen - ahead) for asked in run.requests]
    load = Load.of(at, [asked.prompt for asked in run.requests], [asked.output for asked in run.requests])

    found = simulate(a_second_a_step(async_scheduling=run.async_scheduling), ENGINES, load)

    wanted = steps_of(run)
    assert (found.first.round(6) - 1).tolist() == wanted.first
    assert (found.last.round(6) - 1).tolist() == wanted.last
    assert found.preempted.tolist() == [len(steps) for steps in wanted.preempted]
