"""What rate, duration and number of requests mean together, where one of them has no bound. Pure.

An infinite rate is that of `vllm bench serve`: everything is due at once. With a limit on what is in flight that is a closed loop.
"""

import math
from typing import Final

from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.option_fields import OptionFields
from pd_loadgen.workload.schedule import Arrival

DRAWN: Final = frozenset({Arrival.POISSON, Arrival.GAMMA, Arrival.CONSTANT})
# Requests are built before the start and kept in memory, at first with about 12 bytes a token: more than this fits on no usual machine.
MOST_REQUESTS: Final = 2_000_000
MOST_TOKENS: Final = 2_000_000_000
_MAY_BE_INFINITE: Final = frozenset({"rate", "duration", "burstiness"})


def pace(options: OptionFields) -> Arrival:
    """What decides when a request is sent; at an infinite rate that is only whether it may be in flight."""
    return Arrival.CLOSED if at_once(options) else options.arrival


def at_once(options: OptionFields) -> bool:
    """Whether an infinite rate makes all requests due at the start."""
    return options.mode is Mode.SERVE and options.arrival in DRAWN and math.isinf(options.rate)


def endless(options: OptionFields) -> bool:
    """Whether nothing says how many requests there are."""
    if options.requests or options.mode is not Mode.SERVE or options.arrival in (Arrival.CLOSED, Arrival.REPLAY):
        return False
    return math.isinf(options.rate) or math.isinf(options.duration)


def expected(options: OptionFields) -> float:
    """About how many requests there will be; 0 where a file or a mode says it."""
    if options.mode is not Mode.SERVE or options.arrival in (Arrival.CLOSED, Arrival.REPLAY):
        return options.requests
    drawn = max(options.rate, options.start_rate) * options.duration
    return min(drawn, options.requests) if options.requests else drawn


def too_many(options: OptionFields) -> bool:
    """Whether the requests would not fit into memory."""
    count, tokens = expected(options), options.prefix_tokens + options.input_tokens * options.turns
    return count > MOST_REQUESTS or count * tokens > MOST_TOKENS


def not_finite(options: OptionFields) -> str:
    """The option whose number has to be finite and is not; empty if all are."""
    return next(
        (
            name
            for name in options.__struct_fields__
            if isinstance(value := getattr(options, name), float)
            and (math.isnan(value) or (math.isinf(value) and name not in _MAY_BE_INFINITE))
        ),
        "",
    )
