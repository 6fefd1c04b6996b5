import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pd_contracts import log


def record(message: str = "engine %s joined", *args: object, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("pd_test").makeRecord(
        "pd_test", logging.WARNING, __file__, 1, message, args, None, extra=extra
    )


def failed(**extra: Any) -> logging.LogRecord:
    try:
        [].pop()
    except IndexError:
        error = sys.exc_info()
    return logging.getLogger("pd_test").makeRecord(
        "pd_test", logging.ERROR, __file__, 1, "it broke", (), error, extra=extra
    )


@pytest.fixture(name="root")
def _root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


def test_json_is_one_object_a_line_with_the_extras_as_keys() -> None:
    line = log.JsonFormatter().format(record("engine %s joined\nand stayed", "é", instance="prefill-0", retries=2))
    entry = json.loads(line)

    assert "\n" not in line
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning",
        "logger": "pd_test",
        "message": "engine é joined\nand stayed",
        "instance": "prefill-0",
        "retries": 2,
    }


def test_json_writes_what_it_does_not_know_as_text() -> None:
    assert "prefill" in json.loads(log.JsonFormatter().format(record("x", path={"prefill"})))["path"]


def test_json_escapes_half_a_character() -> None:
    assert json.loads(log.JsonFormatter().format(record("x", path="\udcff")))["path"] == "\udcff"


def test_json_carries_the_traceback() -> None:
    assert "IndexError: pop from empty list" in json.loads(log.JsonFormatter().format(failed()))["traceback"]


def test_json_time_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    one = record("x")
    monkeypatch.setattr(one, "created", 1_000_000_000.25)
    monkeypatch.setattr(one, "msecs", 250.0)

    assert json.loads(log.JsonFormatter().format(one))["time"] == "2001-09-09T01:46:40.250Z"


def test_text_has_the_extras_behind_the_message() -> None:
    line = log.TextFormatter().format(record("engine %s joined", "a", instance="prefill-0", retries=2))

    assert line.endswith("W pd_test: engine a joined instance=prefill-0 retries=2")


def test_text_keeps_the_extras_with_the_message_when_a_traceback_follows() -> None:
    first, *_, last = log.TextFormatter().format(failed(gpu=0)).splitlines()

    assert first.endswith("it broke gpu=0")
    assert last == "IndexError: pop from empty list"


def test_services_log_json_where_nobody_watches(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("debug")
    logging.getLogger("pd_test").debug("hello", extra={"port": 1})

    assert root.level == logging.DEBUG
    assert json.loads(capsys.readouterr().err)["port"] == 1


def test_an_unknown_level_is_refused(root: logging.Logger) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        log.set_up("loud")


class Extras(msgspec.Struct):
    status: int = 200
    id: str = "é"
    prefill_ms: float = 1.5


EXTRAS = msgspec.to_builtins(Extras())


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(name="written")
def _written(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    log.set_up("INFO")
    return stream


def test_an_event_is_written_as_logging_would(written: io.StringIO) -> None:
    log.Event("pd_test", "request")(Extras())
    logging.getLogger("pd_test").info("request", extra=EXTRAS)

    quick, usual = lines_of(written)
    assert quick.pop("time").startswith(usual.pop("time")[:17])
    assert quick == usual == {"level": "info", "logger": "pd_test", "message": "request", **EXTRAS}


def test_an_event_obeys_the_level(written: io.StringIO) -> None:
    logging.getLogger().setLevel("WARNING")

    log.Event("pd_test", "request")(Extras())

    assert written.getvalue() == ""


def test_an_event_reaches_handlers_of_others(written: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger().addHandler(caplog.handler)
        log.Event("pd_test", "request")(Extras())

    assert [one.message for one in caplog.records][-1] == "request"
    assert lines_of(written)[-1]["status"] == 200


def test_an_event_with_half_a_character_is_escaped(written: io.StringIO) -> None:
    log.Event("pd_test", "request")(Extras(id="\udcff"))

    assert lines_of(written)[0]["id"] == "\udcff"


def test_an_event_that_nobody_reads_does_no_harm(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    written.close()
    monkeypatch.setattr(logging, "raiseExceptions", False)

    log.Event("pd_test", "request")(Extras())
