"""The estimate of prompt tokens depends on what the model reads, not on how the body is written."""

import base64
import io
import json
import struct
import wave
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Limits, parse

MEGABYTE = 1_000_000


def tokens(endpoint: Endpoint, limits: Limits | None = None, **fields: Any) -> int:
    body = json.dumps({"model": "m", **fields}, ensure_ascii=False).encode()
    return parse(endpoint, body, limits or Limits()).tokens


def chat(*parts: dict[str, Any], **fields: Any) -> int:
    return tokens(Endpoint.CHAT, messages=[{"role": "user", "content": list(parts)}], **fields)


def png(width: int, height: int, size: int = 0) -> bytes:
    """A picture's file, as far as its header goes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(size)


def jpeg(width: int, height: int, preview: int) -> bytes:
    """Likewise, behind a preview as cameras write it."""
    parts = [b"\xff\xd8"]
    while preview > 0:
        size = min(preview, 60_000)
        parts.append(b"\xff\xe1" + struct.pack(">H", size + 2) + b"\xd8" * size)
        preview -= size
    parts.append(b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9))
    return b"".join(parts) + bytes(50_000)


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes(bytes(int(44_100 * seconds) * 4))
    return file.getvalue()


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_tools_count() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{number}", "description": "d" * 900, "parameters": {}}}
        for number in range(60)
    ]
    messages = [{"role": "user", "content": "hi"}]
    assert 12_000 < tokens(Endpoint.CHAT, messages=messages, tools=tools) < 16_000
    assert 12_000 < tokens(Endpoint.CHAT, messages=messages, functions=tools) < 16_000
    assert 12_000 < tokens(Endpoint.RESPONSES, input="hi", tools=tools) < 16_000
    assert tokens(Endpoint.CHAT, messages=messages) < 20


@pytest.mark.parametrize("file", [png(1120, 560, 3 * MEGABYTE), jpeg(1120, 560, 0), jpeg(1120, 560, 150_000)])
@pytest.mark.parametrize(
    "part",
    [
        lambda url, _: {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        lambda url, _: {"type": "image_url", "image_url": url},
        lambda _, data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        lambda _, data: {"type": "tool_result", "content": [{"source": {"data": data}}]},
    ],
    ids=["object", "string", "source", "nested"],
)
def test_an_image_counts_by_its_pixels(file: bytes, part: Any) -> None:
    made = part(data_url("image/png", file), base64.b64encode(file).decode())
    expected = (1120 // 28) * (560 // 28)
    assert expected < chat(made, {"type": "text", "text": "what is this?"}) < expected + 60


def test_a_large_image_counts_as_the_setting_says() -> None:
    part = {"type": "image_url", "image_url": {"url": data_url("image/png", png(8000, 6000))}}
    assert 4096 <= chat(part) < 4150
    assert 16_384 <= chat(part, limits=Limits(image_max_tokens=16_384)) < 16_450


@pytest.mark.parametrize(
    "data", [b"", b"A" * (5 * MEGABYTE), b"<svg width='9' height='9'/>", png(0, 0), b"\xff\xd8\xff"]
)
def test_an_image_of_unknown_size_counts_as_one(data: bytes) -> None:
    assert 500 < chat({"type": "image_url", "image_url": {"url": data_url("image/png", data)}}) < 2500


def test_addresses_of_media_count_as_what_lies_there() -> None:
    url = {"url": "https://example.org/x"}
    assert 500 < chat({"type": "image_url", "image_url": url}) < 2500
    assert 300 < chat({"type": "audio_url", "audio_url": url}) < 1500
    assert 2000 < chat({"type": "video_url", "video_url": url}) < 20_000


def test_a_sound_counts_by_its_length() -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(10)).decode(), "format": "wav"}}
    assert 250 <= chat(part) < 300
    part = {"type": "input_audio", "input_audio": {"format": "mp3", "data": base64.b64encode(bytes(160_000)).decode()}}
    assert 250 <= chat(part) < 300


def test_many_images_count_each() -> None:
    part = {"type": "image_url", "image_url": {"url": data_url("image/png", png(280, 280))}}
    assert 1000 < chat(*[part] * 10) < 1300
    content = [{"type": "input_image", "image_url": data_url("image/png", png(280, 280))}] * 10
    assert 1000 < tokens(Endpoint.RESPONSES, input=[{"role": "user", "content": content}]) < 1300
    output = [{"type": "function_call_output", "output": content}]
    assert 1000 < tokens(Endpoint.RESPONSES, input=output) < 1300


def test_base64_in_a_text_is_text() -> None:
    html = f'<img src="{data_url("image/png", png(280, 280, 30_000))}">'
    assert chat({"type": "text", "text": html}) > 9_000
    assert tokens(Endpoint.CHAT, messages=[{"role": "user", "content": html}]) > 9_000


@pytest.mark.parametrize("messages", [[[1]], ["image_url"], [{"content": [1, {"image_url": 1}]}], {"image_url": {}}, 5])
def test_messages_that_are_none_are_the_engines_to_refuse(messages: Any) -> None:
    assert tokens(Endpoint.CHAT, messages=messages, note='"image_url"') >= 1


def test_a_character_counts_as_much_however_it_is_written() -> None:
    messages = [{"role": "user", "content": "\u4f60" * 3000}]
    written = [json.dumps({"messages": messages}, ensure_ascii=ascii_).encode() for ascii_ in (False, True)]
    one, other = (parse(Endpoint.CHAT, body).tokens for body in written)
    assert one == other
    assert 1500 < one < 3500


@given(
    st.one_of(
        st.lists(st.integers(0, 200_000), min_size=1),
        st.lists(st.lists(st.integers(0, 200_000), min_size=1), min_size=1),
    )
)
def test_token_ids_count_exactly(prompt: list[Any]) -> None:
    expected = sum(len(one) if isinstance(one, list) else 1 for one in prompt)
    assert tokens(Endpoint.COMPLETIONS, prompt=prompt) == expected


def test_every_prompt_of_a_list_counts() -> None:
    assert 2400 < tokens(Endpoint.COMPLETIONS, prompt=["x" * 1000] * 10) < 2600
