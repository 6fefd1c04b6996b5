"""Headers and the key: where they are read from, and that they are not written anywhere."""

from pathlib import Path

import pytest

from pd_loadgen.client.access import AccessError, headers


def test_without_a_key_there_are_only_the_given_headers() -> None:
    assert headers('{"X-A": "b"}', "", {}) == {"X-A": "b"}
    assert headers("", "", {}) == {}


def test_the_key_comes_from_the_file_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")

    assert headers("", str(tmp_path / "key"), {"LOADGEN_API_KEY": "x"}) == {"Authorization": "Bearer from-file"}
    assert headers("", "", {"LOADGEN_API_KEY": "x"}) == {"Authorization": "Bearer x"}


def test_a_key_meant_for_another_service_is_not_sent() -> None:
    assert headers("", "", {"OPENAI_API_KEY": "x"}) == {}


@pytest.mark.parametrize(("text", "sentence"), [("", "is empty"), ("a\nX-B: c", "cannot carry")])
def test_a_key_that_is_none_is_refused_without_showing_it(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(AccessError, match=sentence) as caught:
        headers("", str(tmp_path / "key"), {})

    assert "X-B" not in str(caught.value)


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="cannot be read"):
        headers("", str(tmp_path / "none"), {})
