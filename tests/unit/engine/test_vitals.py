"""When an engine counts as admitted, and when as alive."""

import pytest

from pd_engine.vitals import Answer, Seen, Standing, Watch, complaint, read_metrics, standing, watch

LIMIT_S = 60.0
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_by_source_total{source="local_compute"} 999.0
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
vllm:generation_tokens_total{engine="1",model_name="m"} 2.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 3.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 9.0
"""


def look(*, running: float = 1.0, work: float = 5.0, boot: str = "a", suspect: bool = False) -> Seen:
    return Seen(boot=boot, running=running, work=(work,), suspect=suspect)


def after(*looks: tuple[float, Seen]) -> str:
    """What is complained about after these looks."""
    kept: Watch | None = None
    now = 0.0
    for now, seen in looks:
        kept = watch(kept, seen, now)
    assert kept is not None
    return complaint(kept, now, LIMIT_S)


def test_metrics_are_summed_over_their_labels() -> None:
    assert read_metrics(METRICS, "a") == Seen(boot="a", running=3.0, work=(100.0, 42.0, 9.0, 0.25))


@pytest.mark.parametrize("text", ["", "vllm:num_requests_running 3.0\n", "vllm:prompt_tokens_total 3.0\n", "<html>"])
def test_an_engine_that_does_not_count_as_we_know_it_is_never_called_dead_for_that(text: str) -> None:
    seen = read_metrics(text, "a")

    assert not after((0, seen), (10_000, seen))


def test_an_engine_whose_counters_stand_still_with_requests_running_is_not_alive() -> None:
    assert not after((0, look()), (LIMIT_S - 1, look()))
    assert "nothing was computed for 60 s" in after((0, look()), (30, look()), (LIMIT_S, look()))


def test_an_idle_engine_is_alive_however_long_it_idles() -> None:
    assert not after((0, look(running=0)), (10_000, look(running=0)))
    assert not after((0, look()), (LIMIT_S, look(running=0)), (LIMIT_S + 1, look()))


def test_any_counter_that_moves_is_progress() -> None:
    assert not after((0, look(work=1)), (50, look(work=2)), (100, look(work=2)))
    assert after((0, look(work=1)), (50, look(work=2)), (110, look(work=2)))


def test_what_was_seen_of_a_process_that_is_gone_is_not_held_against_its_successor() -> None:
    assert not after((0, look()), (LIMIT_S, look(boot="b")))
    assert not after((0, look(suspect=True)), (LIMIT_S, look(boot="b", suspect=True)))


def test_an_engine_that_the_proxy_suspects_for_long_is_not_alive_whatever_it_counts() -> None:
    suspect = look(running=0, suspect=True)

    assert not after((0, suspect), (LIMIT_S - 1, suspect))
    assert "streams have stalled for 60 s" in after((0, suspect), (30, suspect), (LIMIT_S, suspect))
    assert not after((0, suspect), (30, look(running=0)), (LIMIT_S, suspect)), "it was cleared in between"


def test_a_limit_of_zero_asks_for_no_progress() -> None:
    kept = watch(watch(None, look(), 0), look(), 10_000)

    assert complaint(kept, 10_000, LIMIT_S)
    assert not complaint(kept, 10_000, 0)


def test_the_proxys_answer_is_what_an_engine_is() -> None:
    joining = Answer(admitted=False, state="joining", reason="waits for its first health check")

    assert standing(None, Answer(admitted=True, state="ready"), "a") == Standing(boot="a", admitted=True)
    refused = standing(Standing(boot="a", admitted=True), joining, "a")
    assert (refused.admitted, refused.reason) == (False, "joining: waits for its first health check")


@pytest.mark.parametrize("before", [True, False])
def test_while_the_proxy_is_away_its_last_word_stands(before: bool) -> None:
    kept = Standing(boot="a", admitted=before, reason="" if before else "lost")

    assert standing(kept, None, "a") is kept
    assert standing(kept, None, "b").admitted is False, "it was said of another process"


def test_a_new_proxy_that_has_not_heard_of_an_engine_does_not_take_back_what_the_one_before_said() -> None:
    kept = Standing(boot="a", admitted=True)
    unknown = Answer(admitted=False, state="unknown", reason="no such engine has announced itself")

    assert standing(kept, unknown, "a") is kept
    assert standing(kept, unknown, "b").admitted is False, "it was said of another process"
    assert standing(None, unknown, "a").reason.startswith("unknown: ")
    assert standing(kept, Answer(admitted=False, state="lost", reason="stopped pinging"), "a").admitted is False


def test_an_engine_of_which_the_proxy_never_spoke_is_not_admitted() -> None:
    assert standing(None, None, "a") == Standing(boot="a", admitted=False, reason="the proxy has not answered yet")
