"""The findings: the ranked choices, the draws, the verdict, and where it flips."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pd_analysis.words.language import tr
from pd_planner.confidence.draws import Drawn, adaptive_draws, draw
from pd_planner.confidence.verdict import Roles, Verdict, roles, verdict
from pd_planner.search.breakeven import Curve, Point, break_even, over_rates
from pd_planner.search.plan import answer
from pd_planner.search.question import Answer, Choice, Question

_SHORTLIST = 4  # choices with fixed roles that are drawn: the best plain one, the best others


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
    def roles(self) -> Roles | None:
        """Adaptive roles against the best choice with fixed ones; None if there are none."""
        best = next(iter(self.answer.fixed), None)
        return roles(self.drawn, best, self.question.objective)

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
    fixed = [choice for choice in chosen if not choice.adaptive]
    say(tr("{count} of them {draws} times, with other numbers and arrivals", count=len(fixed), draws=draws))
    if found.adaptive is not None:
        say(tr("{deployment} {draws} times", deployment=found.adaptive.fleet.label, draws=adaptive_draws(draws)))
    drawn = draw(question.setting, chosen, question.objective, draws)
    judged = verdict(drawn, question.objective)
    if not maps or judged.plain is None or judged.apart is None:
        return Findings(question, found, drawn, judged)
    say(tr("break-even over prompt lengths, answer lengths and rates"))
    flips = break_even(question.setting, judged.apart.choice.fleet.candidate)
    fleets = [judged.plain.choice.fleet, judged.apart.choice.fleet]
    if found.adaptive is not None:
        fleets.append(found.adaptive.fleet)
    curves = over_rates(question.setting, fleets)
    return Findings(question, found, drawn, judged, flips, curves)


def _shortlist(found: Answer) -> list[Choice]:
    """The answer first; then the best of the other kind, and what comes next; and adaptive roles."""
    wanted = [*found.fixed[:1], *filter(None, (found.best_of(plain=True), found.best_of(plain=False)))]
    able = [choice for choice in found.fixed if choice.fleet.carries > 0]
    chosen: list[Choice] = []
    for choice in (*wanted, *able):
        if choice not in chosen and len(chosen) < _SHORTLIST:
            chosen.append(choice)
    if found.adaptive is None:
        return chosen
    return [found.adaptive, *chosen] if found.best.adaptive else [*chosen, found.adaptive]
