"""What recording costs the engines: TPOT with a recording on and off, paired, in one run.

    python benchmarks/monitor/recorder_effect.py --url http://127.0.0.1:10001 --model M --monitor http://127.0.0.1:9835 \\
        --pairs 20 --seconds 15 --out effect.json

A pair is two halves with the same requests: in one the monitor records every 0.1 s, in the other it takes its one sample a second, as
between runs. Halves follow each other as on-off, off-on, on-off …, so that a steady drift (a board that warms up) cancels; `--order abab` is
on-off throughout. A half is a fixed number of rounds, a round `--concurrency` streams that start together and have `--output-tokens`
tokens each, whatever the model says; prompts come from `--seed` and are the same in every round. `--null` records in neither
half: what it finds is the noise of this machine, and a difference of that size means nothing.

TPOT of a half = sum of (last − first token) / sum of (tokens − 1), over its streams. The difference of a pair is TPOT on / TPOT off − 1;
the interval is the 2.5 to 97.5% of the mean over 10,000 draws of pairs. ITL is the time between what two reads brought.

Needs Python 3.11 and aiohttp, and nothing of this repository. Exit status: 0 if the interval lies within ± `--limit` percent, 1 if not,
2 if it could not be measured.
"""

# ruff: noqa: INP001, T201 - a script, and it prints
import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

DRAWS = 10_000
FEWEST_FOR_AN_INTERVAL = 8
COMMON_WORDS = (
    "the of and to in is that for it as was with be by on not his but at are this have from had they which one you were"
)


class UnmeasurableError(Exception):
    """The servers do not do what is measured; the message is a sentence."""


@dataclass(frozen=True)
class Half:
    """What one half showed; `samples` and `interval_s` are the recording's, by its own clock."""

    recorded: bool
    seconds: float
    tokens: int
    tpot_ms: float
    itl_p99_ms: float
    samples: int = 0
    interval_s: float | None = None


@dataclass(frozen=True)
class Interval:
    """A mean and where 95% of resampled means lie; percent."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.mean:+.3f}% (95%: {self.low:+.3f} to {self.high:+.3f}%)"


# Pure: statistics and what the streams' bytes say.


def differences(on: Sequence[float], off: Sequence[float]) -> list[float]:
    """By how many percent each pair's first value is above its second."""
    return [100 * (a / b - 1) for a, b in zip(on, off, strict=True)]


def bootstrap(values: Sequence[float], seed: int, draws: int = DRAWS) -> Interval:
    """Mean of the values, and the percentile interval of means over as many values drawn with replacement."""
    random_ = random.Random(seed)
    means = sorted(statistics.fmean(random_.choices(values, k=len(values))) for _ in range(draws))
    return Interval(statistics.fmean(values), means[int(0.025 * draws)], means[int(0.975 * draws)])


def prompts_of(seed: int, number: int, words: int) -> list[str]:
    """The prompts of a round: common words, so about a token each."""
    random_, common = random.Random(seed), COMMON_WORDS.split()
    return [" ".join(random_.choices(common, k=words)) for _ in range(number)]


def tokens_of(reads: Sequence[tuple[float, bytes]]) -> tuple[list[float], int]:
    """When each read that brought a token came, and the number of tokens by the server's count.

    Raises:
        UnmeasurableError: for an error in the stream, a stream that breaks off, or a server that reports no token counts.
    """
    times: list[float] = []
    tokens, done, rest = None, False, b""
    for moment, data in reads:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if (payload := line[5:].strip()) == b"[DONE]":
                done = True
                continue
            chunk = json.loads(payload)
            if "error" in chunk:
                raise UnmeasurableError(f"the server broke a stream off: {chunk['error']}")
            if usage := chunk.get("usage"):
                tokens = int(usage["completion_tokens"])
            if chunk.get("choices") and (not times or times[-1] != moment):
                times.append(moment)
    if not done or tokens is None or len(times) < 2 or tokens < 2:
        raise UnmeasurableError(
            f"a stream had {len(times)} chunks, tokens {tokens}, an end {done}; none can be missing"
        )
    return times, tokens


def half_of(streams: Sequence[tuple[list[float], int]], *, recorded: bool, seconds: float) -> Half:
    """The numbers of a half's streams."""
    spent = sum(times[-1] - times[0] for times, _ in streams)
    steps = sum(tokens - 1 for _, tokens in streams)
    gaps = sorted(b - a for times, _ in streams for a, b in itertools.pairwise(times))
    return Half(
        recorded=recorded,
        seconds=seconds,
        tokens=sum(tokens for _, tokens in streams),
        tpot_ms=1e3 * spent / steps,
        itl_p99_ms=1e3 * gaps[int(0.99 * (len(gaps) - 1))],
    )


def recording_of(body: bytes) -> tuple[int, float | None]:
    """Samples of a recording, and seconds between those of its first GPU."""
    samples = [json.loads(line) for line in body.splitlines()[1:]]
    times = [sample["t"] for sample in samples if sample["index"] == samples[0]["index"]]
    return len(samples), (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def verdict(found: Interval, limit: float) -> str:
    """What the interval says about the limit."""
    if -limit < found.low and found.high < limit:
        return f"within ±{limit:g}%"
    if found.low >= limit or found.high <= -limit:
        return f"beyond ±{limit:g}%"
    return f"undecided: the interval is wider than ±{limit:g}%, or lies across its edge; measure more or longer pairs"


# What talks to the servers.


class Bench:
    """One server under load, and the monitor beside it."""

    def __init__(self, session: aiohttp.ClientSession, options: argparse.Namespace) -> None:
        self.session = session
        self.options = options
        self.prompts = prompts_of(options.seed, options.concurrency, options.input_tokens)

    async def stream(self, prompt: str) -> list[tuple[float, bytes]]:
        """What came and when; nothing is looked at before the round is over, so that no stream waits for another's JSON."""
        body = {
            "model": self.options.model,
            "prompt": prompt,
            "max_tokens": self.options.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self.session.post(f"{self.options.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                said = (await answer.content.read(500)).decode(errors="replace")
                raise UnmeasurableError(f"{self.options.url} answered {answer.status}: {said}")
            return [(time.perf_counter(), data) async for data in answer.content.iter_any()]

    async def half(self, rounds: int, *, recorded: bool) -> Half:
        """The same requests as every other half."""
        gc.collect()
        begun, streams = time.perf_counter(), []
        for _ in range(rounds):
            raw = await asyncio.gather(*map(self.stream, self.prompts))
            streams += [tokens_of(reads) for reads in raw]
        return half_of(streams, recorded=recorded, seconds=time.perf_counter() - begun)

    async def half_while_recording(self, rounds: int, name: str) -> Half:
        """A half with a recording around it."""
        async with self.recording(name) as fetched:
            half = await self.half(rounds, recorded=True)
        samples, interval_s = recording_of(fetched[0])
        if interval_s is None or interval_s > 2 * self.options.interval:
            raise UnmeasurableError(
                f"the monitor took {samples} samples in {half.seconds:.1f} s, which is no recording"
            )
        return Half(**asdict(half) | {"samples": samples, "interval_s": interval_s})

    @contextlib.asynccontextmanager
    async def recording(self, name: str) -> AsyncIterator[list[bytes]]:
        """Record meanwhile; afterwards the list has the recording. It ends whatever happens."""
        url, fetched = f"{self.options.monitor}/recordings", list[bytes]()
        async with self.session.post(url, json={"name": name, "interval_s": self.options.interval}) as answer:
            if answer.status != 201:
                raise UnmeasurableError(f"the monitor refused: {await answer.text()}")
            id_ = (await answer.json())["id"]
        try:
            yield fetched
        finally:
            async with self.session.delete(f"{url}/{id_}") as answer:
                fetched.append(await answer.read())

    async def pair(self, number: int, rounds: int) -> tuple[Half, Half]:
        """A half with a recording and one without; which comes first is the order's business."""
        halves: dict[bool, Half] = {}
        for on in (True, False) if self.options.order == "abab" or number % 2 == 0 else (False, True):
            if on and not self.options.null:
                halves[on] = await self.half_while_recording(rounds, f"recorder-effect-{number}")
            else:
                halves[on] = await self.half(rounds, recorded=False)
        return halves[True], halves[False]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, find out how many rounds a half has, and measure all pairs."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
        bench = Bench(session, options)
        await bench.half(1, recorded=False)  # the first one compiles, captures and fills caches
        warm = await bench.half(1, recorded=False)
        rounds = max(1, round(options.seconds / warm.seconds))
        print(f"a round takes {warm.seconds:.2f} s, so a half has {rounds}; {options.pairs} pairs follow", flush=True)
        pairs = []
        for number in range(options.pairs):
            on, off = await bench.pair(number, rounds)
            pairs.append((on, off))
            (difference,) = differences([on.tpot_ms], [off.tpot_ms])
            print(
                f"pair {number + 1:3}: TPOT on {on.tpot_ms:.4f} ms, off {off.tpot_ms:.4f} ms, {difference:+.3f}%",
                flush=True,
            )
    return summary(pairs, rounds, options)


def summary(pairs: Sequence[tuple[Half, Half]], rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is worth keeping."""
    on, off = zip(*pairs, strict=True)
    tpot = bootstrap(differences([half.tpot_ms for half in on], [half.tpot_ms for half in off]), options.seed)
    itl = bootstrap(differences([half.itl_p99_ms for half in on], [half.itl_p99_ms for half in off]), options.seed)
    return {
        "tpot_difference_percent": asdict(tpot),
        "itl_p99_difference_percent": asdict(itl),
        "verdict": verdict(tpot, options.limit),
        "tpot_on_ms": statistics.fmean(half.tpot_ms for half in on),
        "tpot_off_ms": statistics.fmean(half.tpot_ms for half in off),
        "rounds_a_half": rounds,
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "pairs": [{"on": asdict(a), "off": asdict(b)} for a, b in pairs],
    }


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    tpot, itl = Interval(**found["tpot_difference_percent"]), Interval(**found["itl_p99_difference_percent"])
    intervals = [pair["on"]["interval_s"] for pair in found["pairs"] if pair["on"]["interval_s"]]
    if intervals:
        print(f"samples came every {1e3 * statistics.fmean(intervals):.1f} ms while recording")
    print(f"{'no recording in either half: ' if options.null else ''}TPOT on against off: {tpot}")
    print(f"p99 of the time between reads: {itl}")
    if len(found["pairs"]) < FEWEST_FOR_AN_INTERVAL:
        print(f"fewer than {FEWEST_FOR_AN_INTERVAL} pairs: the interval is too narrow to be believed")
    print(found["verdict"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; an address may end with a slash."""
    parser = argparse.ArgumentParser(description="TPOT with a recording on and off, paired")
    parser.add_argument("--url", required=True, type=_address, help="proxy or engine, http://127.0.0.1:10001")
    parser.add_argument("--monitor", required=True, type=_address, help="pd-monitor, http://127.0.0.1:9835")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0, help="about how long a half is")
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between samples of a recording")
    parser.add_argument("--concurrency", type=int, default=16, help="streams of a round")
    parser.add_argument("--input-tokens", type=int, default=128, help="words of a prompt, about a token each")
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--order", choices=("abba", "abab"), default="abba")
    parser.add_argument("--null", action="store_true", help="record in neither half: how much noise there is")
    parser.add_argument("--limit", type=float, default=0.5, help="percent of TPOT that the difference must lie within")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    options = parser.parse_args(arguments)
    if options.pairs < 2:
        parser.error("--pairs: at least 2")
    return options


def _address(text: str) -> str:
    return text.rstrip("/")


def main() -> int:
    options = parse()
    gc.disable()  # collections happen between the halves
    try:
        found = asyncio.run(measure(options))
    except (UnmeasurableError, aiohttp.ClientError, TimeoutError) as error:
        print(f"recorder_effect: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    report(found, options)
    return 0 if found["verdict"].startswith("within") else 1


if __name__ == "__main__":
    sys.exit(main())
