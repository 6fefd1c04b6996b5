"""What users write as the server's address: bases with /v1, whole paths, passwords."""

import pytest

from pd_contracts.urls import without_secret
from pd_loadgen.client import access
from pd_loadgen.client.access import AccessError
from pd_loadgen.client.address import Address, Target, parse_url, understand
from pd_loadgen.workload import options


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host:8000", Target("host", 8000)),
        ("http://host", Target("host", 80)),
        ("http://host:1/base/", Target("host", 1, "/base")),
        ("http://[::1]:8000", Target("::1", 8000)),
        ("https://host/b", Target("host", 443, "/b", secure=True)),
    ],
)
def test_a_base_url_becomes_a_target(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://a b:80", "blank"),
        ("http://host:80/a b", "blank"),
        ("http://ho\tst:80", "blank"),
        ("http://host:80/v1\n", "blank"),
        ("http://host:0", "port 0"),
        ("http://http://host:80", "http://host:port"),
        ("http://256.1.1.1:80", "256.1.1.1"),
        ("http://host..name:80", "host..name"),
        ("http://.:80", "neither a name"),
        ("http://-host:80", "-host"),
        ("http://'host':80", "neither a name"),
        ("http://ho%20st:80", "neither a name"),
        ("http://one,two:80", "one,two"),
        ("http://[::g]:80", "address"),
        (f"http://{'x' * 64}:80", "neither a name"),
    ],
)
def test_what_no_server_can_have_as_its_address_is_told_before_it_is_asked(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        parse_url(url)


@pytest.mark.parametrize(
    "url", ["http://my_engine-0:80", "http://höst", "http://a.b.c.:80", "http://[fe80::1%25eth0]:1", "http://10.1.2.3"]
)
def test_names_of_containers_and_other_scripts_are_hosts(url: str) -> None:
    assert parse_url(url).port


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:99999", "http://host:x", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not an address|no usable port"):
        parse_url(url)


@pytest.mark.parametrize(
    "url", ["http://me:pass@host:x", "http://me:pa/ss@host:x", "ftp://me:pass@host", "http://me:pass@/"]
)
def test_a_refusal_does_not_repeat_a_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"not an address|no usable port") as caught:
        parse_url(url)

    assert "pa" not in str(caught.value).replace("path", "")


def test_a_query_would_be_lost_and_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="query") as caught:
        parse_url("http://host:8000/?api_key=abc")

    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://host:8000", Address("http://host:8000")),
        ("http://host:8000/v1", Address("http://host:8000", "/v1")),
        ("http://host:8000/v1/", Address("http://host:8000", "/v1")),
        ("https://host/openai/v1", Address("https://host/openai", "/v1")),
        ("http://host/v1/chat/completions", Address("http://host", "/v1", "chat")),
        ("http://host/v1/completions", Address("http://host", "/v1", "completions")),
        ("http://host/v1beta", Address("http://host/v1beta")),
        ("http://me:pass@host:8000/v1", Address("http://host:8000", "/v1", "", "me:pass")),
        ("http://me%40x:p%2Fq%3A@host", Address("http://host", secret="me@x:p/q:")),
        ("http://me:pa/ss@host:80", Address("http://host:80", secret="me:pa/ss")),
        ("http://host:80/models/a@b", Address("http://host:80/models/a@b")),
    ],
)
def test_an_address_is_understood(text: str, address: Address) -> None:
    assert understand(text) == address


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--url=http://me:pass@host:1/v1", "--url=http://host:1/v1"),
        ("http://host", "http://host"),
        ("me@example.org", "me@example.org"),
        ("a http://b:c@d e https://f:g@h", "a http://d e https://h"),
    ],
)
def test_a_word_is_shown_without_the_password_in_it(word: str, shown: str) -> None:
    assert without_secret(word) == shown


@pytest.mark.parametrize(
    ("given", "url", "path", "endpoint"),
    [
        ({"url": "http://h:1/v1"}, "http://h:1", "", "completions"),
        ({"url": "http://h:1/v1", "path": "/completions"}, "http://h:1", "/v1/completions", "completions"),
        ({"url": "http://h:1/v1", "path": "/v1/x"}, "http://h:1", "/v1/x", "completions"),
        ({"url": "http://h:1", "path": "/x"}, "http://h:1", "/x", "completions"),
        ({"url": "http://h:1/v1/chat/completions", "dataset": "text"}, "http://h:1", "", "chat"),
        ({"url": "http://u:p@h:1/v1/completions"}, "http://h:1", "", "completions"),
    ],
)
def test_options_have_the_base_and_the_api(given: dict[str, str], url: str, path: str, endpoint: str) -> None:
    read = options.load(given, {})

    assert (read.url, read.path, read.endpoint) == (url, path, endpoint)
    assert "p@" not in repr(read)


def test_an_api_in_the_url_and_another_as_an_option_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one"):
        options.load({"url": "http://h/v1/chat/completions", "endpoint": "completions"}, {})


@pytest.mark.parametrize("name", ["monitor", "profile_urls"])
def test_a_password_where_none_is_taken_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ValueError, match="with a password") as caught:
        options.load({name: "http://me:pass@host:1", "engine_profile": "on"}, {})

    assert "pass@" not in str(caught.value)


def test_the_password_of_a_url_goes_into_the_header_and_nowhere_else() -> None:
    environment: dict[str, str] = {"LOADGEN_URL": "http://me:pass@host:1"}
    access.keep_secret(options.address({}, environment).secret, environment)

    assert access.headers("", "", environment) == {"Authorization": "Basic bWU6cGFzcw=="}
    assert options.load({}, environment).url == "http://host:1"


def test_a_key_and_a_password_at_once_are_refused() -> None:
    with pytest.raises(AccessError, match="only one"):
        access.headers("", "", {"LOADGEN_API_KEY": "k", "LOADGEN_BASIC_AUTH": "me:pass"})


@pytest.mark.parametrize(
    "name", ["X-Auth-Token", "Ocp-Apim-Subscription-Key", "X_API_KEY", "Cookie", "X-Client-Secret"]
)
def test_headers_that_carry_secrets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="written to the manifest"):
        access.parse_headers(f'{{"{name}": "abc"}}')
