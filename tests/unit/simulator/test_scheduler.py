"""Which tokens a step computes, in virtual time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_simulator.kv_blocks import BLOCK_TOKENS
from pd_simulator.steps.scheduler import Job, Limits, Scheduler, Slot, complete, work_of
from pd_simulator.steps.step_time import Sent

ROOMY = Limits(max_num_seqs=256, max_num_batched_tokens=8192, kv_tokens=1_000_000)


def scheduler(*jobs: Job, limits: Limits = ROOMY) -> Scheduler:
    made = Scheduler(limits)
    for number, job in enumerate(jobs):
        made.add(job, ready_at=float(number) / 1e3)
    return made


def run_step(made: Scheduler, now: float = 1.0) -> list[Slot]:
    slots = made.plan(now)
    for slot in slots:
        complete(slot)
    return slots


def test_a_prompt_is_computed_in_one_step_and_yields_the_first_token() -> None:
    job = Job(prompt_tokens=500, max_tokens=3)

    (slot,) = run_step(scheduler(job))

    assert (slot.tokens, slot.first, slot.emits) == (500, True, True)
    assert (job.computed, job.generated) == (500, 1)


def test_then_each_step_computes_one_token() -> None:
    made = scheduler(Job(500, 3))
    run_step(made)

    (slot,) = run_step(made)

    assert (slot.tokens, slot.first, slot.emits) == (1, False, True)


def test_a_job_is_not_seen_before_it_is_ready() -> None:
    made = Scheduler(ROOMY)
    made.add(Job(10, 1), ready_at=5.0)

    assert made.next_start(1.0) == 5.0
    assert made.plan(4.999) == []
    assert len(made.plan(5.0)) == 1


def test_the_next_step_follows_at_once_while_there_is_work() -> None:
    made = scheduler(Job(10, 5))
    run_step(made)

    assert made.next_start(7.0) == 7.0


def test_without_work_there_is_no_next_step() -> None:
    assert Scheduler(ROOMY).next_start(0.0) is None


def test_waiting_jobs_come_in_the_order_in_which_they_were_ready() -> None:
    limits = Limits(max_num_seqs=1, max_num_batched_tokens=8192, kv_tokens=10_000)
    late, early = Job(10, 1), Job(20, 1)
    made = Scheduler(limits)
    made.add(late, 0.2)
    made.add(early, 0.1)

    (slot,) = made.plan(1.0)

    assert slot.job is early
    assert (made.running, made.waiting) == (1, 1)


def test_running_jobs_take_their_token_before_a_new_prompt_takes_the_rest() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=100, kv_tokens=10_000)
    made = scheduler(Job(50, 9), limits=limits)
    run_step(made)
    made.add(Job(300, 9), 0.5)

    running, chunk = run_step(made)

    assert (running.tokens, chunk.tokens) == (1, 99)
    assert not chunk.emits


def test_a_long_prompt_is_spread_over_steps_and_emits_at_its_end() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=100, kv_tokens=10_000)
    made = scheduler(Job(250, 2), limits=limits)

    steps = [run_step(made)[0] for _ in range(4)]

    assert [slot.tokens for slot in steps] == [100, 100, 50, 1]
    assert [slot.emits for slot in steps] == [False, False, True, True]
    assert [slot.first for slot in steps] == [True, False, False, False]


def test_without_chunks_a_prompt_waits_for_a_step_of_its_own() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=100, kv_tokens=10_000, chunked=False)
    made = scheduler(Job(60, 1), Job(60, 1), limits=limits)

    assert [slot.tokens for slot in run_step(made)] == [60]
    assert made.waiting == 1


def test_a_job_is_admitted_only_if_its_whole_prompt_fits() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=1000)  # 62 blocks
    first, second = Job(500, 20), Job(488, 20)  # 32 and 31 blocks
    made = scheduler(first, second, limits=limits)
    assert [slot.job for slot in run_step(made)] == [first]

    made.remove(first)

    assert [slot.job for slot in run_step(made)] == [second]


def test_the_job_admitted_last_is_preempted_and_computed_again() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=160)  # 10 blocks
    first, second, third = Job(30, 100), Job(60, 40), Job(64, 40)
    made = scheduler(first, second, third, limits=limits)
    assert [slot.job for slot in run_step(made)] == [first, second, third]  # 2 + 4 + 4 blocks

    assert [slot.job for slot in run_step(made)] == [
        first,
        second,
    ]  # the third's next token needs a block, and none is free
    assert (made.preemptions, made.waiting, third.computed, third.generated) == (1, 1, 0, 1)

    for _ in range(30):  # its prompt would find room, but not with the token that it has written
        assert [slot.job for slot in run_step(made)] == [first, second]
    made.remove(second)
    resumed = next(slot for slot in run_step(made) if slot.job is third)

    assert (resumed.tokens, resumed.first, resumed.emits, third.generated) == (65, True, True, 2)


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=64)  # 4 blocks
    first, second, small = Job(31, 9), Job(32, 9), Job(10, 9)
    made = scheduler(first, second, limits=limits)
    run_step(made)
    made.add(small, 0.5)

    assert [slot.job for slot in run_step(made)] == [first]  # two blocks are free
    assert made.waiting == 2


@pytest.mark.parametrize(("again", "tokens", "stall_s"), [(True, 2, 0.03), (False, 33, 0.0)])
def test_kv_from_elsewhere_is_loaded_again_if_it_is_still_there(*, again: bool, tokens: int, stall_s: float) -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=64)  # 4 blocks
    first, second = Job(31, 9), Job(32, 9, external=31, stall_s=0.03, again=again)
    made = scheduler(first, second, limits=limits)
    run_step(made)
    run_step(made)
    made.remove(first)

    (resumed,) = made.plan(1.0)

    assert (resumed.tokens, work_of([resumed]).stall_s) == (tokens, stall_s)


def test_external_tokens_are_not_computed() -> None:
    job = Job(prompt_tokens=500, max_tokens=2, external=499, stall_s=0.03)

    (slot,) = run_step(scheduler(job))

    assert slot.tokens == 1
    assert job.computed == 500


def test_a_prompt_whose_last_token_alone_is_computed_counts_as_a_decode() -> None:
    made = scheduler(Job(500, 2, external=499, stall_s=0.03), Job(300, 2, sends=True))

    work = work_of(made.plan(1.0))

    assert (work.prefill_tokens, work.decodes, work.context_tokens) == (300, 1, 499)
    assert work.stall_s == 0.03
    assert work.sent == (Sent(300),)


def test_kv_is_loaded_and_sent_once() -> None:
    made = scheduler(Job(500, 3, external=499, stall_s=0.03), Job(300, 3, sends=True))
    run_step(made)

    work = work_of(made.plan(2.0))

    assert (work.stall_s, work.sent) == (0.0, ())


@pytest.mark.parametrize("moment", ["arriving", "waiting", "running"])
def test_a_removed_job_is_gone_wherever_it_was(moment: str) -> None:
    limits = Limits(max_num_seqs=1, max_num_batched_tokens=8192, kv_tokens=10_000)
    blocker, job = Job(10, 5), Job(10, 5)
    made = scheduler(*([job] if moment == "running" else [blocker, job]), limits=limits)
    if moment != "arriving":
        run_step(made)

    made.remove(job)

    made.remove(blocker) if moment != "running" else None
    assert (made.running, made.waiting, made.kv_blocks) == (0, 0, 0)
    assert made.next_start(9.0) is None


@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 20), st.floats(0, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(16, 400),
    st.booleans(),
)
def test_every_job_gets_exactly_its_tokens_and_no_step_breaks_a_limit(
    shapes: list[tuple[int, int, float]], seqs: int, budget: int, ahead: bool
) -> None:
    limits = Limits(max_num_seqs=seqs, max_num_batched_tokens=budget, kv_tokens=1500, async_scheduling=ahead)
    made = Scheduler(limits)
    jobs = [Job(prompt, output) for prompt, output, _ in shapes]
    for job, (_, _, at) in zip(jobs, shapes, strict=True):
        made.add(job, at)
    now = 0.0

    while (start := made.next_start(now)) is not None:
        slots = made.plan(start)
        assert 0 < sum(slot.tokens for slot in slots) <= budget
        assert made.running <= seqs
        assert made.kv_blocks <= limits.kv_tokens // BLOCK_TOKENS
        for slot in slots:
            complete(slot)
            if slot.emits and slot.job.generated == slot.job.max_tokens:
                made.end(slot.job)
        now = start + 0.1

    assert [(job.computed, job.generated) for job in jobs] == [(p + o - 1, o) for p, o, _ in shapes]
    assert made.kv_blocks == 0


@pytest.mark.parametrize(("ahead", "waits"), [(False, 1), (True, 2)])
def test_with_async_scheduling_a_request_waits_for_the_step_after_the_next(*, ahead: bool, waits: int) -> None:
    scheduler = Scheduler(Limits(8, 100, 1000, async_scheduling=ahead))
    first, second = Job(10, 50), Job(10, 50)
    scheduler.add(first, 0.0)
    scheduler.add(second, 0.5)  # comes while the first step runs
    steps = 0
    for start in (0.0, 1.0, 2.0, 3.0):
        slots = scheduler.plan(start)
        if second in [slot.job for slot in slots]:
            break
        steps += 1
        for slot in slots:
            complete(slot)

    assert steps == waits


def test_an_idle_engine_does_not_let_a_request_wait_for_a_plan() -> None:
    scheduler = Scheduler(Limits(8, 100, 1000, async_scheduling=True))
    scheduler.add(Job(10, 5), 3.0)

    assert scheduler.next_start(1.0) == 3.0
    assert len(scheduler.plan(3.0)) == 1


def ended(*jobs: Job, kv_tokens: int, places: int = 8, async_scheduling: bool) -> Scheduler:
    """A scheduler whose first job has just got its last token, and the last one waits."""
    limits = Limits(places, max_num_batched_tokens=8192, kv_tokens=kv_tokens, async_scheduling=async_scheduling)
    made = scheduler(*jobs, limits=limits)
    assert [slot.job for slot in run_step(made)] == list(jobs[:-1])
    made.end(jobs[0])
    return made


@pytest.mark.parametrize(("kv_tokens", "places"), [(64, 8), (1000, 2)], ids=["blocks", "places"])
def test_a_step_planned_beside_a_last_token_finds_its_sequence_still_there(kv_tokens: int, places: int) -> None:
    def admitted(*, async_scheduling: bool) -> list[bool]:
        first, second, third = Job(32, 1), Job(10, 50), Job(20, 9)
        made = ended(first, second, third, kv_tokens=kv_tokens, places=places, async_scheduling=async_scheduling)
        return [third in {slot.job for slot in run_step(made)} for _ in range(2)]

    assert admitted(async_scheduling=False) == [True, True]
    assert admitted(async_scheduling=True) == [False, True]


def test_what_is_preempted_for_a_sequence_that_has_ended_is_planned_again_at_once() -> None:
    first, second = Job(32, 1), Job(32, 9)
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=64, async_scheduling=True)  # 4 blocks
    made = scheduler(first, second, limits=limits)
    run_step(made)
    made.end(first)

    [slot] = run_step(made)

    assert (slot.job, slot.tokens, made.preemptions, made.running) == (second, 33, 1, 1)


def test_an_engine_whose_last_sequence_ended_is_idle() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, kv_tokens=1000, async_scheduling=True)
    first, second = Job(32, 1), Job(32, 1)
    made = scheduler(first, second, limits=limits)
    run_step(made)
    made.end(first)
    assert (made.running, made.next_start(1.0)) == (1, 1.0)

    made.end(second)

    assert (made.running, made.kv_used, made.next_start(1.0)) == (0, 0, None)
