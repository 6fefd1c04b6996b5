"""Findings of the modes that send requests in groups (batch, phase-split), as sentences."""

from typing import Final

from pd_analysis.numbers.batches import batches
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import PhaseCost, phase_split
from pd_analysis.numbers.value import Value
from pd_analysis.tables.modes import cost_words, token_words
from pd_analysis.words.formatting import mean_count, ms, number, sentences, whole
from pd_analysis.words.language import mark, tr

_PREFILL: Final = mark("prefill of {tokens} tokens takes {time} and {energy}, at {power}")
_PREFILL_DARK: Final = mark("prefill of {tokens} tokens takes {time}, and its energy is unknown")
_PREFILL_TIME: Final = mark("prefill of {tokens} tokens takes {time}")
_PREFILL_LOST: Final = mark("how long prefill of {tokens} tokens takes is unknown")
_DECODE: Final = mark("decode of {tokens} tokens takes {time} and {energy}, at {power}")
_DECODE_DARK: Final = mark("decode of {tokens} tokens takes {time}, and its energy is unknown")
_DECODE_TIME: Final = mark("decode of {tokens} tokens takes {time}")
_DECODE_LOST: Final = mark("how long decode of {tokens} tokens takes is unknown")


def of_mode(group: Group) -> tuple[str, ...]:
    """A sentence per run; none of loads without a mode."""
    tell = {Pace.BATCHES: _batches, Pace.PHASES: _phases}.get(group.pace)
    return () if tell is None else tuple(text for result in group.results if (text := tell(result)))


def _phases(result: Result) -> str:
    found = phase_split(result)
    if found is None:
        return ""
    return tr(
        "{run}: {prefill}; {decode}.", run=result.name, prefill=_phase(found.prefill), decode=_phase(found.decode)
    )


def _phase(cost: PhaseCost) -> str:
    holes = {
        "tokens": mean_count(cost.tokens),
        "time": cost_words(cost.time_s, "ms", scale=1e3),
        "energy": cost_words(cost.energy_j, "J"),
        "power": cost_words(cost.power_w, "W"),
    }
    prefill = cost.phase == "prefill"
    if cost.time_s.lost:
        said = _PREFILL_LOST if prefill else _DECODE_LOST
    elif cost.energy_j is None:
        said = _PREFILL_TIME if prefill else _DECODE_TIME
    elif cost.energy_j.lost or cost.power_w is None or cost.power_w.lost:
        said = _PREFILL_DARK if prefill else _DECODE_DARK
    else:
        said = _PREFILL if prefill else _DECODE
    return tr(said, **holes)


def _batches(result: Result) -> str:
    found = batches(result)
    if len(found) < 2:
        return ""
    first, last = found[0], found[-1]
    said = tr(
        "{run}: from {few} to {many} requests at once, output goes from {slow} to {fast} tok/s, TTFT p50 from {ttft} to {later} ms and TPOT p50 from {tpot} to {slower} ms.",
        run=result.name,
        few=whole(first.size),
        many=whole(last.size),
        slow=number(first.output_rate),
        fast=number(last.output_rate),
        ttft=ms(first.ttft_s),
        later=ms(last.ttft_s),
        tpot=ms(first.tpot_s),
        slower=ms(last.tpot_s),
    )
    if first.token_j is None or last.token_j is None:
        return said
    return sentences((said, _joules(first.token_j, last.token_j, alone=token_words(first), together=token_words(last))))


def _joules(first: Value, last: Value, **holes: str) -> str:
    if not (first.lost or last.lost):
        return tr("A token costs {alone} J alone and {together} J in the largest batch.", **holes)
    if first.lost and last.lost:
        return tr("What a token costs is unknown: the batches are too short for readings of the power.")
    if first.lost:
        return tr(
            "A token costs {together} J in the largest batch; what it costs alone is unknown: that batch is too short for readings of the power.",
            **holes,
        )
    return tr(
        "A token costs {alone} J alone; what it costs in the largest batch is unknown: that batch is too short for readings of the power.",
        **holes,
    )
