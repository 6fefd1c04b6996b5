"""Which engine is blamed when a stream breaks off that another engine had continued."""

from itertools import count
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw
from support.engines import engine

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Late, Needs, Pair, Route
from pd_proxy.errors import DisconnectedError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import parse
from pd_proxy.protocol.progress import Restart
from pd_proxy.request import migration
from pd_proxy.request.route import Failures
from pd_proxy.request.trace import Trace
from pd_proxy.settings import Settings
from pd_proxy.upstream.answers import Written

ENGINES = [engine(Role.COMBINED, number, connector=Connector.P2P) for number in range(3)]


async def test_a_decode_that_was_chosen_late_is_blamed_and_not_its_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, *decodes = ENGINES
    turn = count()

    class Attempt:
        route: Route | None = None

        def __init__(self, _context: Any, _rest: Any, _headers: Any, trace: Trace, _claim: Any, **_: Any) -> None:
            self._trace = trace

        async def answer(self, route: Late) -> Written:
            self._trace.prefilled = monotonic()
            self.route = Pair(route.prefill, decodes[next(turn)])
            return Written(b"")

    async def admitted(*_: Any) -> tuple[Route, None]:
        return Late(prefill), None

    monkeypatch.setattr(migration, "Attempt", Attempt)
    monkeypatch.setattr(migration, "admitted", admitted)
    generation = parse(Endpoint.COMPLETIONS, b'{"prompt": [1, 2], "max_tokens": 9, "temperature": 0, "stream": true}')
    context: Any = SimpleNamespace(
        settings=Settings(migrate=True),
        over=False,
        registry=SimpleNamespace(view=lambda: ENGINES),
        metrics=SimpleNamespace(migrated=lambda _: None),
    )
    failures = Failures(route=Pair(prefill, decodes[1]))
    trace = Trace(Endpoint.COMPLETIONS, arrived=monotonic(), prefilled=monotonic())
    found = migration.Migration(context, generation, needs=Needs(), headers={}, trace=trace, failures=failures)

    for _ in decodes:
        assert await found.go_on(DisconnectedError("gone"), Restart(Raw(b"[1, 2]"), b"1", [3]))
    assert failures.failed == {decode.incarnation for decode in decodes}
