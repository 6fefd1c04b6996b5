"""`pd-plan`: a traffic to a deployment."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from pd_analysis.words.language import in_language, tr
from pd_contracts.folders import FolderError, check_folder, unwritable
from pd_planner.cli.failure import CommandError
from pd_planner.cli.question import add_arguments, question_of
from pd_planner.confidence.findings import Findings, find
from pd_planner.cores import LostError
from pd_planner.des.compiled import COMPILED
from pd_planner.emit import measurement
from pd_planner.emit.deploy import STEP_PROFILE_FILE, env_text, values_text
from pd_planner.emit.plan_file import PlanFile, plan_file
from pd_planner.report import sentences, tables, terminal
from pd_planner.search.no_plan import NoPlanError

__all__ = ["EXAMPLES", "add_arguments", "run"]
PLAN, ENV, VALUES = "plan.json", ".env", "values.yaml"
EXAMPLES: Final = """\
  pd-plan --input-tokens 2048 --output-tokens 128 --gpus 8 --goodput "ttft:500 tpot:15"
  pd-plan --input-tokens 2048 --output-tokens 128 --rate 300 --goodput "ttft:500 tpot:15" --out plan
  pd-plan --trace azure.csv --speed 2 --objective energy --power-cap-w 20000
  pd-plan --model config.json --gpu L40S --input-tokens 1024 --output-tokens 256
"""


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Exit status 0, or an error with a sentence."""
    say = _silent if options.quiet else _tell
    if not COMPILED:
        say(tr("numba is not installed, so this takes about a minute instead of seconds: pip install numba"))
    question = question_of(options)
    if options.out is not None:
        check(options.out)
    try:
        found = find(question, options.draws, maps=options.out is not None, say=say)
    except (NoPlanError, LostError) as error:
        raise CommandError(str(error)) from error
    decide = measurement.command(question.setting, found.verdict.compared)
    verdict, doubts = sentences.verdict_sentences(found), sentences.doubts(found, decide)
    terminal.show(Console(), verdict, doubts, tables.choices(found, terminal.ROWS), sentences.held_out_words(found))
    if options.out is not None:
        for path in write(options.out, found, _plan_file(found, shlex.join(["pd-plan", *words]), decide)):
            print(path)
    return 0


def _plan_file(found: Findings, command: str, decide: str) -> PlanFile:
    """The plan file in English, because programs read it."""
    with in_language("en"):
        return plan_file(
            found,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            verdict=sentences.verdict_sentences(found),
            doubts=sentences.doubts(found, decide),
            measurement=decide,
        )


def check(folder: Path) -> None:
    """Refuse, before anything is simulated, a folder that cannot be written, or in which a plan would replace somebody's settings.

    Raises:
        FolderError: with the remedy.
    """
    check_folder(folder)
    foreign = [name for name in (ENV, VALUES) if (folder / name).exists()]
    if foreign and not (folder / PLAN).exists():
        raise FolderError(
            "{folder} holds {name}, which was not written by a plan: choose another --out",
            folder=folder,
            name=foreign[0],
        )


def _tell(text: str) -> None:
    print(f"pd-plan: {text}", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Print only the answer."""


def write(folder: Path, found: Findings, plan: PlanFile) -> list[Path]:
    """Write all files of a plan; returns their paths.

    Raises:
        FolderError: if it cannot be written.
    """
    from pd_planner.calibrate.write import toml_text  # noqa: PLC0415 - SciPy and matplotlib take a second that a plain answer need not wait for
    from pd_planner.report.page import pages  # noqa: PLC0415

    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            PLAN: msgspec.json.format(msgspec.json.encode(plan)).decode() + "\n",
            ENV: env_text(plan, folder),
            VALUES: values_text(plan),
            **pages(folder, found, plan),
        }
        if plan.best.deployment.adaptive and not plan.step_profile:
            texts[STEP_PROFILE_FILE] = toml_text(plan.profile)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, error) from error
    return [folder / name for name in texts]
