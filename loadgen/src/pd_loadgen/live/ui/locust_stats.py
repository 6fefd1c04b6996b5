"""What Locust shows of each request: its own row, which counts in the totals, and rows for its latencies, which do not."""

import time
from typing import Any, Final

import locust.stats
from locust.env import Environment

from pd_contracts import latency
from pd_contracts.records import RequestRecord
from pd_loadgen.client.backends import BACKENDS
from pd_loadgen.live.sending.yielding import when_idle
from pd_loadgen.live.ui.latency_curves import METRICS
from pd_loadgen.workload.options import Options

METHOD: Final = "LLM"
# Rows that are logged without being requests, so that Locust's totals stay totals of requests.
TTFT, TPOT, ITL, E2EL = METRICS
_SAMPLES_A_TURN: Final = 64


class RequestFailedError(Exception):
    """What Locust shows for a failed request."""


class Rows:
    """Feeds the statistics of one Locust environment."""

    def __init__(self, environment: Environment) -> None:
        """Let Locust keep tenths of milliseconds: in whole ones, every TPOT of 8.34 ms would be an 8."""
        locust.stats.bucket_response_time = bucket  # type: ignore[assignment]  # a float is a key as good
        self._environment, self._path = environment, ""

    def begin(self, options: Options) -> None:
        """Take the name of the requests' row from a run's options."""
        self._path = options.path or BACKENDS[options.endpoint].path

    def observe(self, record: RequestRecord) -> None:
        end = record.end if record.end is not None else record.scheduled
        whole = latency.e2el(record) if record.error is None else None
        events: Any = self._environment.events  # Locust's hooks carry no types
        events.request.fire(
            request_type="POST",
            name=self._path,
            response_time=1e3 * (whole if whole is not None else end - record.scheduled),
            response_length=0,
            response=None,
            exception=RequestFailedError(f"{record.error.kind}: {record.error.message}") if record.error else None,
            context={},
            start_time=time.time() - (time.monotonic() - record.scheduled),
        )
        if latency.succeeded(record):
            self._log_tokens(record)

    def _log_tokens(self, record: RequestRecord) -> None:
        entries: Any = self._environment.stats.entries
        values = ((TTFT, latency.ttft(record)), (TPOT, latency.tpot(record)), (E2EL, latency.e2el(record)))
        for name, value in values:
            if value is not None:
                entries[name, METHOD].log(value * 1e3, 0)
        for number, gap in enumerate(latency.itl(record), 1):
            entries[ITL, METHOD].log(gap * 1e3, 0)
            if number % _SAMPLES_A_TURN == 0:
                when_idle()


def bucket(milliseconds: float) -> float:
    """Locust's histogram keys: a tenth of a millisecond where tokens are, whole ones above a second."""
    return round(milliseconds, 1) if milliseconds < 1000 else round(milliseconds)
