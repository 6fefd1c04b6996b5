"""The subcommands besides `run`: none sends anything itself, so none imports gevent."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pd_contracts.folders import check_file, check_folder
from pd_loadgen.results import aggregate, import_command
from pd_loadgen.results.manifests import EXIT_BAD, EXIT_COMPLETE
from pd_loadgen.series import search_command, sweep
from pd_loadgen.series.runner import Series

_REFUSED: Final = (ValueError, OSError)


def add(commands: Any) -> None:
    """Add them to the command line; each sets `execute`, which takes the parsed arguments and returns the exit status."""
    sweeping = commands.add_parser(
        "sweep", help="do all runs of a YAML file, each in its own folder; resumes where it stopped"
    )
    sweeping.add_argument("file", type=Path, help="YAML file with the combinations")
    sweeping.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    sweeping.add_argument("--dry-run", action="store_true", help="only list the runs")
    sweeping.set_defaults(execute=_guarded(_sweep))
    gathering = commands.add_parser("aggregate", help="write one CSV with a row per run, including killed runs")
    gathering.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="run folders, or folders that contain some"
    )
    gathering.add_argument("--out", type=Path, metavar="FILE", help="CSV file; without it, standard output")
    gathering.add_argument(
        "--parquet", type=Path, metavar="FILE", help="Parquet file with the same table (needs pyarrow)"
    )
    gathering.set_defaults(execute=_guarded(_aggregate))
    importing = commands.add_parser(
        "import",
        help="make run folders from results of vllm bench serve --save-detailed, vllm bench sweep serve, or SGLang's benchmark",
    )
    importing.add_argument("path", type=Path, help="a file, or the folder of a sweep")
    importing.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="run folder; for several results, the folder of their runs",
    )
    importing.add_argument("--label", default="", help="short name of the deployment")
    importing.add_argument("--gpus", type=int, help="GPUs of the deployment, for numbers per GPU")
    importing.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help="limits in ms, as in run")
    importing.set_defaults(execute=_guarded(import_command.execute))
    search_command.add(commands, _guarded)


def _guarded(execute: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(given: argparse.Namespace) -> int:
        try:
            return execute(given)
        except _REFUSED as error:  # our errors about files, folders and options all derive from these two
            sys.stderr.write(f"pd-loadgen: {error}\n")
            return EXIT_BAD

    return run


def _sweep(given: argparse.Namespace) -> int:
    points = sweep.read(given.file)
    if given.dry_run:
        check_folder(given.out)
        for point in points:
            sys.stdout.write(" ".join([point.name, *sweep.arguments(point, given.out)]) + "\n")
        return EXIT_COMPLETE
    return Series(given.out, sys.stderr).all(points)


def _aggregate(given: argparse.Namespace) -> int:
    for path, option in ((given.out, "--out"), (given.parquet, "--parquet")):
        if path is not None:
            check_file(path, option)
    table = list(aggregate.rows(given.paths))
    if given.parquet is not None:
        given.parquet.parent.mkdir(parents=True, exist_ok=True)
        aggregate.write_parquet(table, given.parquet)
    if given.out is None and given.parquet is not None:
        return EXIT_COMPLETE
    if given.out is None:
        aggregate.write_csv(table, sys.stdout)
        return EXIT_COMPLETE
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", encoding="utf-8", newline="") as file:
        count = aggregate.write_csv(table, file)
    sys.stderr.write(f"pd-loadgen: {count} runs in {given.out}\n")
    return EXIT_COMPLETE
