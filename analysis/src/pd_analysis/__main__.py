"""`pd-analysis report` renders run folders; `pd-analysis compare` prints their closing table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pd_analysis.doubts import Level, doubts
from pd_analysis.load import Loaded, load_tree
from pd_analysis.results import evaluate, grouped, together
from pd_analysis.settings import Settings
from pd_analysis.terminal import COLUMNS, table_of
from pd_analysis.verdict import verdict
from pd_contracts import log, settings
from pd_contracts.records import MANIFEST

_STYLES = {Level.STOP: "red", Level.CARE: "yellow"}
NOTHING = 2  # exit status: bad options, or no run to show
REPORT_FOLDER = "report"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; the exit status is 0, or 2 if there was nothing to show."""
    parser = _parser()
    options = parser.parse_args(arguments)
    overrides = {name: value for name in ("results_dir", "log_level") if (value := getattr(options, name)) is not None}
    try:
        read = settings.load(Settings, overrides=overrides)
        log.set_up(read.log_level)
    except ValueError as error:
        parser.exit(NOTHING, f"pd-analysis: {error}\n")
    return _report(options, read) if options.command == "report" else _compare(options, read)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pd-analysis", description="Run folders to tables, plots and the report that decides."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = settings.parser_for(Settings, "pd-analysis", "")
    report = commands.add_parser(
        "report", parents=[shared], add_help=False, help="write report.html, report.md and plots"
    )
    report.add_argument(
        "runs", nargs="*", metavar="RUN_OR_TREE", help="run folders or trees of them (default: RESULTS_DIR)"
    )
    report.add_argument("--out", metavar="DIR", help="where the report goes (default: RESULTS_DIR/report)")
    report.add_argument("--title", metavar="TEXT", default="", help="title of the report (default: what is compared)")
    compare = commands.add_parser("compare", parents=[shared], add_help=False, help="print the closing table of runs")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="run folders or trees of them (default: RESULTS_DIR)")
    return parser


def _load(options: argparse.Namespace, read: Settings) -> Loaded | None:
    """Read the runs and say what was left out; None, after a sentence, if there is none."""
    paths = options.runs or [read.results_dir]
    loaded = load_tree(paths)
    for problem in loaded.problems:
        sys.stderr.write(f"pd-analysis: {problem.path}: {problem.sentence}\n")
    if loaded.runs:
        return loaded
    where = ", ".join(map(str, paths))
    sys.stderr.write(
        f"pd-analysis: no complete run below {where}; make one with `make demo` or `pd-loadgen run --out {where}/NAME`\n"
    )
    return None


def _report(options: argparse.Namespace, read: Settings) -> int:
    from pd_analysis.report import write_report  # noqa: PLC0415 - matplotlib takes a second that `compare` need not wait for

    loaded = _load(options, read)
    if loaded is None:
        return NOTHING
    out = Path(options.out or Path(read.results_dir) / REPORT_FOLDER)
    written = write_report(loaded, out, options.title)
    print(written.html)
    print(written.markdown)
    return 0


def _compare(options: argparse.Namespace, read: Settings) -> int:
    loaded = _load(options, read)
    if loaded is None:
        return NOTHING
    results = evaluate(loaded.runs)
    console = Console(width=None if sys.stdout.isatty() else COLUMNS)
    named = bool(options.runs) and all((Path(run) / MANIFEST).is_file() for run in options.runs)
    for group in [together(results)] if named else grouped(results):
        console.print(table_of(group))
        found = doubts(group)
        for pair in verdict(group, found).pairs:
            console.print(pair.lead, highlight=False, markup=False)
        for doubt in found:
            console.print(
                f"- {doubt.level.value}: {doubt.sentence} {doubt.remedy}",
                style=_STYLES[doubt.level],
                highlight=False,
                markup=False,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
