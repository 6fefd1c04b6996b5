"""Number formats: three significant digits, thousands separators, and a dash for what is unknown."""

import math
from collections.abc import Iterable
from typing import Final

from pd_analysis.words.language import tr
from pd_contracts.records import Workload

DASH: Final = "–"


def number(value: float | None, *, scale: float = 1.0) -> str:
    """`value * scale` with three significant digits (more before the point); a dash for None."""
    if value is None or not math.isfinite(scaled := value * scale):
        return DASH
    if scaled == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(scaled))))
    rounded = round(scaled, decimals)
    # 9.996 rounds to 10.00: one digit less, or columns claim a digit that they do not have
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else decimals
    return f"{rounded:,.{decimals}f}"


def lost(value: float, error: float) -> bool:
    """Whether a positive quantity (time, energy) is not larger than its error and so says nothing; False if the error is unknown."""
    return value < 0 or (math.isfinite(error) and 0 < error >= value)


def with_error(value: float, error: float) -> str:
    """A value and its standard error, both to the error's last digit that means something: 19.7 ± 0.3, 550 ± 250; without the error if it is unknown or 0.

    A value that is not larger than its error is unknown.
    """
    if lost(value, error):
        return tr("unknown")
    if not math.isfinite(error) or error <= abs(value) * 1e-6:
        return number(value)
    exponent = math.floor(math.log10(error))
    decimals = -exponent if error >= 3 * 10**exponent else 1 - exponent  # 1 and 2 say too little alone
    places = max(0, decimals)
    return f"{round(value, decimals):,.{places}f} ± {round(error, decimals):,.{places}f}"


def mean_count(value: float | None) -> str:
    """A mean of counts, which needs no decimals where all are equal."""
    return whole(int(value)) if value is not None and value.is_integer() else number(value)


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds, without the unit."""
    return number(seconds, scale=1e3)


def setting(value: float | None) -> str:
    """A number that a user chose, as it was written."""
    return DASH if value is None else f"{value:,.10g}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage; whole above 10%."""
    if share is None:
        return DASH
    value = share * 100
    return f"{value:.0f}%" if abs(value) >= 10 or math.isclose(value, round(value)) else f"{value:.1f}%"


def ratio(value: float | None) -> str:
    """A quotient of two runs: 0.48×, 4.70×, 12.3×."""
    if value is None:
        return DASH
    if value == 0:
        return "0×"
    return f"{value:.2f}×" if value < 10 else f"{value:,.1f}×" if value < 100 else f"{value:,.0f}×"


def whole(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def listed(items: Iterable[str]) -> str:
    """a, b and c."""
    words = list(items)
    if len(words) < 2:
        return "".join(words)
    return tr("{items} and {last}", items=joined(words[:-1]), last=words[-1])


def joined(items: Iterable[str]) -> str:
    """a, b, c."""
    return tr(", ").join(items)


def clauses(items: Iterable[str]) -> str:
    """a; b; c."""
    return tr("; ").join(items)


def sentences(items: Iterable[str]) -> str:
    """One sentence after the other."""
    text = ""
    for item in items:
        text = tr("{sentence} {next}", sentence=text, next=item) if text else item
    return text


def sentence_case(text: str) -> str:
    """A text as a heading: with a capital letter, but for a program's own name."""
    return text if text.startswith("vllm") else text[:1].upper() + text[1:]


def sizes(load: Workload) -> str:
    """Prompt and answer of each request in tokens, 2,048 → 128; "any" where they vary."""
    return " → ".join(tr("any") if count is None else whole(count) for count in (load.input_tokens, load.output_tokens))
