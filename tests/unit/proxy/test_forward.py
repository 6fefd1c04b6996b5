"""Requests about the whole proxy, as a worker's parent answers them."""

import asyncio
from typing import Any, cast

from pd_proxy.api.app import Proxy
from pd_proxy.processes.channel import Answered, Forwarded
from pd_proxy.processes.forward import answer

ASKED = Forwarded(number=7, method="GET", path="/health", query=b"", headers={})


async def test_the_client_leaves_once_it_has_its_answer() -> None:
    """As servers say it: Quart 0.23 ends a request only then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/health"
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        leaving = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await asyncio.sleep(0)
        assert not leaving.done()
        await send({"type": "http.response.body", "body": b"k"})
        assert await leaving == {"type": "http.disconnect"}

    said = await asyncio.wait_for(answer(cast("Proxy", app), ASKED), 5)

    assert said == Answered(number=7, status=200, headers={"Content-Type": "text/plain"}, body=b"ok")
