"""Engines that cost almost nothing: they ping, are healthy, answer prefill at once, and stream chunks on a clock.

`python engine.py --ports 1,2,3 --roles combined,prefill,decode --proxy-port N`. A prompt "pace=20 phase=7" asks for a chunk every
20 ms, in the 7th millisecond of each period, so that streams do not come in bursts; every chunk holds the time of its write.
"""

# ruff: noqa: INP001  a script

import argparse
import asyncio
import re
from time import CLOCK_MONOTONIC, clock_gettime
from typing import cast

import msgspec
import uvloop
import zmq
import zmq.asyncio

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType, encode_ping

MODEL = "mock"
PING_S = 1.0
PACE = re.compile(r"pace=(\d+) phase=(\d+)")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ID = re.compile(rb"\r\nx-request-id: *([^\r\n]+)", re.IGNORECASE)
MODELS = msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


class Body(msgspec.Struct):
    """What of a request matters here."""

    prompt: str = ""
    stream: bool | None = False
    max_tokens: int | None = 16


class Clock:
    """Calls every stream once in its period, in its own millisecond."""

    def __init__(self) -> None:
        self._due: dict[int, list[Stream]] = {}
        self._now = 0

    def add(self, stream: "Stream", phase: int) -> None:
        """Begin a stream at its next turn."""
        wait = (phase - self._now) % stream.pace or stream.pace
        self._due.setdefault(self._now + wait, []).append(stream)

    async def run(self) -> None:
        """A tick a millisecond; a late tick is followed by the next at once."""
        start = clock_gettime(CLOCK_MONOTONIC)
        while True:
            late = start + (self._now + 1) / 1000 - clock_gettime(CLOCK_MONOTONIC)
            if late > 0:
                await asyncio.sleep(late)
            self._now += 1
            for stream in self._due.pop(self._now, ()):
                if stream.tick():
                    self._due.setdefault(self._now + stream.pace, []).append(stream)


class Stream:
    """One answer; `tick` says whether there will be another chunk."""

    def __init__(self, transport: asyncio.Transport, request_id: bytes, pace: int, chunks: int) -> None:
        """`pace` in ms."""
        self.pace = pace
        self._transport = transport
        self._head = b'data: {"id":"cmpl-' + request_id + b'","object":"text_completion","created":1763680000,'
        self._head += b'"model":"mock","choices":[{"index":0,"text":" '
        self._left = chunks

    def tick(self) -> bool:
        if self._transport.is_closing():
            return False
        self._left -= 1
        stamp = b"%.6f" % clock_gettime(CLOCK_MONOTONIC)
        event = self._head + stamp + b'","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
        data = b"%x\r\n%b\r\n" % (len(event), event)
        if not self._left:
            data += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        self._transport.write(data)
        return self._left > 0


class Connection(asyncio.Protocol):
    """HTTP/1.1, as far as proxies speak it to engines."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[: end + 2]
            length = LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < size:
                return
            body, self._data = self._data[end + 4 : size], self._data[size:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/models":
            self._json(MODELS)
        elif not path.startswith(b"/v1/"):
            self._json(b"{}")
        else:
            self._generate(head, msgspec.json.decode(body, type=Body))

    def _generate(self, head: bytes, body: Body) -> None:
        found = ID.search(head)
        request_id = found[1] if found else b"none"
        pace = PACE.search(body.prompt)
        if not body.stream:
            params = b'{"do_remote_prefill":true,"remote_engine_id":"e","remote_block_ids":[1,2],"remote_host":"h","remote_port":1}'
            self._json(
                b'{"id":"cmpl-' + request_id + b'","object":"text_completion","created":1,"model":"mock","choices":'
                b'[{"index":0,"text":" x","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":8,'
                b'"total_tokens":9,"completion_tokens":1},"kv_transfer_params":' + params + b"}"
            )
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        every, phase = (int(pace[1]), int(pace[2])) if pace else (0, 0)
        stream = Stream(self._transport, request_id, every, body.max_tokens or 1)
        if not every:
            while stream.tick():
                pass
            return
        self._clock.add(stream, phase)

    def _json(self, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )


async def ping(port: int, role: Role, proxy_port: int) -> None:
    """Announce one engine forever."""
    kv = f"127.0.0.1:{port + 10_000}"
    connector = None if role is Role.COMBINED else Connector.P2P_NCCL
    message = encode_ping(
        Ping(
            type=PingType[role.name], http_address=f"127.0.0.1:{port}", zmq_address=kv, connector=connector, boot_id="1"
        )
    )
    dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, kv.encode())
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"tcp://127.0.0.1:{proxy_port}")
    while True:
        await dealer.send(message)
        await asyncio.sleep(PING_S)


async def main(options: argparse.Namespace) -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    work = [clock.run()]
    proxies = [int(port) for port in options.proxy_ports.split(",") if port]
    for number, (port, role) in enumerate(zip(options.ports.split(","), options.roles.split(","), strict=True)):
        await loop.create_server(lambda: Connection(clock), "127.0.0.1", int(port), backlog=8192)
        if number < len(proxies) and proxies[number]:
            work.append(ping(int(port), Role(role), proxies[number]))
    await asyncio.gather(*work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", required=True)
    parser.add_argument("--roles", required=True)
    parser.add_argument("--proxy-ports", default="", help="for each engine the port to announce it to, 0 for none")
    uvloop.run(main(parser.parse_args()))
