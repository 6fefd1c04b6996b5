"""What requests hold: lengths, shared prefixes, turns, and prompts from files."""

import json
from pathlib import Path

import msgspec
import pytest

from pd_loadgen.prompts import corpora
from pd_loadgen.prompts.corpora import CorpusError
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.workload.contents import draw
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


def test_lines_are_sent_in_order_and_again_from_the_first(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "three"}]
    options = write(tmp_path, {"prompt": "one", "output_tokens": 7}, "", {"prompt": [4, 5]}, {"messages": messages})
    made = draw(options, 4)

    assert [content.prompt for content in made] == ["one", [4, 5], messages, "one"]
    assert [content.output_tokens for content in made] == [7, 20, 20, 7]
    assert [content.input_tokens for content in made] == [None, 2, None, None]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '{"prompt": 5}',
        '{"prompt": ""}',
        '{"prompt": [-1]}',
        '{"text": "x"}',
        '{"prompt": "x", "messages": [{}]}',
    ],
)
def test_a_broken_line_is_refused_with_its_place(broken: str, tmp_path: Path) -> None:
    options = write(tmp_path, {"prompt": "one"}, broken)
    with pytest.raises(CorpusError) as caught:
        draw(options, 1)

    assert str(caught.value).startswith(f"{options.dataset_path}:2: ")


def test_a_file_without_prompts_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no prompt"):
        draw(write(tmp_path, ""), 1)
    with pytest.raises(CorpusError, match="No such file"):
        corpora.read(Dataset.SHAREGPT, tmp_path / "none.json")


def conversation(asked: int, answered: int, first: str = "human") -> dict[str, object]:
    words = [{"from": first, "value": "ask " * asked}, {"from": "gpt", "value": "say " * answered}]
    return {"id": "x", "conversations": words}


def test_sharegpt_gives_first_questions_with_the_length_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    kept = conversation(10, 100)
    others = [
        conversation(1, 100),
        conversation(10, 1),
        conversation(1100, 100),
        conversation(10, 2100),
        conversation(10, 100, first="gpt"),
        {"id": "empty", "conversations": []},
    ]
    path.write_text(json.dumps([*others, kept]))

    entry = corpora.read(Dataset.SHAREGPT, path)

    assert [(one.prompt, one.output_tokens) for one in entry] == [("ask " * 10, 100)]


def test_a_broken_conversation_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    good = json.dumps(conversation(10, 10))
    path.write_text(f'[\n{good},\n{good},\n{{"conversations": [{{"from": "human"}}]}}\n]')

    with pytest.raises(CorpusError) as caught:
        corpora.read(Dataset.SHAREGPT, path)

    assert str(caught.value).startswith(f"{path}:4: ")
