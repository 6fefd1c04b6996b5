"""Modes phase-split and batch where time and power of every phase are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from support.analysis import group, manifest, on_boards, power_log, request, run, workload

from pd_analysis import plots
from pd_analysis.conclusions.modes import of_mode
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.batches import batches
from pd_analysis.numbers.evaluation import evaluate
from pd_analysis.numbers.load import amount_words
from pd_analysis.numbers.phase_split import PhaseSplit, phase_split
from pd_analysis.records.run import Loaded, Run
from pd_analysis.report.writer import write_report
from pd_analysis.tables.modes import mode_table
from pd_contracts.names import Role
from pd_contracts.records import RequestRecord

PREFILL_S, STEP_S, TOKENS = 0.5, 0.05, 21  # 20 steps of decode: 1 s
PREFILL_W, DECODE_W, IDLE_W = 600.0, 300.0, 100.0
PROMPTS = 12


def short(index: int, start: float) -> RequestRecord:
    return request(index, start, ttft=PREFILL_S, gaps=[], requested_output_tokens=1, prompt_tokens=512)


def whole(index: int, start: float, ttft: float = PREFILL_S) -> RequestRecord:
    gaps = [STEP_S] * (TOKENS - 1)
    return request(index, start, ttft=ttft, gaps=gaps, requested_output_tokens=TOKENS, prompt_tokens=512)


def phased(*, cached: bool = False, offset: float = 3.0) -> Run:
    """One request at a time: twelve of one token, then the same with all; the board draws 600 W in prefill, 300 W in decode."""
    one = [short(index, offset + index * PREFILL_S) for index in range(PROMPTS)]
    begin = offset + PROMPTS * PREFILL_S
    prefill = 0.05 if cached else PREFILL_S
    long = prefill + (TOKENS - 1) * STEP_S
    two = [whole(PROMPTS + index, begin + index * long, prefill) for index in range(PROMPTS)]
    end = begin + PROMPTS * long

    def watts(t: np.ndarray) -> np.ndarray:
        busy = np.where((t - begin) % long < prefill, PREFILL_W, DECODE_W)
        return np.select([t < offset, t < begin, t < end], [IDLE_W, PREFILL_W, busy], IDLE_W)

    load = workload(arrival="phase-split", rate=1.3, input_tokens=512, output_tokens=TOKENS, burstiness=None)
    power = power_log({0: (Role.COMBINED, watts)}, end=end + 3)
    about = on_boards(manifest(workload=load, window=(offset, end)), power)
    return run([*one, *two], about, power)


def split(of: Run) -> PhaseSplit:
    found = phase_split(group(of).baseline)
    assert found is not None
    return found


def test_prefill_and_decode_are_told_apart_by_the_difference_of_both_parts() -> None:
    found = split(phased())

    assert found.prefill.time_s.value == pytest.approx(PREFILL_S, rel=1e-3)
    assert found.decode.time_s.value == pytest.approx(1.0, rel=1e-3)
    assert found.prefill.energy_j is not None
    assert found.decode.energy_j is not None
    # 600 W × 0.5 s; 300 W × 1 s
    assert found.prefill.energy_j.value == pytest.approx(300, rel=0.02)
    assert found.decode.energy_j.value == pytest.approx(300, rel=0.02)
    assert found.prefill.power_w is not None
    assert found.decode.power_w is not None
    assert found.prefill.power_w.value == pytest.approx(PREFILL_W, rel=0.02)
    assert found.decode.power_w.value == pytest.approx(DECODE_W, rel=0.02)
    assert (found.prefill.tokens, found.decode.tokens) == (512, 20)
    assert found.decode.token_j is not None
    assert found.decode.token_j.value == pytest.approx(15, rel=0.02)
    assert found.prefill.idle_w == pytest.approx(IDLE_W)


@pytest.mark.parametrize("offset", [2.93, 3.0, 3.04, 3.07, 3.11])
def test_the_truth_lies_within_the_error_wherever_the_counter_moves(offset: float) -> None:
    found = split(phased(offset=offset))

    for cost, joules in ((found.prefill, 300.0), (found.decode, 300.0)):
        assert cost.energy_j is not None
        assert abs(cost.energy_j.value - joules) <= 2 * cost.energy_j.error
        assert 0 < cost.energy_j.error < 0.1 * joules


def test_a_time_that_scatters_has_an_error_of_its_spread() -> None:
    times = [0.5, 0.4, 0.6, 0.55, 0.45, 0.5]
    starts = np.concatenate(([0.0], np.cumsum(times)))
    one = [
        request(index, float(start), ttft=ttft, gaps=[], requested_output_tokens=1)
        for index, (start, ttft) in enumerate(zip(starts, times, strict=False))
    ]
    two = [whole(6 + index, float(starts[-1]) + index * 1.5) for index in range(6)]
    window = (0.0, float(starts[-1]) + 9.0)
    found = split(run([*one, *two], manifest(workload=workload(arrival="phase-split"), window=window)))

    assert found.prefill.time_s.error == pytest.approx(np.std(times, ddof=1) / 6**0.5)
    assert found.prefill.energy_j is None


def test_prompts_from_a_cache_are_not_to_be_decided_on() -> None:
    (doubt,) = [each for each in doubts(group(phased(cached=True))) if "prefix cache" in each.sentence]

    assert doubt.level.name == "STOP"
    assert not [each for each in doubts(group(phased())) if "prefix cache" in each.sentence]


def test_a_mode_is_no_rate_and_is_not_called_saturated_or_told_to_be_a_guess() -> None:
    measured = group(phased())
    said = " ".join([measured.workload, *(f"{each.sentence} {each.remedy}" for each in doubts(measured))])

    assert "mode phase-split: one request at a time" in said
    for wrong in ("req/s", "requests/s", "saturated", "told apart", "a guess", "p99"):
        assert wrong not in said


def test_the_table_and_the_sentence_of_phase_split_have_the_mode_and_errors() -> None:
    measured = group(phased())
    table = mode_table(measured)
    assert table is not None

    prefill, decode = [[cell.text for cell in row] for row in table.rows]
    assert prefill[:5] == ["combined", "phase-split", "prefill", "12", "512"]
    assert decode[:5] == ["combined", "phase-split", "decode", "12", "20"]
    assert prefill[5] == "500 ms"  # to the last digit, here
    assert prefill[6].endswith(" J")
    assert " ± " in decode[7]
    (sentence,) = of_mode(measured)
    assert sentence.startswith("combined: prefill of 512 tokens takes 500 ms")


def test_what_its_error_hides_is_unknown_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pd_analysis.energy.window.UPDATE_S", 50.0)  # as if the windows were that much shorter
    phases, sizes = group(phased()), group(batched())

    (sentence,) = of_mode(phases)
    assert "decode of 20 tokens takes 1,000 ms, and its energy is unknown" in sentence
    assert "What a token costs is unknown" in of_mode(sizes)[0]
    for measured, columns in ((phases, {6, 7, 9}), (sizes, {9})):
        table = mode_table(measured)
        assert table is not None
        assert {row[column].text for row in table.rows for column in columns} == {"unknown"}
    for draw in (plots.modes.by_phase, plots.modes.by_batch_size):
        for measured in (phases, sizes):
            figure = draw(measured)
            assert figure is None or not any("nan" in text.get_text() for text in figure.findobj(Text))


# --- batch -------------------------------------------------------------------------------------------------------------------


SIZES = (1, 2, 4, 1, 2, 4)


def batched(sizes: tuple[int, ...] = SIZES) -> Run:
    """Batches one after the other, of 2 s each: TTFT 0.1 s a request of the batch, 4 tokens per request; 200 W and 50 W a request."""
    records: list[RequestRecord] = []
    watts_at: list[tuple[float, float, float]] = []
    clock = 3.0
    for size in sizes:
        for _ in range(size):
            gap = (2.0 - 0.1 * size) / 3
            records.append(request(len(records), clock, ttft=0.1 * size, gaps=[gap] * 3, output_tokens=4))
        watts_at.append((clock, clock + 2.0, 200.0 + 50.0 * size))
        clock += 2.0

    def watts(t: np.ndarray) -> np.ndarray:
        return np.select([(t >= low) & (t < high) for low, high, _ in watts_at], [w for *_, w in watts_at], IDLE_W)

    load = workload(arrival="batch", batch_sizes=list(sizes), rate=41.48, output_tokens=4, burstiness=None)
    power = power_log({0: (Role.COMBINED, watts)}, end=clock + 3)
    return run(records, on_boards(manifest(workload=load, window=(3.0, clock)), power), power)


def test_batches_of_one_size_are_taken_together() -> None:
    found = batches(group(batched()).baseline)

    assert [(each.size, each.batches, each.requests, each.served) for each in found] == [
        (1, 2, 2, 2),
        (2, 2, 4, 4),
        (4, 2, 8, 8),
    ]
    assert [each.ttft_s for each in found] == pytest.approx([0.1, 0.2, 0.4])
    # 4 tokens per request, in 2 s
    assert [each.output_rate for each in found] == pytest.approx([2.0, 4.0, 8.0])
    # (200 + 50 n) W × 2 s over 4 n tokens
    joules = [each.token_j for each in found if each.token_j is not None]
    assert [each.value for each in joules] == pytest.approx([125.0, 75.0, 50.0], rel=0.03)
    assert all(0 < each.error < 0.15 * each.value for each in joules)


def test_the_batch_table_has_the_mode_beside_every_number() -> None:
    measured = group(batched())
    table = mode_table(measured)
    assert table is not None

    assert [[cell.text for cell in row][:5] for row in table.rows] == [
        ["combined", "batch", "1", "2", "0"],
        ["combined", "batch", "2", "2", "0"],
        ["combined", "batch", "4", "2", "0"],
    ]
    (sentence,) = of_mode(measured)
    assert "from 1 to 4 requests at once, output goes from 2.00 to 8.00 tok/s" in sentence


def test_a_batch_is_no_rate_and_not_saturated() -> None:
    measured = group(batched())
    said = " ".join([measured.workload, *(each.sentence for each in doubts(measured))])

    assert "mode batch: 1, 2 and 4 requests at once" in said
    assert amount_words(measured.baseline.run.manifest.workload) == "batches of 1, 2 and 4"
    for wrong in ("req/s", "requests/s", "41.5", "saturated"):
        assert wrong not in said


@pytest.mark.parametrize(("measured", "figure"), [(phased, "phases"), (batched, "batches")])
def test_the_report_of_a_mode_has_its_table_and_figure_and_no_percentiles(
    tmp_path: Path, measured: Callable[[], Run], figure: str
) -> None:
    written = write_report(Loaded(runs=[measured()], problems=[]), tmp_path)
    text = written.markdown.read_text()

    assert {path.stem for path in written.plots} == {figure, "power_timeline"}
    assert "| Mode |" in text
    for wrong in ("## Latency", "## Comparison", "req/s", "requests/s", "saturated"):
        assert wrong not in text.split("## Definitions")[0]


def test_without_a_served_request_there_is_no_phase() -> None:
    (result,) = evaluate([run([short(0, 0.0)], manifest(workload=workload(arrival="phase-split")))])

    assert phase_split(result) is None
    assert plots.modes.by_phase(group(result.run)) is None
