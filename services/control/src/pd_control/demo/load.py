"""One load for several deployments: the options of pd-loadgen, made once."""

import sys
from pathlib import Path

import msgspec

from pd_contracts.records import MANIFEST, Manifest, read_json


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is offered; rates are requests a second over the whole deployment.

    A client later than `lag_limit_ms` makes a run invalid; None leaves pd-loadgen's own limit.
    """

    rate: float
    duration_s: float
    input_tokens: int
    output_tokens: int
    seed: int = 0
    dataset: str = "random"
    warmup: int = 10
    goodput: str = ""
    lag_limit_ms: float | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment that waits for load. `deployment` is the file with what the manifest is told of it."""

    url: str
    model: str
    label: str
    deployment: Path
    monitor: str = ""


class LoadError(RuntimeError):
    """The runs cannot be compared; the message says why."""


# What pd-loadgen's exit statuses mean for a comparison; 0 is a complete and valid run.
CLIENT_LATE = 3
VERDICTS = {
    2: "pd-loadgen refused its options or did not reach the proxy",
    4: "every request failed",
}


def command(load: Load, target: Target, out: Path) -> list[str]:
    """The command line of pd-loadgen; all but target and folder is equal for every topology."""
    options = {
        "--url": target.url,
        "--model": target.model,
        "--dataset": load.dataset,
        "--input-tokens": str(load.input_tokens),
        "--output-tokens": str(load.output_tokens),
        "--rate": f"{load.rate:g}",
        "--duration": f"{load.duration_s:g}",
        "--seed": str(load.seed),
        "--warmup": str(load.warmup),
        "--goodput": load.goodput,
        "--lag-limit-ms": f"{load.lag_limit_ms:g}" if load.lag_limit_ms else "",
        "--out": str(out),
        "--label": target.label,
        "--deployment": _short(target.deployment),
        "--monitor": target.monitor,
    }
    given = [part for option, value in options.items() if value for part in (option, value)]
    return [sys.executable, "-m", "pd_loadgen", "run", *given]


def refuse_unequal(folders: list[Path]) -> str:
    """The schedule hash that all runs share.

    Raises:
        LoadError: if they do not: then the topologies did not get the same load, and a comparison would lie.
        RecordError: if a manifest cannot be read.
    """
    hashes = {folder.name: read_json(folder / MANIFEST, Manifest).schedule_hash for folder in folders}
    if len(set(hashes.values())) != 1:
        found = ", ".join(f"{name} {value}" for name, value in hashes.items())
        msg = f"the runs were not offered the same schedule ({found}): no comparison"
        raise LoadError(msg)
    return next(iter(hashes.values()))


def _short(path: Path) -> str:
    # The command is kept in the manifest and printed in the report, where nobody else has this machine's folders.
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
