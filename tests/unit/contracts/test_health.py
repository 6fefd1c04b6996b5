import http.server
import sys
import threading
from collections.abc import Iterator

import pytest

from pd_contracts import health


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the status that the path names, if the query is what it should be."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        status = int(path.strip("/") or 200) if query in {"", "deep=1"} else 400
        self.send_response(status)
        self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        ...


@pytest.fixture(name="base", scope="module")
def _base() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["", "/", "/200", "/200?deep=1"])
def test_200_is_healthy(base: str, path: str) -> None:
    assert health.probe(base + path) is None


@pytest.mark.parametrize("status", [204, 302, 404, 503])
def test_any_other_status_is_named_and_no_redirect_is_followed(base: str, status: int) -> None:
    assert health.probe(f"{base}/{status}") == f"status {status}"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://127.0.0.1:x/", "http://127.0.0.1:99999/", "http://[::1", "", "nonsense"]
)
def test_an_address_that_does_not_answer_is_a_reason_and_no_crash(url: str) -> None:
    assert health.probe(url, timeout=1)


def test_the_command_says_why_and_exits_with_1(
    base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["health", f"{base}/503", "2"])

    assert health.main() == 1
    assert capsys.readouterr().err == f"{base}/503: status 503\n"


def test_the_command_is_silent_where_all_is_well(
    base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["health", f"{base}/200"])

    assert health.main() == 0
    assert capsys.readouterr().err == ""


def test_the_command_wants_an_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["health"])

    assert health.main() == 2
    assert "usage" in capsys.readouterr().err
