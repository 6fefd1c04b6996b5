"""A proxy that did not run for a while (stopped, without CPU, on a paused machine) does not take its engines for dead."""

import asyncio
import signal

from support.processes import process
from support.proxy import MODEL, RawClient

from pd_contracts.names import Role

LIMIT_S = 0.8
ASKS = 10


async def test_engines_are_not_blamed_for_what_the_proxy_did_not_read() -> None:
    async with process(1.0, ping_ttl_s=LIMIT_S, decode_stall_timeout_s=LIMIT_S) as (proxy, child):
        await proxy.engine(Role.COMBINED)
        body = {"model": MODEL, "prompt": "one two three", "max_tokens": 400}
        client = await RawClient.send(proxy, body | {"stream": True})
        await client.read_until(b"t5 ")
        child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LIMIT_S)
        child.send_signal(signal.SIGCONT)
        statuses = [(await proxy.post(body | {"max_tokens": 2})).status for _ in range(ASKS)]
        assert statuses == [200] * ASKS
        assert b'"error"' not in await client.read_until(b"[DONE]")
