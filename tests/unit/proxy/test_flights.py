"""Judging from waiting requests whether an engine has stalled."""

import pytest

from pd_proxy.upstream.flights import Verdict, earliest, verdict

LIMIT = 10.0


@pytest.mark.parametrize(
    ("waits", "last_progress", "expected"),
    [
        ([], 0.0, Verdict.MOVING),
        ([(95.0, False)], 0.0, Verdict.MOVING),
        ([(90.0, False)], 0.0, Verdict.STALLED),
        ([(10.0, False)], 91.0, Verdict.MOVING),
        ([(10.0, False), (99.0, False)], 85.0, Verdict.STALLED),
        ([(10.0, True)], 0.0, Verdict.DOUBTFUL),
        ([(10.0, True), (10.0, False)], 0.0, Verdict.DOUBTFUL),
        ([(95.0, True)], 0.0, Verdict.MOVING),
    ],
    ids=[
        "nobody waits",
        "one waits, not for long",
        "one waits for too long",
        "one waits for long, but another moved",
        "nobody moved for too long",
        "an answer in one piece takes long",
        "beside one in one piece a stream proves nothing",
        "one in one piece has just begun",
    ],
)
def test_an_engine_is_judged_by_the_requests_that_wait(
    waits: list[tuple[float, bool]], last_progress: float, expected: Verdict
) -> None:
    assert verdict(waits, last_progress, 100.0, LIMIT) is expected
    assert verdict(earliest(waits), last_progress, 100.0, LIMIT) is expected
    assert len(earliest(waits * 3)) <= 2
