"""A server that writes one chunk to every stream each step, as an engine does, and keeps when it wrote what.

Each chunk's text names the stream and the step, so a client's stamps can be joined with the server's. GET /stamps gives them all as
JSON: `{serial: [monotonic seconds, …]}`. Both clocks are one because both ends run on one host.
"""

# ruff: noqa: INP001  a script

import asyncio
import json
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """All streams step together."""

    def __init__(self, period: float) -> None:
        """Write every `period` seconds."""
        self.period = period
        self.stamps: dict[int, list[float]] = {}
        self.streams: dict[int, tuple[asyncio.StreamWriter, int, asyncio.Event]] = {}

    async def step(self) -> None:
        due = time.monotonic()
        while True:
            due += self.period
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            for serial, (writer, count, ended) in list(self.streams.items()):
                self.write(serial, writer, count, ended)

    def write(self, serial: int, writer: asyncio.StreamWriter, count: int, ended: asyncio.Event) -> None:
        """Write one chunk, and the end after the last."""
        stamps = self.stamps[serial]
        last = len(stamps) == count - 1
        choice = {"index": 0, "text": f" {serial}.{len(stamps)}", "finish_reason": "length" if last else None}
        # about 300 bytes, as vLLM's chunks are
        data = chunk(
            {
                "id": "cmpl-" + "0" * 32,
                "object": "text_completion",
                "model": "m" * 40,
                "pad": "x" * 80,
                "choices": [choice],
            }
        )
        stamps.append(time.monotonic())
        writer.write(data)
        if last:
            usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
            writer.write(chunk({"choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            del self.streams[serial]
            ended.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            while True:
                await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()  # the client left

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        if head.startswith("post /v1/completions"):
            serial, ended = len(self.stamps), asyncio.Event()
            self.stamps[serial] = []
            writer.write(HEAD)
            self.streams[serial] = (writer, int(json.loads(body)["max_tokens"]), ended)
            await ended.wait()
            return
        page = self.stamps if head.startswith("get /stamps") else {"data": [{"id": "m"}]}
        status = "404 Not Found" if head.startswith(("get /ready", "get /stats")) else "200 OK"
        data = json.dumps(page).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )


def chunk(data: object) -> bytes:
    """One event as one HTTP chunk."""
    event = b"data: " + json.dumps(data).encode() + b"\n\n"
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


async def main() -> None:
    """Serve; the first line on standard output is the port."""
    server = Server(float(sys.argv[1]))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.step()


if __name__ == "__main__":
    asyncio.run(main())
