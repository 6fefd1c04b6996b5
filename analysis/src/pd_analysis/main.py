"""`pd-analysis report` renders run folders, `compare` prints their closing table, `export` writes their numbers for other programs."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pd_analysis.numbers import regression
from pd_analysis.numbers.evaluation import Result, evaluate, grouped, together, with_repeats_pooled
from pd_analysis.records.reader import load_tree
from pd_analysis.records.run import Loaded
from pd_analysis.report import HTML, export, terminal
from pd_analysis.report.export import FORMATS
from pd_analysis.report.terminal import COLUMNS
from pd_analysis.settings import Settings
from pd_analysis.words.language import LANGUAGES, in_language
from pd_contracts import log, settings
from pd_contracts.arguments import Parser
from pd_contracts.folders import FolderError, check_folder, unwritable
from pd_contracts.records import MANIFEST

WORSE = 1  # exit status: worse than the baseline
NOTHING = 2  # exit status: bad options, or no run to show
REPORT_FOLDER = "report"
EXPORT_FOLDER = "export"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; the exit status is 0, 1 after a regression, or 2 if there was nothing to show."""
    parser = _parser()
    options = parser.parse_args(arguments)
    overrides = {name: value for name in ("results_dir", "log_level") if (value := getattr(options, name)) is not None}
    try:
        read = settings.load(Settings, overrides=overrides)
        log.set_up(read.log_level)
        if logging.root.level == logging.INFO:
            logging.getLogger("matplotlib").setLevel(logging.WARNING)  # at INFO it tells about its cache of fonts
    except ValueError as error:
        parser.exit(NOTHING, f"pd-analysis: {error}\n")
    try:
        return {"report": _report, "compare": _compare, "export": _export}[options.command](options, read)
    except FolderError as error:
        parser.exit(NOTHING, f"pd-analysis: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pd-analysis", description="Turn run folders into tables, plots and a report with a verdict.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shared = settings.parser_for(Settings, "pd-analysis", "")
    report = commands.add_parser(
        "report", parents=[shared], add_help=False, help="write report.html, report.md and plots"
    )
    report.add_argument(
        "runs", nargs="*", metavar="RUN_OR_TREE", help="run folders or trees of them (default: RESULTS_DIR)"
    )
    report.add_argument("--out", metavar="DIR", help="where the report goes (default: RESULTS_DIR/report)")
    report.add_argument("--title", metavar="TEXT", default="", help="title of the report (default: what is compared)")
    report.add_argument(
        "--every-load", action="store_true", help="write a chapter for every load, even if there are many"
    )
    compare = commands.add_parser("compare", parents=[shared], add_help=False, help="print the closing table of runs")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="run folders or trees of them (default: RESULTS_DIR)")
    compare.add_argument(
        "--brief", action="store_true", help="only the verdict over all loads, and the path of the report"
    )
    compare.add_argument(
        "--baseline", metavar="RUN_OR_TREE", help="reference runs; exit status 1 if the given runs are worse"
    )
    compare.add_argument(
        "--tolerance", metavar="PERCENT", type=_percent, default=0.05, help="how much worse is accepted (default 5)"
    )
    exported = commands.add_parser(
        "export", parents=[shared], add_help=False, help="write the numbers as CSV or Parquet"
    )
    exported.add_argument("runs", nargs="*", metavar="RUN_OR_TREE", help="run folders or trees (default: RESULTS_DIR)")
    exported.add_argument("--out", metavar="DIR", help="where the tables go (default: RESULTS_DIR/export)")
    exported.add_argument("--format", choices=FORMATS, default="csv", help="csv (default) or parquet")
    exported.add_argument(
        "--classic",
        action="store_true",
        help="one disaggregated run as disaggregated_results.json, prefill_gpu_data.json, decode_gpu_data.json and a figure",
    )
    for command in (report, compare):
        command.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the output (default en)")
    for command in (report, compare, exported):
        command.add_argument(
            "--cut",
            metavar="SECONDS",
            type=_seconds,
            default=0.0,
            help="count the first seconds of each measured window as warm-up",
        )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _percent(text: str) -> float:
    return _seconds(text) / 100


def _load(options: argparse.Namespace, read: Settings) -> Loaded | None:
    """Read the runs and report those left out; None, after an error message, if there are none."""
    paths = options.runs or [read.results_dir]
    loaded = load_tree(paths, options.cut)
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
    from pd_analysis.report.writer import write_report  # noqa: PLC0415 - matplotlib takes a second that `compare` need not wait for

    out = Path(options.out or Path(read.results_dir) / REPORT_FOLDER)
    check_folder(out)
    loaded = _load(options, read)
    if loaded is None:
        return NOTHING
    with _written_to(out):
        written = write_report(loaded, out, options.title, options.lang, every_load=options.every_load)
    print(written.html)
    print(written.markdown)
    return 0


def _compare(options: argparse.Namespace, read: Settings) -> int:
    loaded = _load(options, read)
    if loaded is None:
        return NOTHING
    results = evaluate(loaded.runs)
    if options.baseline:
        return _check(options, results)
    console = Console(width=None if sys.stdout.isatty() else COLUMNS)
    with in_language(options.lang):
        if options.brief:
            terminal.brief(console, results)
        else:
            named = bool(options.runs) and all(map(_is_run, options.runs))
            terminal.wholes(console, [together(results)] if named else grouped(results))
        if (page := _report_of(options, read)) is not None:
            terminal.where(console, page)
    return 0


def _is_run(path: str) -> bool:
    return (Path(path) / MANIFEST).is_file() or Path(path).is_file()


def _report_of(options: argparse.Namespace, read: Settings) -> Path | None:
    """An existing report of these runs: in the tree itself, as `pdctl compare` does, or where `report` puts it."""
    trees = [Path(tree) for tree in options.runs]
    places = [trees[0]] if len(trees) == 1 else [] if trees else [Path(read.results_dir) / REPORT_FOLDER]
    return next((page for place in places if (page := place / HTML).is_file()), None)


def _check(options: argparse.Namespace, results: Sequence[Result]) -> int:
    known = load_tree([options.baseline], options.cut)
    for problem in known.problems:
        sys.stderr.write(f"pd-analysis: {problem.path}: {problem.sentence}\n")
    pooled = with_repeats_pooled(results)
    checked = regression.check(pooled, with_repeats_pooled(evaluate(known.runs)), options.tolerance)
    for result in checked.unmatched:
        sys.stderr.write(f"pd-analysis: {result.run.path}: the baseline has no run of {result.label} under this load\n")
    for result in checked.barred:
        sys.stderr.write(
            f"pd-analysis: {result.run.path}: must not be compared with the baseline: another model or schedule, or a run that cannot be trusted\n"
        )
    if len(checked.unmatched) + len(checked.barred) == len(pooled):
        sys.stderr.write(f"pd-analysis: nothing below {options.baseline} can be compared with these runs\n")
        return NOTHING
    for comparison in checked.worse:
        print(regression.sentence(comparison))
    print(regression.summary(checked, options.tolerance))
    return WORSE if checked.worse else 0


def _export(options: argparse.Namespace, read: Settings) -> int:
    out = Path(options.out or Path(read.results_dir) / EXPORT_FOLDER)
    check_folder(out)
    loaded = _load(options, read)
    if loaded is None:
        return NOTHING
    results = [result for group in grouped(evaluate(loaded.runs)) for result in group.results]
    if options.classic:
        return _export_classic(results, out)
    with _written_to(out):
        written = list(export.write(results, out, options.format))
    for path in written:
        print(path)
    return 0


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    """Turn an error while writing, such as a full disk, into a message that says what to do."""
    try:
        yield
    except OSError as error:
        raise unwritable(out, error) from error


def _export_classic(results: Sequence[Result], out: Path) -> int:
    from pd_analysis.report import classic  # noqa: PLC0415 - matplotlib, as above

    if len(results) != 1:
        names = ", ".join(str(result.run.path) for result in results)
        sys.stderr.write(
            f"pd-analysis: --classic takes one run, and these are {len(results)} ({names}): name one run folder\n"
        )
        return NOTHING
    try:
        with _written_to(out):
            written = classic.write(results[0], out)
    except classic.ClassicError as error:
        sys.stderr.write(f"pd-analysis: {error}\n")
        return NOTHING
    for path in written:
        print(path)
    return 0
