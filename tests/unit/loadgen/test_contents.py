"""What requests hold: lengths, shared prefixes, turns, and prompts from files."""

import json
from pathlib import Path

import msgspec
import pytest

from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.prompts.files import FileError
from pd_loadgen.workload import contents
from pd_loadgen.workload.contents import Content, draw
from pd_loadgen.workload.options import Options

OPTIONS = Options(input_tokens=100, output_tokens=20)


def changed(**changes: object) -> Options:
    return msgspec.structs.replace(OPTIONS, **changes)


def test_lengths_vary_evenly_around_their_mean_and_prompts_have_them() -> None:
    made = draw(changed(range_ratio=0.5), 2000)
    inputs = [content.input_tokens or 0 for content in made]
    outputs = [content.output_tokens for content in made]

    assert (min(inputs), max(inputs), min(outputs), max(outputs)) == (50, 150, 10, 30)
    # the mean of 2000 draws from 50…150 has a standard deviation of 0.65
    assert sum(inputs) / 2000 == pytest.approx(100, abs=3)
    assert all(len(content.prompt) == content.input_tokens for content in made)
    assert made == draw(changed(range_ratio=0.5), 2000)


def test_a_shared_prefix_comes_before_every_prompt() -> None:
    made = draw(changed(prefix_tokens=30), 5)

    assert {tuple(content.prompt[:30]) for content in made} == {tuple(made[0].prompt[:30])}
    assert len({tuple(content.prompt[30:]) for content in made}) == 5
    assert {len(content.prompt) for content in made} == {content.input_tokens for content in made} == {130}


def test_prefixes_are_used_in_turn() -> None:
    made = [tuple(content.prompt[:30]) for content in draw(changed(prefix_tokens=30, prefixes=3), 7)]

    assert len(set(made)) == 3
    assert made[:3] == made[3:6]


def test_warm_ups_share_no_prefix_with_what_is_measured() -> None:
    options = changed(prefix_tokens=30)

    assert draw(options, 1, warmup=True)[0].prompt[:30] != draw(options, 1)[0].prompt[:30]


def test_a_text_prefix_is_text() -> None:
    first, second = (content.prompt for content in draw(changed(dataset=Dataset.TEXT, prefix_tokens=50), 2))

    assert isinstance(first, str)
    assert isinstance(second, str)
    assert first[:150] == second[:150]
    assert first != second


def test_each_turn_begins_with_the_one_before_and_all_conversations_take_turns() -> None:
    made = draw(changed(turns=3), 6)
    lengths = [content.input_tokens or 0 for content in made]

    assert lengths == [100, 100, 220, 220, 340, 340]
    assert [len(content.prompt) for content in made] == lengths
    assert made[2].prompt[:100] == made[0].prompt
    assert made[4].prompt[:220] == made[2].prompt
    assert made[3].prompt[:100] == made[1].prompt != made[0].prompt


def write(folder: Path, *lines: object) -> Options:
    path = folder / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return changed(dataset=Dataset.JSONL, dataset_path=str(path))


def drawn(options: Options, count: int) -> list[Content]:
    return draw(options, count, corpus=contents.read(options, "", count))


def test_lines_are_sent_in_order_and_again_from_the_first(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "three"}]
    options = write(tmp_path, {"prompt": "one", "output_tokens": 7}, "", {"prompt": [4, 5]}, {"messages": messages})
    made = drawn(options, 4)

    assert [content.prompt for content in made] == ["one", [4, 5], messages, "one"]
    assert [content.output_tokens for content in made] == [7, 20, 20, 7]
    assert [content.input_tokens for content in made] == [None, 2, None, None]


@pytest.mark.parametrize(
    ("line", "prompt", "outputs"),
    [
        ({"prompt": "a", "output_len": 7}, "a", 7),
        ({"prompt": "a", "expected_output_len": 7.0}, "a", 7),
        ({"prompt": "a", "max_tokens": "7"}, "a", 7),
        ({"text_input": "a", "output_length": 7}, "a", 7),
        ({"text": "a", "output_tokens": None}, "a", 20),
        ('"a"', "a", 20),
        ('{"prompt": "a", "score": NaN}', "a", 20),
        ('{"prompt": "a\u2028b"}', "a\u2028b", 20),
    ],
)
def test_files_for_other_programs_are_read_by_the_names_that_they_use(
    line: object, prompt: str, outputs: int, tmp_path: Path
) -> None:
    assert [(one.prompt, one.output_tokens) for one in drawn(write(tmp_path, line), 1)] == [(prompt, outputs)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_whatever_an_editor_puts_before_a_text_is_no_part_of_it(encoding: str, tmp_path: Path) -> None:
    options = write(tmp_path, "")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    Path(options.dataset_path).write_bytes((mark + '{"prompt": "你好"}\r\n{"prompt": "b"}\r\n').encode(encoding))

    assert [one.prompt for one in drawn(options, 2)] == ["你好", "b"]


def test_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    options = write(tmp_path, "")
    Path(options.dataset_path).write_bytes('{"prompt": "a"}\n{"prompt": "你好"}\n'.encode("gb18030"))

    with pytest.raises(FileError, match=r"jsonl:2: is not UTF-8 .*GB18030"):
        drawn(options, 1)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '{"prompt": 5}',
        '{"prompt": ""}',
        '{"prompt": [-1]}',
        '{"body": "x"}',
        '{"prompt": "x", "messages": [{}]}',
        '{"prompt": "x", "output_len": 0}',
        '{"prompt": "x", "output_len": "many"}',
        "null",
    ],
)
def test_a_broken_line_is_refused_with_its_place(broken: str, tmp_path: Path) -> None:
    options = write(tmp_path, {"prompt": "one"}, broken)
    with pytest.raises(FileError) as caught:
        drawn(options, 1)

    assert str(caught.value).startswith(f"{options.dataset_path}:2: ")


def test_a_file_without_prompts_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no prompt"):
        drawn(write(tmp_path, ""), 1)
    with pytest.raises(FileError, match="there is no such file or folder"):
        drawn(changed(dataset=Dataset.SHAREGPT, dataset_path=str(tmp_path / "none.json")), 1)
