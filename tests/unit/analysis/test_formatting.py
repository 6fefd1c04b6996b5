"""How numbers are written."""

import pytest

from pd_analysis.words.formatting import listed, mean_count, ms, number, percent, ratio, setting, whole, with_error


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
    ("share", "text"), [(None, "–"), (0.0, "0%"), (0.05, "5%"), (0.034, "3.4%"), (0.666, "67%"), (1.0, "100%")]
)
def test_shares_become_percentages(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.481, "0.48×"), (4.7, "4.70×"), (12.34, "12.3×"), (1234.5, "1,234×")]
)
def test_ratios(value: float | None, text: str) -> None:
    assert ratio(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (19.7123, 0.328, "19.7 ± 0.3"),
        (10.94, 4.88, "11 ± 5"),
        (553.2, 249.0, "550 ± 250"),
        (1234.5, 30.2, "1,230 ± 30"),
        (0.16512, 0.00174, "0.1651 ± 0.0017"),
        (2.46, 0.0, "2.46"),
        (2.46, float("inf"), "2.46"),
        (3.0, 9.0, "unknown"),
        (3.0, 3.0, "unknown"),
        (-3.0, 1.0, "unknown"),
        (0.0, 0.0, "0"),
    ],
)
def test_a_value_has_no_more_digits_than_its_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_a_mean_of_equal_counts_is_whole() -> None:
    assert [mean_count(value) for value in (63.0, 62.96, 2048.0, None)] == ["63", "63.0", "2,048", "–"]


def test_lists_and_whole_numbers_are_written_for_people() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [whole(2000), whole(None)] == ["2,000", "–"]
