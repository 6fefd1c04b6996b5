"""Generated pictures and sounds, as a decoder reads them."""

import base64
import io
import json
import struct
import wave
import zlib
from typing import Any

import pytest

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts import media
from pd_loadgen.prompts.datasets import Dataset
from pd_loadgen.workload import contents, plan
from pd_loadgen.workload.options import Options

SHOW = Options(
    dataset=Dataset.TEXT, endpoint=Endpoint.CHAT, images=2, image_size="8x4", audios=1, audio_seconds=0.5, requests=2
)


def test_a_picture_has_its_size_and_every_pixel() -> None:
    data = media.png("a", 8, 4)

    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        found[kind] = body
        at += 12 + length
    assert struct.unpack(">IIBB", found[b"IHDR"][:10]) == (8, 4, 8, 2)
    assert len(zlib.decompress(found[b"IDAT"])) == 4 * (1 + 3 * 8)
    assert b"IEND" in found


def test_a_sound_has_its_length() -> None:
    with wave.open(io.BytesIO(media.wav("a", 0.5))) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16_000)
        assert sound.getnframes() == 8_000


def test_media_differ_from_each_other_and_are_reproducible() -> None:
    assert media.png("a", 4, 4) == media.png("a", 4, 4) != media.png("b", 4, 4)
    assert media.wav("a", 0.1) != media.wav("b", 0.1)


@pytest.mark.parametrize("text", ["", "8", "8x", "0x8", "8x8x8", "a x b", "99999x99999"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="image_size"):
        Options(image_size=text)


def test_messages_show_pictures_and_play_sounds_as_data_urls() -> None:
    made = contents.draw(SHOW, 2)
    parts: list[Any] = [content.prompt[0]["content"] for content in made]  # type: ignore[index]

    assert [part["type"] for part in parts[0]] == ["text", "image_url", "image_url", "audio_url"]
    url = parts[0][1]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert parts[0][3]["audio_url"]["url"].startswith("data:audio/wav;base64,")
    urls = [part["image_url"]["url"] for message in parts for part in message[1:3]]
    assert len(set(urls)) == 4
    # what is sent is what was drawn, and the fingerprint covers it
    planned = plan.make(SHOW, "m")
    assert json.loads(planned.requests[0].wire.partition(b"\r\n\r\n")[2])["messages"] == made[0].prompt


@pytest.mark.parametrize("given", [{"endpoint": Endpoint.COMPLETIONS}, {"dataset": Dataset.RANDOM}, {"turns": 2}])
def test_pictures_where_none_can_be_shown_are_refused(given: dict[str, object]) -> None:
    chosen = {"dataset": Dataset.TEXT, "endpoint": Endpoint.CHAT, "images": 1, **given}

    with pytest.raises(ValueError, match=r"endpoint chat|token ids"):
        Options(**chosen)  # type: ignore[arg-type]
