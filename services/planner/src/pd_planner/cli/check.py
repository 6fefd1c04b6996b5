"""`pd-plan check`: a plan against what was measured."""

import argparse
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from pd_analysis.words.language import mark, tr
from pd_planner.cli.failure import CommandError
from pd_planner.cli.parser import add_language
from pd_planner.emit.plan_file import PlanFileError, read_plan

OUTSIDE: Final = 1  # exit status: something measured lies outside its band
DESCRIPTION: Final = mark(
    "Compare what a plan predicts with run folders: each run is simulated with its own arrivals by the plan's profile. "
    "Exit status 1 if something lies outside its band, 2 if no run can be compared."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help=tr("the plan.json that pd-plan --out wrote"))
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_OR_TREE", help=tr("run folders, or folders that contain some")
    )
    parser.add_argument(
        "--batched",
        nargs="*",
        default=[],
        metavar="LABEL",
        help=tr("labels of P2pNcclConnector deployments that sent a request's KV in one message (formerly KV_BATCHED)"),
    )
    add_language(parser)


def run(options: argparse.Namespace) -> int:
    """Exit status 0 if everything is within its band."""
    from pd_planner.calibrate.runs import read  # noqa: PLC0415 - pandas takes a second that other commands need not wait for
    from pd_planner.calibrate.within import checked, comparable, summary, table_of  # noqa: PLC0415
    from pd_planner.report.terminal import rich_table  # noqa: PLC0415

    try:
        plan = read_plan(options.plan)
    except PlanFileError as error:
        raise CommandError(str(error)) from error
    runs, problems = read(options.runs, kv_tokens=plan.engine.kv_tokens, batched=options.batched, adaptive=True)
    for problem in problems:
        print(f"pd-plan: {problem}", file=sys.stderr)
    shapes = {(choice.deployment.candidate.plain, choice.deployment.candidate.trust_shape) for choice in plan.choices}
    if not runs:
        raise CommandError(tr("there is no usable run in {folders}", folders=", ".join(map(str, options.runs))))
    wanted = comparable(runs, shapes)
    compared = {run.path for run in wanted}
    for run in runs:
        if run.path not in compared:
            reason = tr("the plan has no such deployment ({deployment})", deployment=run.label)
            print("pd-plan: " + tr("{path}: left out: {reason}", path=run.path, reason=reason), file=sys.stderr)
    found = checked(plan.profile, wanted)
    if not found:
        raise CommandError(tr("none of {count} usable runs is of a deployment of this plan", count=len(runs)))
    console = Console()
    console.print(rich_table(table_of(found), console.width))
    print(summary(found))
    return 0 if all(each.inside for each in found) else OUTSIDE
