"""Remarks about the server that follow from its answers and should be read before any number. Pure."""

from collections.abc import Iterable, Iterator

from pd_contracts import latency
from pd_contracts.records import RequestRecord


def remarks(records: Iterable[RequestRecord], *, ignore_eos: bool) -> Iterator[str]:
    """Sentences about the served requests of the window.

    Args:
        records: warm-ups among them.
        ignore_eos: whether the server was asked to generate all tokens.
    """
    served = [record for record in records if not record.warmup and latency.succeeded(record)]
    silent = sum(record.output_tokens is None for record in served)
    if silent:
        yield (
            f"{silent} of {len(served)} answers carry no usage: their token count and TPOT are unknown, so they meet no TPOT limit"
        )
    short = [one for one in served if ignore_eos and _asked(one) > (one.output_tokens or _asked(one))]
    if short:
        worst = min(short, key=lambda one: (one.output_tokens or 0) / _asked(one))
        yield (
            f"{len(short)} of {len(served)} answers are shorter than asked ({worst.output_tokens} of {_asked(worst)} tokens): the server does "
            "not honour ignore_eos, or its context is too short, so the amount of work depends on what the model generates"
        )


def _asked(record: RequestRecord) -> int:
    return record.requested_output_tokens or 0
