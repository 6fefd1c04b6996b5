"""What the modes that send requests in groups tell, in sentences."""

from pd_analysis.numbers.batches import batches
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import PhaseCost, phase_split
from pd_analysis.tables.modes import cost_words
from pd_analysis.words.formatting import mean_count, ms, number, sentences, whole, with_error
from pd_analysis.words.language import tr


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
    if cost.energy_j is None:
        if cost.phase == "prefill":
            return tr("prefill of {tokens} tokens takes {time}", **holes)
        return tr("decode of {tokens} tokens takes {time}", **holes)
    if cost.phase == "prefill":
        return tr("prefill of {tokens} tokens takes {time} and {energy}, at {power}", **holes)
    return tr("decode of {tokens} tokens takes {time} and {energy}, at {power}", **holes)


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
    joules = tr(
        "A token costs {alone} J alone and {together} J in the largest batch.",
        alone=with_error(first.token_j, first.token_error_j or 0.0),
        together=with_error(last.token_j, last.token_error_j or 0.0),
    )
    return sentences((said, joules))
