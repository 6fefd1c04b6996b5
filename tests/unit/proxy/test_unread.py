"""Requests that the proxy passes on without serving them itself: no spelling brings KV parameters to an engine."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.errors import BadRequestError
from pd_proxy.protocol import forms, unread
from pd_proxy.protocol.forms import Part

PARAMS = {"do_remote_prefill": True, "remote_host": "10.0.0.1"}
HEAD = 'Content-Disposition: form-data; name="{}"\r\n\r\n'
KIND = "multipart/form-data; boundary=b"


def of(body: bytes, kind: str = "application/json") -> unread.Unread:
    return unread.of(kind, body, 1000)


def form(*parts: str | bytes) -> bytes:
    """A form of parts with their heads."""
    whole = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in whole) + b"--b--\r\n"


def fields(found: unread.Unread) -> dict[str, bytes]:
    return {part.name: bytes(part.content) for part in forms.read(found.content_type, found.body)}


def test_a_body_without_anything_of_kv_stays_as_it_is() -> None:
    body = b'{ "model":"m" , "input": [1.10, {"kv_transfer_params": 1}] }'
    assert of(body) == unread.Unread("m", "application/json", body)
    assert of(b'{"input": "x"}').model is None
    assert of(b'{"model": 7}').model is None


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "request_id"])
@pytest.mark.parametrize("around", ["{}", "\ufeff{}", " \n{}\n"])
def test_no_spelling_of_json_brings_it_to_an_engine(name: str, around: str) -> None:
    escaped = name.replace("_", "\\u005f", 1)
    inner = json.dumps({"kept": 1, name: PARAMS})
    for text in (
        f'{{"model":"m","{name}":{{"a":1}}}}',
        f'{{"model":"m","{escaped}":{{"a":1}}}}',
        f'{{"{name}":null,"model":"m","{name}":{{"a":1}}}}',
        f'{{"model":"m","vllm_xargs":{inner}}}',
        f'{{"model":"m","vllm_xargs":{{}},"vllm\\u005fxargs":{inner.replace(name, escaped)}}}',
        f'{{"model":"m","sampling_params":{{"n":1,"extra_args":{inner}}}}}',
    ):
        found = of(around.replace("{}", text).encode())
        assert found.model == "m"
        assert "10.0.0.1" not in str(json.loads(found.body))
        assert name not in str(json.loads(found.body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"kv_transfer_params":{"a":1},"x":NaN}',
        b'{"kv_transfer_params":{"a":-Infinity}}',
        '{"kv_transfer_params":{"a":1}}'.encode("utf-16"),
        '{"kv_transfer_params":{"a":1}}'.encode("utf-16-le"),
        '{"kv_transfer_params":{"a":1}}'.encode("utf-32"),
        b'{"kv_transfer_params":{"a":1},"x":"\xed\xa0\x80"}',
        b'{"kv_transfer_params":{"a":1},"x":"\xff"}',
        b'{"kv_transfer_params":{"a":1}} ]',
        b'[{"kv_transfer_params":{"a":1}}]',
        b"kv_transfer_params=1&model=m",
        b"",
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_what_only_an_engines_parser_reads_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(BadRequestError, match="JSON"):
        of(body, kind)


def test_millions_of_names_are_not_built() -> None:
    with pytest.raises(BadRequestError, match="MAX_BODY_ITEMS"):
        of(b'{"kv_transfer_params":1' + b"".join(b',"%d":1' % number for number in range(50_000)) + b"}")


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; name="kv_transfer_params"\r\n\r\n',
        "Content-Disposition: form-data; name=kv_transfer_params\r\n\r\n",
        'content-disposition:form-data;NAME="kv_transfer_params"; filename="a"\r\n\r\n',
        "Content-Disposition: form-data; name*=utf-8''kv%5Ftransfer_params\r\n\r\n",
        'Content-Disposition: form-data; name="model"; name="kv_transfer_params"\r\n\r\n',
        "Content-Disposition: form-data; name=model; name*=iso-8859-1'en'kv_transfer%5fparams\r\n\r\n",
        'Content-Disposition: form-data; x="; name=model"; name="kv_transfer_params"\r\n\r\n',
        'Content-Disposition: form-data;\r\n name="kv_transfer_params"\r\n\r\n',
        'X: y\r\nContent-Disposition: form-data; name="kv_\\transfer_params"\r\n\r\n',
        'Content-Disposition: form-data; name="vllm_xargs[kv_transfer_params]"\r\n\r\n',
        'Content-Disposition: form-data; name="vllm_xargs.kv_transfer_params"\r\n\r\n',
        'Content-Disposition: form-data; name="request_id"\r\n\r\n',
        'Content-Disposition: form-data; name="ec_transfer_params"\r\n\r\n',
    ],
)
@pytest.mark.parametrize(
    "kind", [KIND, 'Multipart/Form-Data; charset=utf-8; Boundary="b"', " multipart/form-data;boundary=b"]
)
def test_no_spelling_of_a_form_brings_it_to_an_engine(head: str, kind: str) -> None:
    body = form(HEAD.format("model") + "whisper", head + json.dumps(PARAMS))
    found = of(body, kind)
    assert (found.model, fields(found)) == ("whisper", {"model": b"whisper"})
    assert b"10.0.0.1" not in found.body


def test_what_engines_read_in_a_form_as_json_is_searched() -> None:
    xargs = '{"kept":1,"kv_transfer_params":1,"kv\\u005ftransfer_params":{"a":1},"ec_transfer_params":1}'
    sampling = '{"extra_args":{"kv_transfer_params":1,"kept":2}}'
    found = of(form(HEAD.format("vllm_xargs") + xargs, HEAD.format("sampling_params") + sampling), KIND)
    assert fields(found) == {"vllm_xargs": b'{"kept":1}', "sampling_params": b'{"extra_args":{"kept":2}}'}
    assert fields(of(form(HEAD.format("vllm_xargs") + "null"), KIND)) == {"vllm_xargs": b"null"}


@pytest.mark.parametrize("value", ['{"kv_transfer_params":1,"x":NaN}', "[1]", "", "x", '"{}"'])
def test_what_cannot_be_searched_in_a_form_is_refused(value: str) -> None:
    with pytest.raises(BadRequestError, match="`vllm_xargs` must be a JSON object"):
        of(form(HEAD.format("vllm_xargs") + value), KIND)


def test_a_delimiter_that_only_the_engine_would_see_is_no_delimiter_any_more() -> None:
    hidden = 'a\n--b\r\nContent-Disposition: form-data; name="kv_transfer_params"\r\n\r\n1'
    found = of(form(HEAD.format("prompt") + hidden), KIND)
    assert fields(found) == {"prompt": hidden.encode()}
    assert not found.content_type.endswith("=b")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(HEAD.format("model") + "m"), "multipart/form-data"),
        (form(HEAD.format("model") + "m"), "multipart/mixed; boundary=b"),
        (form(HEAD.format("model") + "m"), "multipart/form-data; boundary=c"),
        (form(HEAD.format("model") + "m")[:-6], KIND),
        (form(HEAD.format("model") + "m").replace(b"\r\n", b"\n"), KIND),
        (form("Content-Type: text/plain\r\n\r\nm"), KIND),
        (form(*[HEAD.format("a") + "m"] * 1001), KIND),
        (form('Content-Disposition: form-data; name*0="kv_trans"; name*1="fer_params"\r\n\r\nm'), KIND),
        (form("Content-Disposition: form-data; name*=utf-7''kv_transfer_params\r\n\r\nm"), KIND),
        (form(f"X: {'x' * 20_000}\r\n" + HEAD.format("a")), KIND),
        (b"", KIND),
        (b"x", "multipart/form-data; boundary=\u00e9"),
    ],
    ids=[
        "no boundary",
        "mixed",
        "another boundary",
        "cut",
        "line feeds",
        "no name",
        "many",
        "continued",
        "UTF-7",
        "long head",
        "nothing",
        "é",
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(BadRequestError):
        of(body, kind)


@given(
    st.lists(
        st.builds(
            Part,
            name=st.text(
                st.characters(exclude_characters='"\r\n\\', exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1
            ),
            content=st.binary(),
            filename=st.none() | st.text("abc é.wav"),
            content_type=st.sampled_from(["", "audio/wav", "text/plain; charset=utf-8"]),
        ),
        max_size=4,
    )
)
def test_every_form_comes_out_as_it_went_in(parts: list[Part]) -> None:
    again = forms.read(*forms.write(parts))
    assert [said(part) for part in again] == [said(part) for part in parts]


def said(part: Part) -> Any:
    return part.name.strip(), bytes(part.content), part.filename, part.content_type


def test_empty_values_and_a_preamble_are_allowed() -> None:
    body = b"preamble\r\n" + form(HEAD.format("a"), HEAD.format("file") + "\x00\r\n--bb\r\n")
    with pytest.raises(BadRequestError):
        of(body, KIND)
    body = b"preamble\r\n" + form(HEAD.format("a"), HEAD.format("file") + "\x00\r\n-b\r\n")
    assert fields(of(body, KIND)) == {"a": b"", "file": b"\x00\r\n-b\r\n"}


def test_many_long_heads_are_read_without_effort() -> None:
    """Python's `email` takes quadratic time for parameters: half a minute for sixteen megabytes."""
    head = 'Content-Disposition: form-data; name="a"' + ";b=c" * 480 + "\r\n\r\n"
    assert fields(of(form(*[head + "1"] * 1000), KIND)) == {"a": b"1"}


def test_a_file_may_have_any_name() -> None:
    heads = (
        'Content-Disposition: form-data; name="file"; filename="a \\"b\\".wav"\r\nContent-Type: audio/wav\r\n\r\nx',
        "Content-Disposition: form-data; name=file; filename*=utf-8''%e4%bd%a0.wav\r\n\r\nx",
        'Content-Disposition: form-data; name="file"; filename="你.wav"\r\n\r\nx',
        'Content-Disposition: form-data; name="file"; filename=""\r\n\r\nx',
    )
    found = of(form(*heads), KIND)
    names = [part.filename for part in forms.read(found.content_type, found.body)]
    assert names == ["a %22b%22.wav", "你.wav", "你.wav", ""]
