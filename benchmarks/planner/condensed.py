# ruff: noqa: INP001  a script
"""The part of the published H200 runs that an accuracy test needs: arrivals, routes, and the latencies and power of each run.

Reading the records takes a quarter of a minute, this half a second. `python benchmarks/planner condense` writes it again, with the profiles
that were fitted to a part of the runs: `two-gpus.toml` to those on two GPUs, `one-gpu.toml` to those of docs/results/h200x1, and
`one-gpu-without-512.toml` to the latter without prompts of 512 tokens; the other two likewise.
"""

import lzma
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from pd_contracts.names import Connector, Role
from pd_planner.calibrate.measured import Measured
from pd_planner.des.deployment import Route
from pd_planner.traffic.load import Floats, Load
from pd_simulator.profile import Profile, load_profile
from pd_simulator.steps.engines import Engines, Order

FOLDER: Final = Path(__file__).parent
RUNS: Final = FOLDER / "h200.json.xz"
ONE_GPU_RUNS: Final = FOLDER / "h200x1.json.xz"
PAIR_RUNS: Final = FOLDER / "h200x2.json.xz"
TWO_GPUS, ONE_GPU = FOLDER / "two-gpus.toml", FOLDER / "one-gpu.toml"
_UNKNOWN: Final = -1


class Condensed(msgspec.Struct, frozen=True):
    """One run. Columns have one entry per request: `gaps` in µs from one request to the next, the others in units of 10 µs; -1 is unknown.

    `prompt` and `output` are those of every request of the run.
    """

    label: str
    prefills: int
    others: int
    connector: Connector | None
    batched: bool
    kv_tokens: int
    gpus: int
    per_gpu: float
    seed: int
    goodput: dict[str, float]
    watts: dict[Role, float]
    window_s: float
    prompt: int
    output: int
    prefill: str
    other: str
    gaps: list[int]
    ttft: list[int]
    tpot: list[int]
    answered: list[int]
    order: Order = Order.AFTER


def condense(runs: list[Measured]) -> bytes:
    return lzma.compress(msgspec.json.encode([_condensed(run) for run in runs]), preset=9)


def runs() -> list[Measured]:
    """The 120 runs, without token stamps."""
    return _read(RUNS)


def runs_on_one_gpu() -> list[Measured]:
    """The 11 runs of docs/results/h200x1 that have a rate, without token stamps."""
    return _read(ONE_GPU_RUNS)


def runs_of_a_pair() -> list[Measured]:
    """The 8 runs of docs/results/h200x2 with plain engines and with 1P1D, without token stamps."""
    return _read(PAIR_RUNS)


def _read(path: Path) -> list[Measured]:
    return [_measured(one) for one in msgspec.json.decode(lzma.decompress(path.read_bytes()), type=list[Condensed])]


def two_gpus() -> Profile:
    """Fitted to the runs on two GPUs alone."""
    return load_profile(str(TWO_GPUS))


def one_gpu() -> Profile:
    """Fitted to the runs of docs/results/h200x1 alone: one plain engine, of a later vLLM."""
    return load_profile(str(ONE_GPU))


def one_gpu_without(prompt: int) -> Path:
    """The file of the profile that was fitted to docs/results/h200x1 without the prompts of this many tokens."""
    return FOLDER / f"one-gpu-without-{prompt}.toml"


def _condensed(run: Measured) -> Condensed:
    engines = run.engines
    return Condensed(
        label=run.label,
        prefills=engines.prefills,
        others=engines.others,
        connector=engines.connector,
        batched=engines.batched,
        kv_tokens=engines.kv_tokens,
        gpus=run.gpus,
        per_gpu=run.per_gpu,
        seed=run.seed,
        goodput=run.goodput,
        watts={role: round(watts, 2) for role, watts in run.watts.items()},
        window_s=round(run.window_s, 4),
        prompt=int(run.load.prompt[0]),
        output=int(run.load.output[0]),
        prefill="".join(map(str, run.route.prefill)),
        other="".join(map(str, run.route.other)),
        gaps=np.diff(np.round(run.load.at * 1e6).astype(np.int64), prepend=0).tolist(),
        ttft=_whole(run.ttft_ms),
        tpot=_whole(run.tpot_ms),
        answered=_whole(run.answered_ms),
        order=engines.order,
    )


def _whole(milliseconds: Floats) -> list[int]:
    return [int(value) for value in np.round(np.nan_to_num(milliseconds * 100, nan=_UNKNOWN))]


def _known(column: list[int]) -> Floats:
    values = np.array(column, np.float64)
    return np.where(values < 0, np.nan, values / 100)


def _measured(one: Condensed) -> Measured:
    at = np.cumsum(one.gaps) * 1e-6
    return Measured(
        path=Path(f"{one.label}-{one.prompt}-{one.per_gpu:g}-{one.seed}"),
        label=one.label,
        engines=Engines(one.prefills, one.others, one.connector, one.kv_tokens, one.batched, order=one.order),
        gpus=one.gpus,
        load=Load.of(at, one.prompt, one.output),
        route=Route(_engines(one.prefill), _engines(one.other)),
        ttft_ms=_known(one.ttft),
        tpot_ms=_known(one.tpot),
        answered_ms=_known(one.answered),
        streams={},
        watts=one.watts,
        idle_w={},
        window_s=one.window_s,
        limit_w=None,
        goodput=one.goodput,
        per_gpu=one.per_gpu,
        seed=one.seed,
        simulated=False,
        model="",
        engine="",
        board="",
    )


def _engines(digits: str) -> np.ndarray:
    return np.array(list(digits), np.int64)
