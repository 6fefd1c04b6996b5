"""The options of `vllm bench serve` under their own names: translated, ignored if they change nothing, or refused with a hint. Pure.

Users of vLLM know these options. The options of a `vllm bench serve` command, given to `pd-loadgen run`, offer the same load: N prompts
at a rate take as long as they take, and without a rate all are sent at once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

# Options that mean the same, by vLLM's name (SGLang's benchmark shares most).
RENAMED: Final[Mapping[str, str]] = {
    "base-url": "url",
    "request-rate": "rate",
    "num-prompts": "requests",
    "random-input-len": "input-tokens",
    "random-output-len": "output-tokens",
    "random-input": "input-tokens",
    "random-output": "output-tokens",
    "input-len": "input-tokens",
    "output-len": "output-tokens",
    "random-range-ratio": "range-ratio",
    "random-prefix-len": "prefix-tokens",
    "num-warmups": "warmup",
    "warmup-requests": "warmup",
    "ready-check-timeout-sec": "ready-timeout",
    "metric-percentiles": "percentiles",
    "ramp-up-start-rps": "start-rate",
    "ramp-up-end-rps": "rate",
    "hf-name": "dataset-path",
    "hf-split": "dataset-split",
}
# Those whose values have other names, too.
_VALUES: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "dataset-name": ("dataset", {"random": "random", "sharegpt": "sharegpt", "custom": "jsonl", "hf": "huggingface"}),
    "ramp-up-strategy": ("arrival", {"linear": "ramp"}),
    "backend": (
        "endpoint",
        {
            "vllm": "completions", "openai": "completions", "openai-chat": "chat", "vllm-chat": "chat", "sglang": "sglang",
            "sglang-native": "sglang", "sglang-oai": "completions", "sglang-oai-chat": "chat", "lmdeploy": "completions",
            "lmdeploy-chat": "chat", "tgi": "tgi", "tensorrt-llm": "trtllm", "deepspeed-mii": "deepspeed-mii",
        },
    ),
}  # fmt: skip
_ALSO: Final[Mapping[str, str]] = {"endpoint-type": "backend"}
# These change nothing here, with or without a value: results are always saved, nothing is shuffled, no remote code is run.
_NEEDLESS_WORDS: Final = frozenset({"save-result", "disable-tqdm", "trust-remote-code", "no-stream", "disable-shuffle"})
_NEEDLESS_VALUES: Final = frozenset({"percentile-metrics", "tokenizer-mode", "request-id-prefix", "result-filename"})
# What to do instead.
ANSWERS: Final[Mapping[str, str]] = {
    "result-dir": "--out names the run folder",
    "output-file": "--out names the run folder",
    "append-result": "each run has a folder of its own: --out",
    "metadata": "--label and --title name a run, --gpus gives its number of GPUs",
    "header": '--headers takes them as a JSON object: {"X-Name": "value"}',
    "hf-subset": "name it behind the data set: --dataset-path OWNER/NAME:SUBSET",
    "hf-output-len": "lengths of answers are those of the data set, else --output-tokens",
    "sharegpt-output-len": "lengths of answers are those of the file",
    "custom-output-len": "lengths of answers are the file's output_tokens, else --output-tokens",
    "served-model-name": "--model is the name that the server lists",
    "lora-modules": "--model names an adapter as the server lists it",
    "logprobs": "--extra-body '{\"logprobs\": N}' asks for them",
    "use-beam-search": "beam search is not measured",
    "frequency-penalty": "--extra-body '{\"frequency_penalty\": X}' sends it",
    "presence-penalty": "--extra-body '{\"presence_penalty\": X}' sends it",
    "random-batch-size": "--mode batch with --batch-sizes sends requests together",
    "plot-timeline": "pd-analysis report draws the requests over time",
    "prefix-repetition-prefix-len": "--dataset random with --prefix-tokens and --prefixes shares prefixes",
}
_DATA_SETS: Final = (
    "sonnet, burstgpt, prefix_repetition, random-mm and the like: see --dataset, --trace, --prefix-tokens and --images"
)


class ForeignOptionError(ValueError):
    """An option of vLLM's that is not accepted; the message says what to use instead."""


def translated(words: Sequence[str]) -> list[str]:
    """A command line with vLLM's options under our names; all others are left as they are.

    Raises:
        ForeignOptionError: for an option or a value that has no counterpart.
    """
    found = _Found()
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = _ALSO.get(name.replace("_", "-"), name.replace("_", "-"))
        following = partial(_following, left, word, value if equals else None)
        if not word.startswith("--") or not found.take(name, following):
            found.words.append(word)
            found.given.add(name)
    return [*found.words, *_implied(found)]


class _Found:
    """The options translated so far."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.given: set[str] = set()
        self.place: dict[str, str] = {}
        self.theirs: set[str] = set()
        self.burstiness = "1"

    def take(self, name: str, value: Callable[[], str]) -> bool:
        """Take an option of vLLM's and its values; false if it is no such option."""
        if name in ANSWERS:
            msg = f"--{name} is an option of vllm bench serve: {ANSWERS[name]}"
            raise ForeignOptionError(msg)
        if name in RENAMED:
            self._put(RENAMED[name], value())
        elif name in _VALUES:
            self._put(_VALUES[name][0], _value(name, value()))
        elif name in ("host", "port"):
            self.place[name] = value()
        elif name in _NEEDLESS_VALUES:
            value()
        elif name == "burstiness":
            self.burstiness = value()
            self._put(name, self.burstiness)
        elif name == "endpoint":
            self._endpoint(value())
        elif name not in _NEEDLESS_WORDS:
            return False
        self.theirs.add(name)
        return True

    def _endpoint(self, text: str) -> None:
        """Our name of an API, or a path, as vLLM has it."""
        if text.startswith("/"):
            self._put("path", text)
            text = "chat" if text.endswith("/chat/completions") else ""
        if text:
            self._put("endpoint", text)

    def _put(self, name: str, value: str) -> None:
        self.words.append(f"--{name}={value}")
        self.given.add(name)


def _implied(found: _Found) -> list[str]:
    """vLLM's defaults that differ from ours."""
    more = []
    if found.place and "url" not in found.given:
        more.append(f"--url=http://{found.place.get('host', '127.0.0.1')}:{found.place.get('port', '8000')}")
    if "num-prompts" in found.theirs:
        more += ["--duration=inf"] if "duration" not in found.given else []
        more += ["--rate=inf"] if not found.given & {"rate", "arrival", "trace"} else []
    if "arrival" not in found.given and found.burstiness not in ("1", "1.0"):
        more.append("--arrival=gamma")
    return more


def _value(name: str, value: str) -> str:
    _, values = _VALUES[name]
    if value in values:
        return values[value]
    if value in values.values():
        return value
    more = f" ({_DATA_SETS})" if name == "dataset-name" else ""
    msg = f"--{name} {value} has no counterpart here; use one of {', '.join(values)}{more}"
    raise ForeignOptionError(msg)


def _following(left: list[str], word: str, value: str | None) -> str:
    """An option's value: behind its sign, or the next word."""
    if value is not None:
        return value
    if not left:
        msg = f"{word} needs a value"
        raise ForeignOptionError(msg)
    return left.pop(0)


def our_name(name: str) -> str:
    """Our name of an option that a file names as vLLM does; any other name stays."""
    plain = name.replace("_", "-")
    return RENAMED.get(plain, plain).replace("-", "_")
