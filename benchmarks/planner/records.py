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
QWEN: Final = "h200-qwen3-4b.toml"
QWEN_RESULTS: Final = "h200x1-qwen3-4b"
QWEN_DESCRIPTION: Final = "H200, Qwen3-4B's shape in 16 bits: fitted to 10 runs of plain vLLM 0.33 on one H200; hand-over as rounded from Llama-3.1-8B's"
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
    """The shipped profiles and the pages on their calibration."""
    words = ["--kv-tokens", str(KV_TOKENS), "--batched", *ONE_MESSAGE, "--description", DESCRIPTION]
    profile, head, report = _calibrated("h200", "llama-3.1-8b", NAME, words)
    head += "\n# P2pConnector's numbers are of docs/results/h200-p2p, launches of docs/results/h200x1; all of it again: python benchmarks/planner profile"
    _ship(_of_a_later_vllm(p2p.with_p2p(profile)), NAME, head)
    (RESULTS / "h200" / "calibration.md").write_text(report, encoding="utf-8")

    profile, head, report = _calibrated(QWEN_RESULTS, "qwen3-4b", QWEN, ["--description", QWEN_DESCRIPTION])
    if profile.provenance is not None:  # the records have a folder's name
        profile = msgspec.structs.replace(
            profile, provenance=msgspec.structs.replace(profile.provenance, model="qwen3-4b-shape")
        )
    _ship(
        profile,
        QWEN,
        f"{head}\n# The records are docs/results/{QWEN_RESULTS}; again: python benchmarks/planner profile",
    )
    (RESULTS / QWEN_RESULTS / "calibration.md").write_text(report, encoding="utf-8")


def _calibrated(results: str, model: str, name: str, words: list[str]) -> tuple[Profile, str, str]:
    """What `pd-plan calibrate` finds in the records: the profile, the comment at its head, and the report."""
    command = ["calibrate", "records", "--model", model, "--gpu", "H200", *words, "--out", name]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        unpacked(results, Path("records"))
        if main([*command, "--report", "calibration.md"]):
            raise RuntimeError("nothing was written")
        head = [line for line in Path(name).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        return load_profile(name), "\n".join(head), Path("calibration.md").read_text(encoding="utf-8")


def _ship(profile: Profile, name: str, head: str) -> None:
    (Path(profiles.__file__).parent / name).write_text(f"{head}\n\n{toml_text(profile)}", encoding="utf-8")
