import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_monitor.backends.nvml import Nvml, keep_indices


def test_boards_get_nvmls_order_at_first() -> None:
    assert keep_indices({}, ["a", "b", "c"]) == [0, 1, 2]


def test_a_board_keeps_its_index_when_one_before_it_fell_off_the_bus() -> None:
    assert keep_indices({"a": 0, "b": 1, "c": 2}, ["b", "c"]) == [1, 2]


def test_a_board_that_replaces_another_does_not_take_its_index() -> None:
    assert keep_indices({"a": 0, "b": 1}, ["new", "b"]) == [2, 1]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 20)), st.permutations("abcdefgh"), st.integers(0, 8))
def test_indices_stay_with_known_boards_and_are_never_given_twice(
    known: dict[str, int], order: list[str], length: int
) -> None:
    known = {uuid: index for index, uuid in enumerate(known)}
    found = order[:length]

    indices = keep_indices(known, found)

    assert len(set(indices)) == len(found)
    assert all(index == known[uuid] for uuid, index in zip(found, indices, strict=True) if uuid in known)
    assert not {index for uuid, index in zip(found, indices, strict=True) if uuid not in known} & set(known.values())


def test_a_library_that_does_not_match_is_a_problem_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVMLLibraryMismatchError is no NVMLError, so a handler of the latter lets it through."""

    def mismatch() -> None:
        raise pynvml.NVMLLibraryMismatchError("versions do not match")

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    reading = Nvml().sample()

    assert reading.gpus == ()
    assert "versions do not match" in reading.problem


def test_nvml_is_opened_again_ever_more_rarely_while_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    now = 0.0

    def fail() -> None:
        attempts.append(now)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    nvml = Nvml(retry_s=5, clock=lambda: now)
    for second in range(200):
        now = float(second)
        nvml.sample()

    assert attempts == [0, 5, 15, 35, 75, 135, 195]
