"""`pd-plan calibrate`: run folders to a profile."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Final

import msgspec

from pd_analysis.words.language import mark, tr
from pd_contracts.folders import check_file, unwritable
from pd_planner.calibrate.measured import CalibrationError
from pd_planner.cli import profiles
from pd_planner.cli.failure import CommandError
from pd_planner.cli.parser import add_language
from pd_planner.cli.values import count

DESCRIPTION: Final = mark(
    "Fit a profile to run folders: decoding from token stamps, the rest from latencies, power from energy. "
    "Half of the runs are held out in turn, and the errors of predicting them are printed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, and what to make of them."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_OR_TREE", help=tr("run folders, or folders that contain some")
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.toml", help=tr("file for the profile"))
    parser.add_argument(
        "--report", type=Path, metavar="FILE.md", help=tr("file for a report of every run, measured and predicted")
    )
    parser.add_argument(
        "--batched",
        nargs="*",
        default=[],
        metavar="LABEL",
        help=tr("labels of P2pNcclConnector deployments that sent a request's KV in one message (formerly KV_BATCHED)"),
    )
    parser.add_argument("--kv-tokens", type=count, metavar="N", help=tr("size of an engine's KV cache in tokens (default: the start profile's)"))  # fmt: skip
    parser.add_argument("--board", default="", metavar="NAME", help=tr("name of the GPU (default: as recorded)"))
    parser.add_argument("--description", default="", metavar="TEXT", help=tr("a sentence about the profile"))
    profiles.add_arguments(parser, tr("profile for the values that the runs do not show"))
    add_language(parser)


def run(options: argparse.Namespace) -> int:
    """Exit status 0, or an error with a sentence."""
    from pd_planner.calibrate.calibration import calibrate  # noqa: PLC0415 - pandas takes a second that other commands need not wait for
    from pd_planner.calibrate.runs import read  # noqa: PLC0415
    from pd_planner.calibrate.write import held_out_table, page, profile_text  # noqa: PLC0415

    start = profiles.chosen(options)
    if options.out.suffix != ".toml":
        raise CommandError(tr("--out {path}: the name of a profile must end in .toml", path=options.out))
    check_file(options.out)
    if options.report:
        check_file(options.report, "--report")
    kv_tokens = options.kv_tokens or start.memory.kv_tokens
    runs, problems = read(options.runs, kv_tokens=kv_tokens, batched=options.batched)
    for problem in problems:
        _tell(problem)
    try:
        found = calibrate(start, runs, say=_tell)
    except CalibrationError as error:
        raise CommandError(str(error)) from error
    board = options.board or next((run.board for run in runs if run.board), start.board)
    profile = msgspec.structs.replace(found.profile, board=board.removesuffix(" (simulated)"))
    found = type(found)(profile, found.estimate, found.steps, found.compared, found.odd)
    command = "pd-plan calibrate " + shlex.join(_words(options))
    description = options.description or f"fitted by pd-plan calibrate to {len(runs)} runs"
    _write(options.out, profile_text(found, description, command))
    if options.report:
        _write(options.report, page(found, command))
    for sentence in found.odd:
        _tell(tr("unusual: {finding}", finding=sentence))
    if profile.provenance:
        print("\n".join(held_out_table(profile.provenance.held_out)))
    print(options.out)
    return 0


def _tell(text: str) -> None:
    print(f"pd-plan: {text}", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error


def _words(options: argparse.Namespace) -> list[str]:
    """The command again, as it should be repeated."""
    words = [str(path) for path in options.runs]
    for name in ("profile", "model", "gpu", "kv_tokens", "out", "report"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if options.batched:
        words += ["--batched", *options.batched]
    return words
