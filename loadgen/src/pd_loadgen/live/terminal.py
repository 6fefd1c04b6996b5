"""The terminal output of a run: progress while it goes on, a table when it is over."""

from collections.abc import Mapping
from typing import Any, Final, Protocol, TextIO

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from pd_contracts.records import Manifest, Workload

PERCENTILES: Final = ("p50", "p90", "p95", "p99")
LINE_EVERY_S: Final = 5.0


class Standing(Protocol):
    """Where a run stands."""

    @property
    def phase(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def ended(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def left_s(self) -> float: ...


def status_line(standing: Standing, latencies_ms: Mapping[str, tuple[float, float]]) -> str:
    """One line: what is done, what failed, what is under way, how fast (p50 and p99 by metric), how long still."""
    if not standing.total:
        return standing.phase
    latencies = [f"{name} p50 {p50:.1f} p99 {p99:.1f} ms" for name, (p50, p99) in latencies_ms.items()]
    left = f"{standing.left_s:.0f} s left" if standing.left_s > 0 else "waiting for the last answers"
    counts = f"{standing.failed} failed, {standing.in_flight} in flight"
    return ", ".join([counts, *latencies, left if standing.phase == "measuring" else standing.phase])


class Bar:
    """A progress bar on a terminal. It is drawn only on `show`, because drawing takes time from the loop that stamps."""

    def __init__(self, console: Console) -> None:
        self._progress = RichProgress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, standing: Standing, line: str, _now: float) -> None:
        self._progress.update(self._task, total=standing.total or None, completed=standing.ended, description=line)
        self._progress.refresh()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()


class Lines:
    """A plain line every few seconds, and one at each new phase, where the output is no terminal."""

    def __init__(self, stream: TextIO, now: float) -> None:
        self._stream, self._phase, self._printed = stream, "", now

    def show(self, standing: Standing, line: str, now: float) -> None:
        changed = self._phase not in (standing.phase, "")
        self._phase = standing.phase
        if changed or now - self._printed >= LINE_EVERY_S:
            self._printed = now
            counted = f"{standing.ended}/{standing.total} done, " if standing.total else ""
            self._stream.write(f"pd-loadgen: {counted}{line}\n")
            self._stream.flush()

    def close(self) -> None: ...


def closing(manifest: Manifest, summary: dict[str, Any]) -> Group:
    """Latencies of one run, in milliseconds, and under them what was served."""
    table = Table()
    table.add_column("ms")
    for name in PERCENTILES:
        table.add_column(name, justify="right")
    for metric, values in summary["pdstack"]["latencies_ms"].items():
        table.add_row(metric, *(_number(values[name]) for name in PERCENTILES))
    return Group(Text(_title(manifest)), table, Text("\n".join(_lines(manifest, summary))))


def _title(manifest: Manifest) -> str:
    deployment, load = manifest.deployment, manifest.workload
    name = manifest.title or deployment.label or str(deployment.topology or "") or manifest.url
    tokens = f" {load.input_tokens}/{load.output_tokens}" if load.input_tokens else ""
    offered = f"{load.dataset}{tokens}, {_pace(load)}"
    return ("SIMULATED " if deployment.simulated else "") + f"{name}: {offered}, seed {load.seed}"


def _pace(load: Workload) -> str:
    """What set the pace. Only an open loop has a given rate; elsewhere the rate is a result."""
    match load.arrival:
        case "closed":
            return f"closed loop, {load.max_concurrency} in flight"
        case "batch" if load.batch_sizes:
            return f"batches of {', '.join(map(str, load.batch_sizes))}"
        case "batch":
            return f"{load.requests} requests at once"
        case "phase-split":
            return f"phase-split, {load.requests // 2} prompts"
        case "replay":
            name = load.options.get("trace", "")
            return f"trace {name}: {load.requests} requests in {load.duration_s:.3g} s"
    return f"{load.rate:g} requests/s ({load.arrival})"


def _lines(manifest: Manifest, summary: dict[str, Any]) -> list[str]:
    ours = summary["pdstack"]
    lines = [
        _served(summary),
        f"{_number(summary['request_throughput'])} requests/s, {_number(summary['output_throughput'])} output tokens/s",
    ]
    if ours["goodput_limits_ms"]:
        limits = " ".join(f"{key}:{value:g}" for key, value in ours["goodput_limits_ms"].items())
        share = f" ({ours['attainment']['all']:.1%} of all)" if ours["attainment"] else ""
        lines.append(f"goodput {_number(summary['request_goodput'])} requests/s within {limits}{share}")
    if manifest.client is not None:
        lines.append(_client(manifest))
    lines.extend(["the run was stopped early: its numbers are partial"] if not manifest.complete else [])
    return [*lines, *manifest.notes]


def _served(summary: dict[str, Any]) -> str:
    ours = summary["pdstack"]
    served = f"{summary['completed']:,} of {ours['scheduled']:,} requests served in {summary['duration']:,.1f} s"
    return f"{served}, {summary['failed']:,} failed{_failures(ours['failures'])}"


def _client(manifest: Manifest) -> str:
    client = manifest.client
    if client is None:
        return ""
    if not client.valid:
        return f"INVALID: {client.remedy}"
    return (
        f"client in time: p99 dispatch lag {_number(client.dispatch_lag_ms.get('p99'))} ms"
        f", receive lag {_number(client.receive_lag_ms.get('p99'))} ms"
    )


def _failures(kinds: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})" if kinds else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.1f}"
