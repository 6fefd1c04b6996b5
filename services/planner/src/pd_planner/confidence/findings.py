"""The findings: the ranked choices, the draws, the verdict, and where it flips."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pd_analysis.words.language import tr
from pd_planner.confidence.draws import Drawn, draw
from pd_planner.confidence.verdict import Verdict, verdict
from pd_planner.search.breakeven import Curve, Point, break_even, over_rates
from pd_planner.search.plan import answer
from pd_planner.search.question import Answer, Choice, Question

_SHORTLIST = 4  # choices that are drawn: the best plain one, the best others


@dataclass(frozen=True)
class Findings:
    """The answer to a question. `flips` and `curves` are empty where there is nothing to compare, or where they were not asked for."""

    question: Question
    answer: Answer
    drawn: list[Drawn]
    verdict: Verdict
    flips: list[Point] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    @property
    def best(self) -> Drawn:
        """The first choice of the answer, with its draws."""
        return self.drawn[0]

    @property
    def has_front(self) -> bool:
        """Whether there is a Pareto front: deployments of different sizes serve the same load, and several are beaten by no other."""
        return self.question.rate is not None and len(self.answer.front) > 1

    def drawn_of(self, choice: Choice) -> Drawn | None:
        """A choice's draws, if it was drawn."""
        return next((each for each in self.drawn if each.choice is choice), None)


def find(question: Question, draws: int, *, maps: bool, say: Callable[[str], None] = lambda _: None) -> Findings:
    """Search, draw, and compare.

    Raises:
        NoPlanError: if nothing answers the question.
    """
    found = answer(question, say)
    chosen = _shortlist(found)
    say(tr("{count} of them {draws} times, with other numbers and arrivals", count=len(chosen), draws=draws))
    drawn = draw(question.setting, chosen, question.objective, draws)
    judged = verdict(drawn, question.objective)
    if not maps or judged.plain is None or judged.apart is None:
        return Findings(question, found, drawn, judged)
    say(tr("break-even over prompt lengths, answer lengths and rates"))
    flips = break_even(question.setting, judged.apart.choice.fleet.candidate)
    curves = over_rates(question.setting, [judged.plain.choice.fleet, judged.apart.choice.fleet])
    return Findings(question, found, drawn, judged, flips, curves)


def _shortlist(found: Answer) -> list[Choice]:
    """The answer first; then the best of the other kind, and what comes next."""
    wanted = [found.best, *filter(None, (found.best_of(plain=True), found.best_of(plain=False)))]
    able = [choice for choice in found.choices if choice.fleet.carries > 0]
    chosen: list[Choice] = []
    for choice in (*wanted, *able):
        if choice not in chosen and len(chosen) < _SHORTLIST:
            chosen.append(choice)
    return chosen
