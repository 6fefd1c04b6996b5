"""What libraries say of files, in a reader's words."""

import errno
import os
import re
import tomllib
from typing import Annotated, Any

import msgspec
import pytest
import yaml

from pd_analysis.words.language import in_language, told
from pd_contracts.libraries import plain


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    names: Annotated[list[str], msgspec.Meta(min_length=2)] = msgspec.field(default_factory=lambda: ["a", "b"])
    maybe: int | list[int] | None = None


class Outer(msgspec.Struct):
    inner: Inner


def raised(read: Any, text: str) -> Exception:
    with pytest.raises((msgspec.MsgspecError, ValueError, yaml.YAMLError, RecursionError)) as caught:
        read(text)
    return caught.value


def outer(text: str) -> Any:
    return msgspec.json.decode(text, type=Outer)


@pytest.mark.parametrize(
    ("read", "text", "english", "chinese"),
    [
        (outer, "[]", "expected an object, got a list", "应为对象，实为列表"),
        (outer, "{}", "the field inner is missing", "缺少字段 inner"),
        (outer, '{"inner": {"count": "x"}}', "inner.count: expected a whole number, got a text", "inner.count：应为整数，实为文本"),
        (outer, '{"inner": {"count": 0}}', "inner.count: expected a whole number of at least 1", "inner.count：应为不小于 1 的整数"),
        (outer, '{"inner": {"share": 0}}', "inner.share: expected a number above 0.0", "inner.share：应为大于 0.0 的数"),
        (outer, '{"inner": {"share": 2}}', "inner.share: expected a number of at most 1.0", "inner.share：应为不大于 1.0 的数"),
        (outer, '{"inner": {"names": []}}', "inner.names: expected a list with at least 2 entries", "inner.names：应为至少 2 项的列表"),
        (outer, '{"inner": {"names": [1, 2]}}', "inner.names[0]: expected a text, got a whole number", "inner.names[0]：应为文本，实为整数"),
        (outer, '{"inner": {"maybe": true}}', "inner.maybe: expected a whole number or a list, got true or false", "inner.maybe：应为整数或列表，实为 true 或 false"),
        (outer, '{"inner": {"other": 1}}', "inner: the field other is unknown", "inner：字段 other 未知"),
        (outer, '{"inner"', "this is not JSON: its end is missing", "不是 JSON：末尾缺失"),
        (outer, "{'inner'}", "this is not JSON, from byte 1 on", "从第 1 字节起不是 JSON"),
        (tomllib.loads, "a = \nb = 1", "this is not TOML, from line 1, column 5 on", "从第 1 行第 5 列起不是 TOML"),
        (tomllib.loads, "a = [1", "this is not TOML: its end is missing", "不是 TOML：末尾缺失"),
        (yaml.safe_load, "a: b: c", "this is not YAML, from line 1, column 5 on", "从第 1 行第 5 列起不是 YAML"),
        (lambda _: b"ab\xff".decode(), "", "this is not UTF-8, from byte 2 on (0xff)", "从第 2 字节起不是 UTF-8（0xff）"),
        (lambda text: msgspec.json.decode(text * 100_000), "[", "it is nested too deeply", "嵌套太深"),
    ],
)  # fmt: skip
def test_a_decoders_words_become_a_sentence(read: Any, text: str, english: str, chinese: str) -> None:
    error = raised(read, text)

    assert str(plain(error)) == told(error) == english
    assert not re.search(r"[`$]|Expected|codec", english)
    with in_language("zh"):
        assert told(error) == told(plain(error)) == chinese


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [
        (errno.ENOENT, "there is no such file or folder", "没有这个文件或文件夹"),
        (errno.ELOOP, "Too many levels of symbolic links", "Too many levels of symbolic links"),
    ],
)
def test_of_the_systems_error_only_the_reason_is_told(number: int, english: str, chinese: str) -> None:
    error = OSError(number, os.strerror(number), "no.csv")

    assert str(plain(error)) == english
    with in_language("zh"):
        assert told(plain(error)) == chinese


def test_what_is_not_known_stays() -> None:
    error = ValueError("odd")

    assert plain(error) is error
    assert told(error) == "odd"
