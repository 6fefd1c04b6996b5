"""`pdctl doctor`, and the check that `up` makes before it starts anything."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.table import Table
from rich.text import Text

from pd_control.context import Context
from pd_control.doctor.catalogue import Finding, Level
from pd_control.doctor.checks_engine import engine_findings
from pd_control.doctor.checks_gpu import gpu_findings
from pd_control.doctor.checks_machine import machine_findings
from pd_control.doctor.facts import Facts
from pd_control.doctor.gather import gather
from pd_control.planning.plan import Engine, ProcessSpec, planned_by
from pd_control.supervision.state import is_alive

MARKS: Final = {
    Level.OK: Text("✓", "bold green"),
    Level.WARNING: Text("!", "bold yellow"),
    Level.ERROR: Text("✗", "bold red"),
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    ok: bool
    findings: list[Finding]
    facts: Facts


def diagnose(facts: Facts, specs: Sequence[ProcessSpec]) -> list[Finding]:
    """All findings for the processes that are to run, each once, basic ones first."""
    engines = [spec for spec in specs if spec.role is not None]
    all_ = [*gpu_findings(facts, engines), *engine_findings(facts, engines), *machine_findings(facts, specs)]
    return list(dict.fromkeys(all_))


def examine(context: Context, specs: Sequence[ProcessSpec], engine: Engine) -> Report:
    """Gather facts about this machine and return the findings."""
    state = context.store.load()
    here = [*(state.processes if state else []), *context.store.terminals()]
    running = [process for process in here if is_alive(process)]
    facts = gather(context.settings, context.environment, specs, running, vllm=engine is Engine.VLLM)
    findings = diagnose(facts, specs)
    return Report(ok=not errors(findings), findings=findings, facts=facts)


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that keep a deployment from starting."""
    return [finding for finding in findings if finding.level is Level.ERROR]


def doctor(context: Context, options: argparse.Namespace) -> int:
    """Show all findings; 0 without an error, else 1."""
    planned = planned_by(context.settings, options)
    report = examine(context, planned.processes, planned.engine)
    if options.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        return 0 if report.ok else 1
    context.terminal.title(f"{planned.shape} with {planned.engine} engines on this machine")
    context.terminal.table(table(report.findings))
    wrong, doubtful = (sum(f.level is level for f in report.findings) for level in (Level.ERROR, Level.WARNING))
    context.terminal.verdict(report.ok, f"{_count(wrong, 'error')}, {_count(doubtful, 'warning')}")
    return 0 if report.ok else 1


def admits(context: Context, specs: Sequence[ProcessSpec], engine: Engine, *, force: bool) -> bool:
    """The check before a start: show warnings and errors; True if the start may go on."""
    report = examine(context, specs, engine)
    unwell = [finding for finding in report.findings if finding.level is not Level.OK]
    if unwell:
        context.terminal.table(table(unwell))
    if report.ok:
        return True
    if force:
        context.terminal.note("started anyway, because of --force")
        return True
    context.terminal.error("nothing was started; pdctl doctor shows all findings, --force starts anyway")
    return False


def table(findings: Sequence[Finding]) -> Table:
    """A line per finding, with its remedy under it."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(width=1)
    shown.add_column(overflow="fold", style="bold", max_width=24)
    shown.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.sentence)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", "dim")
        shown.add_row(MARKS[finding.level], finding.subject, text)
    return shown


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"
