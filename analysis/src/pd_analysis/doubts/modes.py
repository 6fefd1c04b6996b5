"""What can be wrong with the modes that measure requests in groups: prompts from a cache, and differences within the error."""

from collections.abc import Iterable
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import phase_split
from pd_analysis.words.language import tr
from pd_contracts.names import Topology


def _phases(result: Result) -> Iterable[Doubt]:
    if result.load.pace is not Pace.PHASES:
        return
    found = phase_split(result)
    if found is None:
        return
    if found.cached:
        yield Doubt(
            Level.STOP,
            tr(
                "{run}: the prompts of the second part came from a prefix cache, so the difference between the parts hides prefill.",
                run=result.name,
            ),
            tr("Start the server without prefix caching (vLLM: --no-enable-prefix-caching) and measure again."),
            tr("Prompts came from a prefix cache"),
        )
    elif not (found.prefill.certain and found.decode.certain):
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the time of a phase is no larger than its error, so nothing can be said about it.",
                run=result.name,
            ),
            tr("Measure more requests (--requests), or longer answers (--output-tokens)."),
            tr("The time of a phase is no larger than its error"),
        )
    if result.topology is Topology.DISAGG:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: with prefill and decode on separate GPUs, the difference also contains the KV hand-off.",
                run=result.name,
            ),
            tr(
                "Mode phase-split is for one plain instance; for this deployment, the stages of mode serve separate the phases."
            ),
            tr("The difference also contains the KV hand-off"),
        )


OF_RESULT: Final = (_phases,)
