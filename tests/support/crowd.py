"""Clients of all kinds, most of them misbehaving: they send requests and leave at any moment, or read to the end and check the answer."""

import asyncio
import contextlib
import errno
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from support.proxy import MODEL, Reply

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
# Reset: the listening socket was closed while the connection waited to be accepted.
NOBODY_THERE = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH}
# A lost packet that opens a connection is sent again after 1, 3 and 7 s.
CONNECT_S: Final = 10.0
# How a client may behave, and how often.
MANNERS: Final = {"stays": 8, "leaves after sending": 4, "leaves while reading": 4, "sends half": 1, "reads slowly": 1}
# Ways to ask for an answer, of which each has its own text: a seed decides it at every position, a penalty works on what one engine has written.
WAYS: Final[dict[str, dict[str, Any]]] = {
    "": {},
    "seeded": {"temperature": 0.8, "seed": 11},
    "penalised": {"presence_penalty": 0.5},
}


@dataclass
class Tally:
    """What became of all requests; every one that was sent is in `outcomes` once.

    Attributes:
        outcomes: "answered", "told" (an error event), "left", "reset", "unread" (closed without a byte), or an error status.
        seen: requests of which the proxy has read at least the head.
        wrong: answers that are not what the model says.
        broken: answers that no client may get: cut without a word, an empty 200.
        stuck: requests that were neither answered nor refused in time.
        took_s: how long requests took that got an error, by its status.
        refusals: what such errors said, with their status, and why there was no connection.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    took_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refusals: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0


@dataclass(frozen=True)
class Request:
    """One request, and how its client behaves."""

    path: str
    body: dict[str, Any]
    manner: str
    way: str = ""

    @property
    def data(self) -> bytes:
        body = json.dumps(self.body).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


class Crowd:
    """Makes requests after a seed, sends them and keeps count."""

    def __init__(
        self,
        port: int,
        seed: int,
        *,
        patience_s: float,
        model: str = MODEL,
        manners: Mapping[str, int] = MANNERS,
        host: str = "127.0.0.1",
        lengths: Sequence[int] = (1, 4, 16, 48),
    ) -> None:
        """`patience_s` is what a request may take before it counts as stuck, `lengths` are the answers' in tokens."""
        self._manners = manners
        self._lengths = lengths
        self.tally = Tally()
        self._host = host
        self._port = port
        self._chance = random.Random(seed)
        self._patience_s = patience_s
        self._model = model
        self._prompts = [self._prompt() for _ in range(32)]
        self._said: dict[tuple[int, str], str] = {}

    def _prompt(self) -> list[int]:
        return [self._chance.randrange(1000) for _ in range(self._chance.choice([2, 20, 40, 200]))]

    async def learn(self, session: aiohttp.ClientSession) -> int:
        """Have each prompt answered at length and in each way while all is well; every later answer must begin like that. Returns how many there were."""

        async def ask(number: int, prompt: list[int], way: str) -> None:
            body = {"model": self._model, "prompt": prompt, "max_tokens": max(self._lengths), "ignore_eos": True}
            body |= WAYS[way]
            async with session.post(f"http://{self._host}:{self._port}{COMPLETIONS}", json=body) as response:
                assert response.status == 200, await response.text()
                self._said[number, way] = (await response.json())["choices"][0]["text"]

        await asyncio.gather(*(ask(number, prompt, way) for number, prompt in enumerate(self._prompts) for way in WAYS))
        return len(self._said)

    def draw(self) -> tuple[int, Request]:
        """The next request, with the number of its prompt (-1: its answer is not looked at)."""
        chance = self._chance
        (manner,) = chance.choices(list(self._manners), list(self._manners.values()))
        number = chance.randrange(len(self._prompts))
        body = {"model": self._model, "max_tokens": chance.choice(self._lengths), "stream": chance.random() < 0.6}
        body["ignore_eos"] = True
        if chance.random() < 0.7:
            body["temperature"] = 0  # such streams, and seeded ones, may go on at other engines
        if chance.random() < 0.2:
            return -1, Request(CHAT, body | {"messages": [{"role": "user", "content": f"say {number}"}]}, manner)
        if chance.random() < 0.1:
            return -1, Request(COMPLETIONS, body | {"prompt": [self._prompts[number]] * 2, "n": 2}, manner)
        way = chance.choices(list(WAYS), [8, 2, 1])[0]
        return number, Request(COMPLETIONS, body | {"prompt": self._prompts[number]} | WAYS[way], manner, way)

    async def one(self) -> None:
        """One request, from beginning to end."""
        number, request = self.draw()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._patience_s):
                outcome = await self._behave(number, request)
        except TimeoutError:
            outcome = "stuck"
            self.tally.stuck.append(f"{request.manner}: {request.path} {str(request.body)[:80]}")
        self.tally.outcomes[outcome] += 1
        took_s = loop.time() - began
        self.tally.longest_s = max(self.tally.longest_s, took_s)
        if outcome.isdecimal():
            self.tally.took_s[outcome].append(took_s)

    async def _behave(self, number: int, request: Request) -> str:
        try:
            async with asyncio.timeout(CONNECT_S):
                # Room for whole answers: a client that does not read on must be so because it is slow, not because it is full.
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        except OSError as error:
            if not isinstance(error, TimeoutError) and error.errno not in NOBODY_THERE:
                raise
            self.tally.refusals[f"no connection: {error.strerror or f'none within {CONNECT_S:g} s'}"] += 1
            return "no connection"
        self.tally.seen += 1
        try:
            if request.manner == "sends half":
                writer.write(request.data[:-10])
                await writer.drain()
                await asyncio.sleep(self._chance.expovariate(1 / 0.01))
                return "left"
            writer.write(request.data)
            await writer.drain()
            if request.manner == "leaves after sending":
                await asyncio.sleep(self._chance.expovariate(1 / 0.03))
                return "left"
            if request.manner == "leaves while reading":
                return await self._read_some(reader)
            if request.manner == "reads slowly":
                await asyncio.sleep(self._chance.expovariate(1 / 0.3))
            return self._judge(number, request.way, await reader.read(-1))
        except ConnectionResetError:
            return "reset"
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _read_some(self, reader: asyncio.StreamReader) -> str:
        for _ in range(self._chance.randrange(1, 12)):
            if not await reader.readline():
                break
        return "left"

    def _judge(self, number: int, way: str, data: bytes) -> str:
        if not data:
            return "unread"
        reply = parse(data)
        if reply is None:
            self.tally.broken.append(f"no whole answer: {data[-80:]!r}")
            return "broken"
        if reply.status != 200:
            message = reply.error["message"]
            if not message:
                self.tally.broken.append("an error without a message")
            self.tally.refusals[f"{reply.status}: {message}"] += 1
            return str(reply.status)
        if reply.headers["Content-Type"].startswith("text/event-stream"):
            last = reply.events[-1] if reply.events else ""
            if '"error"' in last:
                return "told"
            if last != "[DONE]":
                self.tally.broken.append(f"a stream that ends with {last[:80]!r}")
                return "broken"
        self._compare(number, way, reply)
        return "answered"

    def _compare(self, number: int, way: str, reply: Reply) -> None:
        if number < 0:
            return
        text, said = text_of(reply), self._said[number, way]
        if not text or not said.startswith(text):
            self.tally.wrong.append(f"prompt {number} {way}: {text[:60]!r} instead of {said[:60]!r}")


def parse(data: bytes) -> Reply | None:
    """An HTTP response that was read to the end of its connection; None if it was cut."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if not mark:
        return None
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict[str]()
    for line in lines:
        name, _, value = line.partition(": ")
        headers.add(name, value)
    if headers.get("Transfer-Encoding", "") == "chunked":
        whole = dechunk(body)
        if whole is None:
            return None
        body = whole
    elif len(body) != int(headers.get("Content-Length", len(body))):
        return None
    return Reply(int(status.split()[1]), headers, body)


def dechunk(body: bytes) -> bytes | None:
    """Chunked bytes put together; None if the last chunk is missing."""
    parts: list[bytes] = []
    while True:
        size, mark, body = body.partition(b"\r\n")
        if not mark:
            return None
        length = int(size, 16)
        if not length:
            return b"".join(parts)
        parts.append(body[:length])
        body = body[length + 2 :]


def text_of(reply: Reply) -> str:
    """What the model said in the first choice."""
    if reply.headers["Content-Type"].startswith("application/json"):
        return str(reply.json["choices"][0]["text"])
    chunks = [json.loads(data) for data in reply.events if data != "[DONE]"]
    return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", ()) if choice["index"] == 0)
