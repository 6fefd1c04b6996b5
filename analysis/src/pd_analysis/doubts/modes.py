"""What can be wrong with the modes that measure requests in groups: prompts from a cache, differences that are none."""

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
                "{run}: the second part's prompts came from a prefix cache, so that the difference of both parts hides prefill.",
                run=result.name,
            ),
            tr("Start the server without prefix caching (vLLM: --no-enable-prefix-caching) and measure again."),
            tr("Prompts came from a prefix cache"),
        )
    elif not (found.prefill.certain and found.decode.certain):
        yield Doubt(
            Level.CARE,
            tr("{run}: a phase takes no more time than its error, so nothing is known of it.", run=result.name),
            tr("Measure more requests (--requests), or longer answers (--output-tokens)."),
            tr("A phase takes no more time than its error"),
        )
    if result.topology is Topology.DISAGG:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: with prefill and decode apart, the difference also has the hand-off of KV in it.",
                run=result.name,
            ),
            tr(
                "Mode phase-split is for one plain instance; the stages of mode serve tell the phases of this one apart."
            ),
            tr("The difference also has the hand-off of KV in it"),
        )


OF_RESULT: Final = (_phases,)
