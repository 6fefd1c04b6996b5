"""The time of a request by stage, and whose fault a failure is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.errors import BadRequestError, DisconnectedError, NoInstanceError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.trace import Trace

TIMES = st.lists(st.floats(0, 1000), min_size=5, max_size=5).map(sorted)


@given(TIMES, st.booleans())
def test_stages_sum_to_the_whole_time(times: list[float], disaggregated: bool) -> None:
    arrived, dispatched, prefilled, first, last = times
    trace = Trace(Endpoint.COMPLETIONS, arrived=arrived, dispatched=dispatched, first_byte=first, decode="d")
    trace.prefilled = prefilled if disaggregated else None
    stages = trace.stages(last)
    total = stages.queue + stages.prefill + stages.kv_and_first_decode + stages.decode
    assert total == pytest.approx((last - arrived) * 1e3, abs=0.01)
    assert disaggregated or stages.prefill == 0


def test_time_before_anything_happened_is_queue() -> None:
    stages = Trace(Endpoint.COMPLETIONS, arrived=1.0).stages(3.0)
    assert (stages.queue, stages.prefill, stages.kv_and_first_decode, stages.decode) == (2000, 0, 0, 0)


def test_faults_of_clients_are_not_the_servers() -> None:
    bad, gone, none, cut = (Trace(Endpoint.COMPLETIONS) for _ in range(4))
    bad.fail(BadRequestError("x"))
    gone.left()
    none.fail(NoInstanceError("x"))
    cut.status = 200
    cut.fail(DisconnectedError("x"))
    assert [(t.status, t.server_fault) for t in (bad, gone, none, cut)] == [
        (400, False),
        (499, False),
        (503, True),
        (200, True),
    ]


def test_a_complete_request_was_not_left() -> None:
    trace = Trace(Endpoint.COMPLETIONS, status=200, complete=True)
    trace.left()
    assert trace.cause == ""
