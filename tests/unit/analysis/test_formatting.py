"""How numbers read."""

import pytest

from pd_analysis.words.formatting import listed, ms, number, percent, ratio, setting, whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (0.00412345, "0.00412"),
        (0.48, "0.480"),
        (7.414, "7.41"),
        (9.996, "10.0"),
        (36.12, "36.1"),
        (99.96, "100"),
        (232.4, "232"),
        (1089.6, "1,090"),
        (1234567.0, "1,234,567"),
        (-3.14159, "-3.14"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_seconds_become_milliseconds() -> None:
    assert ms(0.0123456) == "12.3"


@pytest.mark.parametrize(("value", "text"), [(10.0, "10"), (0.5, "0.5"), (12000.0, "12,000"), (None, "–")])
def test_chosen_values_are_shown_as_chosen(value: float | None, text: str) -> None:
    assert setting(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "–"), (0.0, "0 %"), (0.05, "5 %"), (0.034, "3.4 %"), (0.666, "67 %"), (1.0, "100 %")]
)
def test_shares_become_percentages(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.481, "0.48×"), (4.7, "4.70×"), (12.34, "12.3×"), (1234.5, "1,234×")]
)
def test_ratios(value: float | None, text: str) -> None:
    assert ratio(value) == text


def test_words() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [whole(2000), whole(None)] == ["2,000", "–"]
