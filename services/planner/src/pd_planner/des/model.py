"""The data of the loops: tuples of numbers and arrays, which both numba and plain Python accept."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Columns of an engine's busy times, milliseconds: computing prompts, decoding, waiting for KV to come or go; and decoding times the batch.
PROMPTS, DECODES, TRANSFER, BATCH = range(4)
BUSY_COLUMNS: Final = 4
NOBODY: Final = -1


class StepCosts(NamedTuple):
    """The step model of one role, milliseconds: the profile's numbers."""

    prefill_base: float
    prefill_token: float
    prefill_pair: float
    decode_base: float
    decode_sequence: float
    decode_context: float
    overlap: float
    mixed_share: float


class SendCosts(NamedTuple):
    """What handing over costs a prefill engine, milliseconds.

    `beside`: KV goes after the step, beside the next one, and not inside it. `late`: see `late_answers` of the profile.
    """

    floor_per_step: float
    floor: float
    floor_peer: float
    tail: float
    tail_token: float
    receive: float
    receive_token: float
    beside: bool
    late: bool


class EngineLimits(NamedTuple):
    """vLLM's limits of one engine; `loads_again` as in `Engines`."""

    sequences: int
    batched_tokens: int
    kv_blocks: int
    chunked: bool
    async_scheduling: bool
    loads_again: bool


class Launching(NamedTuple):
    """What launching a step costs the processor of the engine of this number: `Launch` of the profile, `tail` in seconds."""

    ms: Floats
    tail: float
    period: float
    graph_tokens: int
    engine: int


class Rules(NamedTuple):
    """What steps cost and hold on an engine that writes answers, and its processor."""

    costs: StepCosts
    limits: EngineLimits
    launching: Launching


class Jobs(NamedTuple):
    """What one engine gets, in the order in which it becomes ready (seconds). `external` prompt tokens need no compute; `stall` is in ms."""

    ready: Floats
    prompt: Ints
    output: Ints
    external: Ints
    stall: Floats


class Times(NamedTuple):
    """When the first and the last token of each job come, seconds, and how often it was preempted; filled by the loop."""

    first: Floats
    last: Floats
    preempted: Ints
