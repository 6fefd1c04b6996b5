"""Findings over several lengths of prompts: where one deployment becomes better than another."""

from collections.abc import Sequence
from dataclasses import replace

from pd_analysis.conclusions.sweeps import CROSSED
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import SWEPT, Load, amount_words
from pd_analysis.numbers.measures import Measure
from pd_analysis.numbers.sweep import break_even
from pd_analysis.words.formatting import listed, number
from pd_analysis.words.language import tr


def of_lengths(results: Sequence[Result]) -> tuple[str, ...]:
    """Where prompts become long enough for the other deployment, over loads that differ in prompt length alone."""
    cells: dict[Load, dict[str, list[Result]]] = {}
    for result in results:
        if result.load.pace in SWEPT and result.load.input_tokens is not None and not result.unfit:
            cell = replace(result.load, input_tokens=None)
            cells.setdefault(cell, {}).setdefault(result.label, []).append(result)
    found: list[str] = []
    for series in cells.values():
        ordered = sorted(series.items(), key=lambda item: not item[1][0].plain)
        for name, others in ordered[1:]:
            found += _crossed_lengths(ordered[0], (name, others))
    return tuple(found)


def _crossed_lengths(one: tuple[str, list[Result]], two: tuple[str, list[Result]]) -> list[str]:
    sentences = []
    for measure in CROSSED:
        ours, theirs = _by_length(one[1], measure), _by_length(two[1], measure)
        crossings = break_even(ours, theirs)
        if crossings:
            at = listed(tr("{sizes} tokens", sizes=number(length)) for length in crossings[:3])
            sentences.append(
                tr(
                    "Break-even in {measure} at {amount}: {one} and {two} cross at prompts of {lengths}.",
                    measure=measure.phrase,
                    amount=amount_words(one[1][0].run.manifest.workload),
                    one=one[0],
                    two=two[0],
                    lengths=at,
                )
            )
    return sentences


def _by_length(results: Sequence[Result], measure: Measure) -> list[tuple[float, float]]:
    found = [(float(result.run.manifest.workload.input_tokens or 0), measure.get(result)) for result in results]
    return sorted((x, y) for x, y in found if y is not None)
