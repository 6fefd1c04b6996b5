"""Traces: three formats, time scale, and broken lines with their place."""

import json
from pathlib import Path

import msgspec
import pytest

from pd_loadgen.prompts import traces
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.traces import Arrived
from pd_loadgen.workload import plan as plan_of_load
from pd_loadgen.workload.contents import draw
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import PlanError, make
from pd_loadgen.workload.schedule import Arrival

MOONCAKE = [
    {"timestamp": 27000, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
    {"timestamp": 30000, "input_length": 600, "output_length": 7, "hash_ids": [1, 9]},
    {"timestamp": 29000, "input_length": 10, "output_length": 1, "hash_ids": [4]},
]
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def mooncake(folder: Path) -> Path:
    return write(folder, "".join(json.dumps(row) + "\n" for row in MOONCAKE))


def test_mooncake_is_read_in_order_of_time_from_its_first_request(tmp_path: Path) -> None:
    assert traces.read(mooncake(tmp_path)).requests == [
        Arrived(0.0, 700, 5, (1, 2)),
        Arrived(2.0, 10, 1, (4,)),
        Arrived(3.0, 600, 7, (1, 9)),
    ]


def test_rows_that_are_not_in_the_order_of_their_times_are_counted(tmp_path: Path) -> None:
    trace = traces.read(write(tmp_path, BURSTGPT + "50,GPT-4,1,2,3,API log\n49,GPT-4,1,2,3,API log\n"))

    assert [row.offset for row in trace.requests] == [0.0, 44.0, 45.0, 113.0]
    assert [str(note) for note in trace.notes] == [
        "trace trace: line 5 is earlier than the one above it (lines like this: 2); requests are sent in the order of their times",
        "trace trace: rows without a response were left out (1 in all)",
    ]


def test_burstgpt_is_read_without_the_requests_that_failed(tmp_path: Path) -> None:
    failed = "50,GPT-4,0,0,0,API log\n60,GPT-4,,,,API log\n70,GPT-4,12.0,NaN,12,API log\n"
    trace = traces.read(write(tmp_path, BURSTGPT + failed))

    assert trace.requests == [Arrived(0.0, 472, 18), Arrived(113.0, 417, 276)]
    assert [str(note) for note in trace.notes] == ["trace trace: rows without a response were left out (4 in all)"]


def test_burstgpt_with_sessions_and_counts_as_a_spreadsheet_writes_them_is_read(tmp_path: Path) -> None:
    text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,1,0.1,GPT-4,472.0,18,490,x\n"

    assert traces.read(write(tmp_path, text)).requests == [Arrived(0.0, 472, 18)]


def test_qwens_traces_have_seconds_and_blocks_of_16_tokens(tmp_path: Path) -> None:
    rows = [
        {
            "chat_id": 7,
            "parent_chat_id": -1,
            "timestamp": 61.5,
            "input_length": 20,
            "output_length": 4,
            "hash_ids": [1, 2],
        },
        {
            "chat_id": 8,
            "parent_chat_id": 7,
            "timestamp": 63.0,
            "input_length": 33,
            "output_length": 5,
            "hash_ids": [1, 3, 4],
        },
    ]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    first, second = traces.read(path).requests
    prompts = [content.prompt for content in draw(Options(), 2, [first, second])]

    assert (first.offset, second.offset, second.block_tokens) == (0.0, 1.5, 16)
    assert (len(prompts[0]), len(prompts[1])) == (20, 33)
    assert prompts[0][:16] == prompts[1][:16]


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\n", "\n\n"])
def test_what_stands_before_the_first_line_is_passed_over(mark: str, tmp_path: Path) -> None:
    for text in (BURSTGPT, AZURE, "".join(json.dumps(row) + "\n" for row in MOONCAKE)):
        assert traces.read(write(tmp_path, mark + text)).requests == traces.read(write(tmp_path, text)).requests


def test_times_of_azure_have_their_zones(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 02:00:00.0099300+02:00,2162,5\n"
        "2024-05-10 00:00:00.5000000+00:00,2399,6\n2024-05-10T00:00:01Z,1,1\n2024-05-09 20:00:02.1-04:00,1,1\n"
    )

    assert [row.offset for row in traces.read(write(tmp_path, text)).requests] == pytest.approx(
        [0, 0.49007, 0.99007, 2.09007]
    )


def test_azure_has_times_of_day_with_seven_digits(tmp_path: Path) -> None:
    first, second = traces.read(write(tmp_path, AZURE)).requests

    assert (first.input_tokens, first.output_tokens, second.input_tokens) == (374, 44, 396)
    assert second.offset == pytest.approx(4.314579, abs=1e-5)


def test_times_are_scaled_and_cut_at_the_duration(tmp_path: Path) -> None:
    assert [row.offset for row in traces.read(mooncake(tmp_path), scale=0.5).requests] == [0.0, 1.0, 1.5]
    assert [row.offset for row in traces.read(mooncake(tmp_path), duration=2.5).requests] == [0.0, 2.0]
    assert [str(note) for note in traces.read(mooncake(tmp_path), duration=2.5).notes] == [
        "trace trace: line 3 is earlier than the one above it (lines like this: 1); requests are sent in the order of their times",
        "trace trace: 2 of 3 requests come in the first 2.5 s; --duration inf replays all",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ": the file is empty"),
        ("a,b\n1,2\n", ":1: neither"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 2}\n{"timestamp"\n', ":2:"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 2}\n', ":1:"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 2, "hash_ids": [1]}\n', ":1: 1 hash_ids are too few"),
        (BURSTGPT + "130,GPT-4,1,two,3,API log\n", ":5:"),
        (BURSTGPT + "130,GPT-4\n", ":5: 2 columns"),
        (BURSTGPT + "130,GPT-4,0,2,2,API log\n", ":5: 0 prompt tokens"),
        (AZURE + "yesterday,1,2\n", ":4:"),
        (BURSTGPT + "nan,GPT-4,1,2,3,API log\n", ":5: the time is not a number"),
        (BURSTGPT + "130,GPT-4,1,-2,3,API log\n", ":5: '-2' is not a number"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 2}\n', ":1: the time is not a number"),
        ('{"session_id": "a", "delay": 5, "input_length": 5, "output_length": 2}\n', ":1:"),
        ('{"timestamp": 1e999, "input_length": 5, "output_length": 2}\n', ":1:"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 2}\n', ":1: the time -1 is below 0"),
        (
            '{"timestamp": 1, "input_length": 1000000000, "output_length": 2}\n',
            ":1: 1,000,000,000 tokens are more than",
        ),
        (AZURE + "2023-11-16 18:15:52,1,30000000\n", ":4: 30,000,000 tokens are more than"),
        (BURSTGPT + "-0.5,GPT-4,1,2,3,API log\n", ":5: the time -0.5 is below 0"),
        (BURSTGPT + "-inf,GPT-4,1,2,3,API log\n", ":5: the time -inf is below 0"),
        (BURSTGPT + "1e999,GPT-4,1,2,3,API log\n", ":5: the time is not a number"),
        (BURSTGPT.splitlines()[0] + "\n", ":1: the trace has no request"),
    ],
)
def test_a_broken_trace_is_refused_with_file_and_line(text: str, place: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FileError) as caught:
        traces.read(path)

    assert str(caught.value).startswith(f"{path}{place}")


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    options = Options(arrival=Arrival.REPLAY, trace=str(tmp_path / "none"))
    with pytest.raises(PlanError, match="none"):
        make(options, "m")


def test_a_trace_of_more_prompt_tokens_than_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(arrival=Arrival.REPLAY, trace=str(mooncake(tmp_path)))
    tokens = sum(one.input_tokens for one in traces.read(Path(options.trace)).requests)
    monkeypatch.setattr(plan_of_load, "MOST_TOKENS", tokens)
    assert len(make(options, "m").requests) == 3

    monkeypatch.setattr(plan_of_load, "MOST_TOKENS", tokens - 1)
    with pytest.raises(PlanError, match=f"3 requests with {tokens:,} prompt tokens in all"):
        make(options, "m")
    assert len(make(msgspec.structs.replace(options, requests=2), "m").requests) == 2


def test_a_replay_has_the_traces_offsets_and_lengths_and_shares_its_blocks(tmp_path: Path) -> None:
    options = Options(arrival=Arrival.REPLAY, trace=str(mooncake(tmp_path)))
    plan = make(options, "m")
    first, _, third = (content.prompt for content in draw(options, 3, traces.read(Path(options.trace)).requests))

    assert [planned.offset for planned in plan.requests] == [0.0, 2.0, 3.0]
    assert [planned.output_tokens for planned in plan.requests] == [5, 1, 7]
    assert (plan.inputs, plan.outputs) == ([600, 690], [5, 7])
    assert (len(first), len(third)) == (700, 600)
    assert first[:512] == third[:512]
    assert first[512:600] != third[512:600]
