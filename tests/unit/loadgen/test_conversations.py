"""ShareGPT and its relatives: whose first question is sent, how long its answer is in any language, and what is left out."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pd_loadgen.prompts import corpora, tokenizer
from pd_loadgen.prompts.corpora import Corpus
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.prompts.files import FileError
from pd_loadgen.prompts.token_estimate import estimated_tokens
from pd_loadgen.prompts.tokenizer import TokenCounter
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import make

BY_WORDS = TokenCounter(lambda text: len(text.split()), "words")
CHINESE = (
    "请用简单的语言解释一下预填充和解码分离部署的原理，并说明它在什么情况下比普通部署更好。",
    "预填充阶段计算密集，一次处理整个提示词；解码阶段受显存带宽限制，每步只产生一个词元。把两个阶段放在不同的显卡上，长提示词就不会打断其他请求的输出，因此词元之间的间隔更加稳定。代价是需要在显卡之间传输键值缓存，首个词元会稍晚一些。",
)
JAPANESE = (
    "プリフィルとデコードを別々のGPUで実行する利点をわかりやすく説明してください。",
    "プリフィルは計算量が多く、デコードはメモリ帯域に制限されます。二つの段階を分けると、長いプロンプトが他の利用者の出力を止めることがなくなり、トークンの間隔が安定します。その代わりに、キーバリューキャッシュをGPUの間で転送する必要があります。",
)


def conversation(asked: int, answered: int, first: str = "human") -> dict[str, object]:
    words = [{"from": first, "value": "ask " * asked}, {"from": "gpt", "value": "say " * answered}]
    return {"id": "x", "conversations": words}


def read(folder: Path, text: str, counter: TokenCounter = BY_WORDS, count: int = 100) -> Corpus:
    path = folder / "sharegpt.json"
    path.write_text(text, "utf-8")
    return corpora.read(Dataset.SHAREGPT, path, counter, count)


def answers(corpus: Corpus) -> list[tuple[Any, int | None]]:
    return [(one.prompt, one.output_tokens) for one in corpus.entries]


def test_first_questions_are_sent_with_the_length_of_their_answers_and_the_rest_is_counted(tmp_path: Path) -> None:
    others = [
        conversation(1, 100),
        conversation(10, 1),
        conversation(1100, 100),
        conversation(10, 2100),
        conversation(10, 100, first="gpt"),
        {"id": "empty", "conversations": []},
        {"id": "null", "conversations": None},
        {"id": "nothing said", "conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]},
    ]
    corpus = read(tmp_path, json.dumps([*others, conversation(10, 100)]))

    assert answers(corpus) == [("ask " * 10, 100)]
    assert corpus.notes == [
        "dataset sharegpt: 8 of 9 conversations were left out: 2 longer than 1024 tokens of question or 2048 of both, 2 shorter than 4 tokens, 4 without a first question and its answer",
        "dataset sharegpt: lengths of answers by words",
    ]


@pytest.mark.parametrize(
    "one",
    [
        {"conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "a b c d"}, {"from": "gpt", "value": "1 2 3 4 5"}]},
        {"conversation": [{"human": "a b c d", "assistant": "1 2 3 4 5"}]},
        {"messages": [{"role": "user", "content": "a b c d"}, {"role": "assistant", "content": "1 2 3 4 5"}]},
        {"items": [{"from": "Human", "value": "a b c d"}, {"from": "GPT", "value": "1 2 3 4 5"}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["array", "lines"])
def test_every_form_in_which_conversations_are_published_is_read(one: object, form: str, tmp_path: Path) -> None:
    text = json.dumps([one], indent=1) if form == "array" else json.dumps(one) + "\n"

    assert answers(read(tmp_path, text)) == [("a b c d", 5)]


def test_a_broken_conversation_is_refused_with_its_line(tmp_path: Path) -> None:
    good = json.dumps(conversation(10, 10))
    for broken in ('{"conversations": [{"from": "human"}]}', "5", '{"text": "a"}', '{"conversations": ["a"]}'):
        with pytest.raises(FileError) as caught:
            read(tmp_path, f"[\n{good},\n{good},\n{broken}\n]")
        assert str(caught.value).startswith(f"{tmp_path / 'sharegpt.json'}:4: ")


def test_a_large_file_is_counted_only_as_far_as_it_is_needed(tmp_path: Path) -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return 9

    counter = TokenCounter(count, "nothing")
    read(tmp_path, json.dumps([conversation(5, 5)] * 50), counter, count=3)

    assert len(asked) == 6


@pytest.mark.parametrize("said", [CHINESE, JAPANESE], ids=["Chinese", "Japanese"])
def test_conversations_in_languages_without_blanks_are_not_taken_for_single_words(
    said: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}]
    path.write_text(json.dumps([{"conversations": turns}], ensure_ascii=False), "utf-8")
    plan = make(Options(dataset=Dataset.SHAREGPT, dataset_path=str(path), duration=5, seed=3), "m")

    # Qwen counts 78 and 83, DeepSeek 71 and 80, GPT-4o 86 and 92, Llama 3 86 and 84
    assert {one.output_tokens for one in plan.requests} <= set(range(71, 93))
    assert plan.notes == [
        "dataset sharegpt: lengths of answers by an estimate by script (no tokenizer of m on this machine; --tokenizer names one)"
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 1), ("hello", 1), ("Hello, world!", 4), ("1234", 2), ("你好世界", 3), ("こんにちは", 3), ("안녕하세요", 4), ("Привет", 2)],
)  # fmt: skip
def test_every_script_has_tokens(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


class Library(ModuleType):
    """Stands in for `tokenizers`, whose tokens are characters."""

    def __init__(self) -> None:
        super().__init__("tokenizers")
        self.Tokenizer = self

    def from_file(self, path: str) -> "Library":
        if Path(path).read_text() != "good":
            raise Exception("expected value at line 1")  # noqa: TRY002 - as the library does
        return self

    def from_pretrained(self, name: str) -> "Library":
        if name != "owner/there":
            raise Exception("404 Client Error")  # noqa: TRY002 - as the library does
        return self

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"ids": list(text)})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tokenizers", Library())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for folder in (tmp_path / "model", tmp_path / "hf/hub/models--owner--name/snapshots/abc"):
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("good")
    return tmp_path / "model"


def test_the_models_tokenizer_counts_where_it_can_be_had(model: Path) -> None:
    by_hand = [tokenizer.find(name, "") for name in (str(model), str(model / "tokenizer.json"), "owner/there")]
    found = [tokenizer.find("", name) for name in (str(model), "owner/name")]

    assert [one.count("a b") for one in [*by_hand, *found]] == [3] * 5
    assert found[1].source == "the tokenizer of owner/name"


def test_no_tokenizer_is_an_estimate_that_says_so_unless_one_was_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer.find("", "owner/other").source.startswith("an estimate by script (no tokenizer of owner/other")
    assert tokenizer.find("estimate", "owner/name").source == "an estimate by script"
    (model / "tokenizer.json").write_text("broken")
    assert "no tokenizer: expected value" in tokenizer.find("", str(model)).source
    with pytest.raises(FileError, match="expected value"):
        tokenizer.find(str(model), "")
    with pytest.raises(FileError, match="404"):
        tokenizer.find("owner/absent", "")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert r"install pd-loadgen[tokenizer]" in tokenizer.find("", "owner/name").source
    with pytest.raises(FileError, match=r"install pd-loadgen\[tokenizer\]"):
        tokenizer.find("owner/there", "")
