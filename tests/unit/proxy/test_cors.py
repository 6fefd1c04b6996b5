"""The CORS headers that browsers get."""

import pytest

from pd_proxy.api.cors import allows, headers, preflight, unread

PAGE = "http://localhost:3000"
ASKED = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_without_the_setting_there_are_no_cors_headers() -> None:
    assert headers((), PAGE) == {}
    assert preflight((), ASKED) is None


def test_an_origin_is_allowed_by_its_name_and_caches_are_told() -> None:
    assert headers((PAGE,), PAGE)["Access-Control-Allow-Origin"] == PAGE
    assert headers((PAGE,), PAGE)["Vary"] == "Origin"
    assert headers((PAGE,), "http://elsewhere") == {"Vary": "Origin"}
    assert headers((PAGE,), "") == {"Vary": "Origin"}


def test_any_origin_is_written_as_a_star() -> None:
    assert headers(("*",), PAGE)["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in headers(("*",), PAGE)
    assert not allows(("*",), "")


def test_a_preflight_is_told_that_it_may_send_a_key() -> None:
    told = preflight((PAGE,), ASKED)

    assert told is not None
    assert told["Access-Control-Allow-Origin"] == PAGE
    assert told["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "POST" in told["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    ("origins", "told"), [((PAGE,), PAGE), (("*",), "*"), (("https://a", "*"), "*"), (("https://a", PAGE), None)]
)
def test_a_page_may_read_why_its_connection_was_refused_where_its_origin_needs_no_guess(
    origins: tuple[str, ...], told: str | None
) -> None:
    assert unread(origins).get("Access-Control-Allow-Origin") == told


@pytest.mark.parametrize(
    "change", [{"origin": "http://elsewhere"}, {"origin": ""}, {"access-control-request-method": ""}]
)
def test_what_is_no_preflight_of_an_allowed_page_is_not_answered_as_one(change: dict[str, str]) -> None:
    assert preflight((PAGE,), ASKED | change) is None
