"""The simulated engines' scheduler plans every step as vLLM did where KV did not suffice for all requests."""

import pytest
from support.preemptions import ROOM, SEQUENCES, STEP_TOKENS, Planned, Steps, recorded, steps_of

from pd_simulator.steps.scheduler import Job, Limits, Scheduler, complete


def replayed(run: Planned) -> Steps:
    """Each request is added just before the step that could see it first."""
    scheduler = Scheduler(Limits(SEQUENCES, STEP_TOKENS, ROOM, async_scheduling=run.async_scheduling))
    jobs = [Job(asked.prompt, asked.output) for asked in run.requests]
    first, last, preempted, tokens = dict[Job, int](), dict[Job, int](), {job: list[int]() for job in jobs}, 0
    going_on = set[Job]()
    for step in range(run.steps):
        for job, asked in zip(jobs, run.requests, strict=True):
            if asked.seen == step:
                scheduler.add(job, 0.0)
        slots = scheduler.plan(float(step))
        for job in going_on - {slot.job for slot in slots}:
            preempted[job].append(step)
        going_on = set()
        for slot in slots:
            tokens += slot.tokens
            complete(slot)
            if slot.emits:
                first.setdefault(slot.job, step)
            if slot.job.generated < slot.job.max_tokens:
                going_on.add(slot.job)
            else:
                last[slot.job] = step
                scheduler.end(slot.job)
    return Steps([first[job] for job in jobs], [last[job] for job in jobs], list(preempted.values()), tokens)


@pytest.mark.parametrize("run", recorded())
def test_every_step_is_planned_as_vllm_planned_it(run: Planned) -> None:
    assert sum(len(asked.preempted) for asked in run.requests) > 20
    assert replayed(run) == steps_of(run)
