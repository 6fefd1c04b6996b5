from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.backends.boards import on_our_clock, settle
from pd_monitor.reading import lost


def board(index: int, name: str) -> GpuInfo:
    return GpuInfo(index=index, name=name)


def live(index: int) -> GpuSample:
    return GpuSample(t=1.0, index=index, power_w=100.0)


def test_boards_are_listed_by_index() -> None:
    gpus, samples, problems = settle([(board(1, "decode"), live(1)), (board(0, "prefill"), live(0))])

    assert [info.name for info in gpus] == ["prefill", "decode"]
    assert [sample.index for sample in samples] == [0, 1]
    assert problems == []


def test_a_live_board_takes_over_the_gpu_of_one_that_is_gone() -> None:
    claims = [(board(0, "prefill"), lost(0, 1.0, "gone")), (board(0, "combined"), live(0))]

    gpus, samples, problems = settle(claims)

    assert [info.name for info in gpus] == ["combined"]
    assert samples == (live(0),)
    assert problems == []


def test_two_live_boards_with_one_index_are_never_added_up() -> None:
    gpus, samples, problems = settle([(board(0, "first"), live(0)), (board(0, "second"), live(0))])

    assert [info.name for info in gpus] == ["first"]
    assert len(samples) == 1
    assert problems == ["two simulators call their board GPU 0; give each an index of its own"]


def test_a_board_that_never_answered_is_left_out() -> None:
    assert settle([(board(0, "first"), None)]) == ((), (), [])


def test_a_time_within_the_poll_is_taken_as_it_is() -> None:
    assert on_our_clock(10.02, 10.0, 10.04) == 10.02


def test_a_time_of_another_hosts_clock_becomes_the_middle_of_the_poll() -> None:
    assert on_our_clock(99_000.0, 10.0, 10.5) == 10.25
