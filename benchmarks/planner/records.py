# ruff: noqa: INP001  a script
"""The published H200 runs, and the profiles that are fitted to a part of them."""

import contextlib
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

import condensed
import msgspec
import p2p

from pd_contracts import profiles
from pd_planner.calibrate.calibration import fitted
from pd_planner.calibrate.errors import Compared, compare, held_out_of
from pd_planner.calibrate.launches import launch_of
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.runs import read
from pd_planner.calibrate.write import toml_text
from pd_planner.main import main
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import board_of
from pd_planner.profile.shape import read_shape
from pd_simulator.profile import Profile, load_profile

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "docs" / "results"
# Their engines sent a request's KV in one message, which the manifests do not say.
ONE_MESSAGE: Final = ("disagg 1P1D batched", "disagg 3P1D batched")
KV_TOKENS: Final = 152_000
NAME: Final = "h200-llama3-8b.toml"
DESCRIPTION: Final = "H200, Llama-3.1-8B's shape in 16 bits: fitted to 120 runs of vLLM 0.23 on four H200 with NVLink; launches of vLLM 0.33"


# Archives of docs/results/h200x2 whose deployments pd-plan simulates, all of one host.
PAIR: Final = ("2c", "1p1d-p2p")


def unpacked(name: str, into: Path, archives: Collection[str] = ()) -> Path:
    """The records of a folder of results, or these archives of them, as a tree of run folders."""
    for archive in sorted((RESULTS / name / "records").glob("*.tar.xz")):
        if archives and archive.name.removesuffix(".tar.xz") not in archives:
            continue
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
    return into


def runs(name: str, archives: Collection[str] = ()) -> list[Measured]:
    """All runs of a folder of results, or of these archives."""
    with tempfile.TemporaryDirectory() as folder:
        found, problems = read([unpacked(name, Path(folder), archives)], kv_tokens=KV_TOKENS, batched=ONE_MESSAGE)
    if problems:
        raise RuntimeError("; ".join(problems))
    return found


def start() -> Profile:
    """What is believed before any run: the model's shape and the board's data sheet."""
    board = board_of("H200")
    if board is None:
        raise RuntimeError("the data sheets have no H200")
    return analytic(read_shape("llama-3.1-8b"), board)


def condense() -> None:
    """Write what `condensed` reads."""
    every = runs("h200")
    condensed.RUNS.write_bytes(condensed.condense(every))
    _write(condensed.TWO_GPUS, "the 48 runs of docs/results/h200 on two GPUs", [run for run in every if run.gpus == 2])
    one = runs("h200x1")
    rated = [run for run in one if "-rate" in run.path.name]  # the others are modes batch and phase-split
    condensed.ONE_GPU_RUNS.write_bytes(condensed.condense(rated))
    _write(condensed.ONE_GPU, f"the {len(one)} runs of docs/results/h200x1", one)
    condensed.PAIR_RUNS.write_bytes(condensed.condense(runs("h200x2", PAIR)))
    for prompt in sorted({_prompt(run) for run in rated}):
        others = [run for run in one if _prompt(run) != prompt]
        what = f"the {len(others)} runs of docs/results/h200x1 without prompts of {prompt} tokens"
        _write(condensed.one_gpu_without(prompt), what, others)


def _prompt(run: Measured) -> int:
    return int(run.load.prompt[0])


def _write(path: Path, what: str, seen: list[Measured]) -> None:
    profile = msgspec.structs.replace(fitted(start(), seen)[0], description=f"fitted to {what}")
    head = (
        f"# Written by `python benchmarks/planner condense`, fitted to {what}; only to be compared with the others.\n\n"
    )
    path.write_text(head + toml_text(profile), encoding="utf-8")


def _of_a_later_vllm(profile: Profile) -> Profile:
    """With the launches of vLLM 0.33, which take longer than those of 0.23, and its errors on runs of 0.33, which no fit has seen."""
    profile = msgspec.structs.replace(profile, launch=launch_of(profile.launch, runs("h200x1")))
    by_label: dict[str, list[Compared]] = {}
    for run in condensed.runs_of_a_pair():
        by_label.setdefault(f"{run.label}, vLLM 0.33", []).append(compare(profile, run))
    if profile.provenance is None:
        return profile
    held_out = profile.provenance.held_out | {label: held_out_of(found) for label, found in by_label.items()}
    return msgspec.structs.replace(profile, provenance=msgspec.structs.replace(profile.provenance, held_out=held_out))


def write_profile() -> None:
    """The shipped profile and the page on its calibration: what `pd-plan calibrate` finds in the records, with P2pConnector's numbers."""
    words = ["--model", "llama-3.1-8b", "--gpu", "H200", "--kv-tokens", str(KV_TOKENS), "--batched", *ONE_MESSAGE]
    words += ["--description", DESCRIPTION, "--out", NAME, "--report", "calibration.md"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        unpacked("h200", Path("records"))
        if main(["calibrate", "records", *words]):
            raise RuntimeError("nothing was written")
        head = [line for line in Path(NAME).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        profile = _of_a_later_vllm(p2p.with_p2p(load_profile(NAME)))
        report = Path("calibration.md").read_text(encoding="utf-8")
    head.append(
        "# P2pConnector's numbers are of docs/results/h200-p2p, launches of docs/results/h200x1; all of it again: python benchmarks/planner profile"
    )
    (Path(profiles.__file__).parent / NAME).write_text("\n".join(head) + "\n\n" + toml_text(profile), encoding="utf-8")
    (RESULTS / "h200" / "calibration.md").write_text(report, encoding="utf-8")
