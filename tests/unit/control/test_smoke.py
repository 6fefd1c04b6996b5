"""How the smoke test judges answers."""

from typing import Any

import msgspec
import pytest

from pd_contracts import sse, timing
from pd_contracts.http_call import Reply
from pd_control.cli import smoke
from pd_control.cli.smoke import Check, compare, judge, judge_stream, refuse_error
from pd_control.client import ClientError

STAGES = timing.Stages(queue=0.1, prefill=20, kv_and_first_decode=5, decode=35, decode_instance="decode-0")


def chunk(text: str, tokens: list[int] | None = None, usage: dict[str, int] | None = None) -> bytes:
    choices = [{"index": 0, "text": text, "token_ids": tokens}] if usage is None else []
    return sse.encode_event(msgspec.json.encode({"choices": choices, "usage": usage}))


def test_a_stream_is_read_to_its_tokens_and_stages() -> None:
    body = b"".join(
        [
            chunk("a", [1]),
            chunk("b", [2]),
            chunk("", usage={"completion_tokens": 2}),
            sse.encode_comment(timing.PREFIX + timing.encode(STAGES)),
            sse.encode_event(sse.DONE),
        ]
    )

    check = judge_stream("stream", body, 0.06)

    assert (check.ok, check.text, check.tokens, check.stages) == (True, "ab", [1, 2], STAGES)
    assert check.sentence == "2 tokens in 60 ms"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (chunk("a", [1]), "without \\[DONE\\]"),
        (chunk("a", [1])[:-1], "cut in the middle"),
        (sse.encode_event('{"error":{"message":"decode-0 is gone"}}', "error"), "decode-0 is gone"),
    ],
)
def test_a_broken_stream_is_a_failure(body: bytes, sentence: str) -> None:
    with pytest.raises(ClientError, match=sentence):
        judge_stream("stream", body, 0.1)


def test_a_model_without_a_chat_template_fails_no_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    told = b'{"error":{"message":"default chat template is no longer allowed, so you must provide a chat template"}}'
    refused = Reply(status=400, headers={}, body=told, elapsed_s=0.1)
    monkeypatch.setattr(smoke, "post", lambda *_: refused)

    checks = {check.name: check for check in smoke.run("http://x", "base-model", 1.0)}

    assert checks["chat"].ok
    assert "skipped" in checks["chat"].sentence
    assert not checks["completion"].ok


def test_an_empty_answer_is_a_failure_whatever_its_status() -> None:
    check = judge("completion", text="", tokens=[], count=0, stages=None, elapsed_s=0.1)

    assert not check.ok
    assert "without a single token" in check.sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"error":{"message":"no decode engine is ready"}}', "status 503: no decode engine is ready"),
        (b"<html>", "status 503: <html>"),
    ],
)
def test_an_error_is_told_in_the_servers_words(body: bytes, sentence: str) -> None:
    with pytest.raises(ClientError) as error:
        refuse_error(Reply(status=503, headers={}, body=body, elapsed_s=0))

    assert str(error.value) == sentence


def test_streamed_and_plain_answers_must_be_equal() -> None:
    plain = Check(name="a", ok=True, sentence="", text="x", tokens=[1])
    other = Check(name="b", ok=True, sentence="", text="x", tokens=[2])

    assert compare(plain, plain).ok
    assert not compare(plain, other).ok


@pytest.mark.parametrize(
    ("stages", "streamed", "line"),
    [
        ({"prefill_instance": "p"}, True, "p → d: queue 0.1, prefill 20.0, KV + first token 5.0, decode 35.0 ms"),
        (
            {"prefill_instance": "p", "first_token": "prefill"},
            True,
            "p → d: queue 0.1, prefill 20.0, first token 5.0, KV + decode 35.0 ms",
        ),
        ({"prefill_instance": "p"}, False, "p → d: queue 0.1, prefill 20.0, KV + decode 40.0 ms"),
        ({"prefill": 0}, True, "d: queue 0.1, prefill + first token 5.0, decode 35.0 ms"),
        ({"prefill": 0}, False, "d: queue 0.1, prefill + decode 40.0 ms"),
    ],
)
def test_only_stages_that_can_be_told_apart_have_a_time(stages: dict[str, Any], streamed: bool, line: str) -> None:
    timed = msgspec.structs.replace(STAGES, decode_instance="d", **stages)

    assert smoke.stages_line(timed, streamed=streamed) == line
