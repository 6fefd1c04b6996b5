# ruff: noqa: INP001, T201 - scripts, not a package
"""Fit a simulator profile to measured runs, and show what it gives for runs that it was not fitted to.

`python benchmarks/gpu/calibrate.py RESULTS --start h200-llama3-8b --out profile.json --report calibration.md`

Every second rate of each shape is held out, and so is every run of the topologies named with `--hold-out`. The fit walks one number of
the profile after the other and keeps what brings p50 and p99 of TTFT and TPOT nearer, as ratios, over the other runs.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pd_contracts import latency
from pd_contracts.names import Connector, Role
from pd_contracts.records import MANIFEST, REQUESTS, Manifest, RequestRecord, read_json, read_lines
from pd_simulator.profile import Profile, load_profile
from pd_simulator.steps.virtual_time import Arrival, Engines, token_times

NUMBERS = (
    ("prefill", "base_ms"),
    ("prefill", "per_token_ms"),
    ("decode", "base_ms"),
    ("decode", "per_sequence_ms"),
    ("decode", "per_context_token_ms"),
    ("mixed", "overlap_ms"),
    ("mixed", "prefill_token_share"),
    *((place, name) for place in (f"handoff.{Connector.P2P_NCCL}", f"handoff.{Connector.NIXL}", "batched") for name in (
        "send_floor_ms", "send_tail_ms", "send_tail_per_token_ms", "wait_ms", "wait_per_token_ms", "stall_ms", "stall_per_token_ms", "receive_ms", "receive_per_token_ms",
    )),
)  # fmt: skip
STEPS = (1.3, 1.1, 1.03)
SEED_MS = 0.5  # a number that is 0 is tried with this, or with a thousandth of it a token
QUANTILES = (50, 99)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: what was offered, who served, and p50 and p99 of TTFT and TPOT in milliseconds."""

    name: str
    label: str
    rate: float
    size: str
    arrivals: tuple[Arrival, ...]
    engines: Engines
    values: tuple[float, ...]
    requests: int


def main() -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="calibrate", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--start", default="h200-llama3-8b", help="profile to begin with")
    parser.add_argument("--kv-tokens", type=int, default=152_000, help="KV cache of an engine, tokens")
    parser.add_argument("--hold-out", nargs="*", default=["disagg 1P3D"], metavar="LABEL")
    parser.add_argument(
        "--batched", nargs="*", default=[], metavar="LABEL", help="deployments whose engines have KV_BATCHED"
    )
    parser.add_argument(
        "--fit", nargs="*", default=[], metavar="PART", help="walk the numbers of these parts alone, e.g. batched"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the fitted numbers, JSON")
    parser.add_argument("--report", type=Path, required=True, help="the table, Markdown")
    options = parser.parse_args()
    runs = sorted(
        read(options.results, options.kv_tokens, options.batched), key=lambda run: (run.label, run.size, run.rate)
    )
    if not runs:
        print(f"{options.results}: no complete runs")
        return 2
    held = set(held_out(runs, options.hold_out))
    numbers = [number for number in NUMBERS if number[0] in (options.fit or [number[0]])]
    fitted = fit(load_profile(options.start), [run for run in runs if run.name not in held], numbers, options.rounds)
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(fitted)))
    options.report.write_text("\n".join(table(fitted, runs, held)) + "\n")
    return 0


def read(root: Path, kv_tokens: int, batched: Sequence[str]) -> Iterator[Measured]:
    """Complete runs below a folder."""
    for path in root.rglob(MANIFEST):
        manifest = read_json(path, Manifest)
        if not manifest.complete:
            continue
        records = read_lines(path.parent / REQUESTS, RequestRecord)
        good = [r for r in records if not r.warmup and latency.succeeded(r) and latency.tpot(r) is not None]
        if not good:
            continue
        start = min(r.scheduled for r in good)
        work = manifest.workload
        size = (work.input_tokens or 0, work.output_tokens or 0)
        roles = [engine.role for engine in manifest.deployment.engines]
        connectors = {engine.connector for engine in manifest.deployment.engines if engine.role is Role.PREFILL}
        yield Measured(
            name=str(path.parent),
            label=manifest.deployment.label,
            rate=work.rate / (manifest.deployment.gpus or 1),
            size=f"{size[0]}/{size[1]}",
            arrivals=tuple(Arrival(r.scheduled - start, *size) for r in sorted(good, key=lambda r: r.scheduled)),
            engines=Engines(
                prefills=roles.count(Role.PREFILL),
                others=len(roles) - roles.count(Role.PREFILL),
                connector=next(iter(connectors), None),
                kv_tokens=kv_tokens,
                batched=manifest.deployment.label in batched,
            ),
            values=quantiles(good),
            requests=len(good),
        )


def quantiles(records: Sequence[RequestRecord]) -> tuple[float, ...]:
    """TTFT p50 and p99, TPOT p50 and p99, in milliseconds, of requests that have both."""
    columns = (
        [value for record in records if (value := metric(record)) is not None]
        for metric in (latency.ttft, latency.tpot)
    )
    return tuple(float(np.percentile(column, q)) * 1e3 for column in columns for q in QUANTILES)


def held_out(runs: Sequence[Measured], labels: Sequence[str]) -> Iterator[str]:
    """Names of the runs that the fit must not see: every second rate, and whole topologies."""
    for label, size in {(run.label, run.size) for run in runs}:
        ordered = sorted((run for run in runs if (run.label, run.size) == (label, size)), key=lambda run: run.rate)
        yield from (run.name for number, run in enumerate(ordered) if number % 2 or label in labels)


def modelled(profile: Profile, run: Measured) -> tuple[float, ...]:
    """What a profile gives for a run."""
    times = token_times(profile, run.engines, run.arrivals)
    return quantiles([simulated(*each) for each in zip(run.arrivals, times, strict=True)])


def simulated(arrival: Arrival, times: Sequence[float]) -> RequestRecord:
    """A simulated request as a client would have recorded it; of its tokens only the first and the last count here."""
    chunks = [(times[0], 1), (times[-1], len(times) - 1)]
    return RequestRecord(index=0, id="", scheduled=arrival.at, chunks=chunks, output_tokens=len(times))


def badness(profile: Profile, runs: Sequence[Measured]) -> float:
    """Mean square of the logarithms of modelled over measured."""
    ratios = [
        math.log(got / wanted) ** 2
        for run in runs
        for got, wanted in zip(modelled(profile, run), run.values, strict=True)
    ]
    return sum(ratios) / len(ratios)


def fit(profile: Profile, runs: Sequence[Measured], numbers: Sequence[tuple[str, str]], rounds: int) -> Profile:
    """Walk each of the numbers up and down by ever smaller factors, and keep what helps."""
    best, least = profile, badness(profile, runs)
    print(f"before: off by {math.sqrt(least):.1%}", flush=True)
    for step in STEPS[:rounds]:
        for _ in range(2):
            for number in numbers:
                for change in (step, 1 / step):
                    while True:
                        tried = changed(best, number, change)
                        score = badness(tried, runs)
                        if score >= least * 0.9995:
                            break
                        best, least = tried, score
            print(f"steps of {step}: off by {math.sqrt(least):.1%}", flush=True)
    return best


def changed(profile: Profile, number: tuple[str, ...], factor: float) -> Profile:
    """The profile with one number multiplied; shares stay shares."""
    *where, name = number
    document = msgspec.to_builtins(profile)
    place = document
    for part in where[0].split(".", 1) if where else ():
        place = place.setdefault(part, {})
    value = place.get(name, 0.0) * factor or (SEED_MS if factor > 1 else 0.0) * (1e-3 if "per_token" in name else 1.0)
    place[name] = min(1.0, value) if name.endswith("share") else value
    return msgspec.convert(document, Profile)


def table(profile: Profile, runs: Sequence[Measured], held: set[str]) -> Iterator[str]:
    """Modelled and measured side by side, and how far the held-out runs are off."""
    off: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    rows = []
    for run in runs:
        got = modelled(profile, run)
        off[run.name in held].append(tuple(abs(g / w - 1) for g, w in zip(got, run.values, strict=True)))
        numbers = " | ".join(f"{w:,.1f} | {g:,.1f}" for g, w in zip(got, run.values, strict=True))
        kind = "held out" if run.name in held else "fitted"
        rows.append(f"| {run.label} | {run.size} | {run.rate:g} | {run.requests:,} | {kind} | {numbers} |")
    names = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99")
    yield "| median error (runs) | " + " | ".join(names) + " |"
    yield "| :--- |" + " ---: |" * len(names)
    for key, kind in ((False, "fitted"), (True, "held out")):
        errors = " | ".join(f"{np.median(column):.0%}" for column in zip(*off[key], strict=True))
        yield f"| {kind} ({len(off[key])}) | {errors} |"
    yield ""
    yield "Milliseconds, measured | simulated:"
    yield ""
    yield "| deployment | tokens | rate a GPU | n | run | " + " | ".join(f"{name} | sim." for name in names) + " |"
    yield "| :--- | :--- | ---: | ---: | :--- |" + " ---: |" * (2 * len(names))
    yield from rows


if __name__ == "__main__":
    sys.exit(main())
