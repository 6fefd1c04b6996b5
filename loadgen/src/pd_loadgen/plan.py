"""The whole load before the first request: who is sent when, as the bytes that go to the socket."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from pd_contracts.names import TIMING_HEADER
from pd_contracts.records import schedule_hash
from pd_loadgen import datasets, schedule
from pd_loadgen.backends import BACKENDS
from pd_loadgen.datasets import Prompt
from pd_loadgen.http1 import parse_url, request_bytes
from pd_loadgen.options import Options


class PlanError(ValueError):
    """The options make no load; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request; `offset` counts from the start of the window (0 for a warm-up)."""

    index: int
    offset: float
    wire: bytes
    output_tokens: int
    warmup: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests. Equal hashes mean equal arrivals, lengths and prompts, whatever the target."""

    requests: list[Planned]
    warmups: list[Planned]
    hash: str


def make(options: Options, model: str) -> Plan:
    """Draw schedule and prompts and write every request, so that nothing is computed while the window is open.

    Raises:
        PlanError: if the schedule has no request.
    """
    offsets = schedule.arrivals(
        rate=options.rate,
        duration=options.duration,
        seed=options.seed,
        arrival=options.arrival,
        burstiness=options.burstiness,
    )
    if not offsets:
        msg = f"no request falls into {options.duration:g} s at {options.rate:g} requests a second: raise rate or duration, or change the seed"
        raise PlanError(msg)
    prompts = [_prompt(options, f"Excerpt {index}") for index in range(len(offsets))]
    parts = [(offset, options.input_tokens, options.output_tokens) for offset in offsets]
    return Plan(
        requests=[
            Planned(index, offset, _wire(options, model, prompt), options.output_tokens)
            for index, (offset, prompt) in enumerate(zip(offsets, prompts, strict=True))
        ],
        warmups=list(_warmups(options, model)),
        hash=schedule_hash(parts, options.seed, map(msgspec.json.encode, prompts)),
    )


def _warmups(options: Options, model: str) -> Iterator[Planned]:
    for index in range(options.warmup):
        wire = _wire(options, model, _prompt(options, f"Warm-up {index}"))
        yield Planned(index, 0.0, wire, options.output_tokens, warmup=True)


def _prompt(options: Options, name: str) -> Prompt:
    return datasets.prompt(
        options.dataset,
        seed=options.seed,
        name=name,
        input_tokens=options.input_tokens,
        vocab_size=options.vocab_size,
    )


def _wire(options: Options, model: str, prompt: Prompt) -> bytes:
    backend = BACKENDS[options.endpoint]
    body = backend.body(
        prompt,
        model=model,
        output_tokens=options.output_tokens,
        ignore_eos=options.ignore_eos,
        return_token_ids=options.return_token_ids,
    )
    return request_bytes(
        parse_url(options.url), backend.path, body, {TIMING_HEADER: "1", "Accept": "text/event-stream"}
    )
