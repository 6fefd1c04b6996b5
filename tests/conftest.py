"""Fixtures and settings of all tests."""

import gc
import logging
import signal
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# A job in the background starts with SIGINT ignored and hands that on; tests that interrupt commands need it to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """A service's `main`, called in a test, sets logging up for its process; the next test's stderr is another one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)


_to_run_again: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome: str = report.outcome  # pytest-rerunfailures adds one
    if outcome == "rerun":
        _to_run_again.add(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that runs again has left open at its first try what it closes at its end; no later test is to fail for that when it is collected."""
    if item.nodeid in _to_run_again:
        _to_run_again.remove(item.nodeid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
