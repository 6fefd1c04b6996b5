"""Doubts about the answers."""

from collections.abc import Iterable

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers.evaluation import Result
from pd_analysis.words.language import tr
from pd_contracts.records import Manifest


def unfinished(result: Result) -> Iterable[Doubt]:
    """Answers that end before the tokens that were asked for, though the server was told to go on."""
    served = result.requests.served
    short = served[served["output_tokens"] < served["requested_output_tokens"]]
    if short.empty or not _told_to_go_on(result.run.manifest):
        return
    yield Doubt(
        Level.CARE,
        tr(
            "{run}: {short} of {served} answers are shorter than asked ({written} of {asked} tokens), although ignore_eos was set.",
            run=result.name,
            short=f"{len(short):,}",
            served=f"{len(served):,}",
            written=f"{int(short['output_tokens'].sum()):,}",
            asked=f"{int(short['requested_output_tokens'].sum()):,}",
        ),
        tr(
            "Use a server that honours ignore_eos and has a long enough context; otherwise runs with different answers do different amounts of work."
        ),
        tr("Answers shorter than asked, although ignore_eos was set"),
    )


def _told_to_go_on(manifest: Manifest) -> bool:
    """Whether ignore_eos was set. Old records do not have the option; their command shows it."""
    return manifest.workload.options.get("ignore_eos", "on") != "off" and "--no-ignore-eos" not in manifest.command
