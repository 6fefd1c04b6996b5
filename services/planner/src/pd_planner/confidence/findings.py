"""The findings: the ranked choices, the draws, the verdict, and where it flips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pd_analysis.words.language import tr
from pd_planner.confidence.draws import Drawn, adaptive_draws, draw
from pd_planner.confidence.verdict import Comparison, Verdict, first, roles, verdict
from pd_planner.search.breakeven import Curve, Point, break_even, over_rates
from pd_planner.search.no_plan import NoPlanError, closest
from pd_planner.search.plan import answer, resized
from pd_planner.search.question import Answer, Choice, Question, believed, rank

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
    def roles(self) -> Comparison | None:
        """Adaptive roles against the best choice with fixed ones; None if there are none."""
        return roles(self.drawn, self.question)

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
    _tell(chosen, draws, say)
    drawn = _sized(draw(question.setting, chosen, question.objective, draws), question)
    more = [choice for choice in found.fixed if choice not in chosen and not choice.refusal]
    if more and all(each.choice.refusal for each in drawn):  # in the median they are larger, and more than there may be
        _tell(more[:_SHORTLIST], draws, say)
        drawn += _sized(draw(question.setting, more[:_SHORTLIST], question.objective, draws), question)
    if all(each.choice.refusal for each in drawn):
        raise NoPlanError(closest(question, [each.choice for each in drawn]))
    drawn = settled(drawn, question)
    found = _reordered(found, drawn)
    judged = verdict(drawn, question)
    if not maps or judged.plain is None or judged.apart is None:
        return Findings(question, found, drawn, judged)
    say(tr("break-even over prompt lengths, answer lengths and rates"))
    flips = break_even(question.setting, judged.apart.choice.fleet.candidate)
    fleets = [judged.plain.choice.fleet, judged.apart.choice.fleet]
    if found.adaptive is not None:
        fleets.append(found.adaptive.fleet)
    curves = over_rates(question.setting, fleets)
    return Findings(question, found, drawn, judged, flips, curves)


def settled(drawn: Sequence[Drawn], question: Question) -> list[Drawn]:
    """What was drawn in the order that the draws give: the answer, the best of each kind, and the others as before.

    So the answer is never one that most draws contradict.
    """
    fixed = [each for each in drawn if not each.choice.adaptive]
    kinds = [[each for each in fixed if each.choice.plain is plain] for plain in (True, False)]
    bests = [best for kind in kinds if (best := first(kind, question)) is not None]
    bests.sort(key=fixed.index)
    best = first(bests, question)
    able = [one for one in (best, *(each for each in drawn if each.choice.adaptive)) if one is not None]
    able.sort(key=list(drawn).index)
    leading = [first(able, question), best, *bests, *drawn]
    return list({id(one): one for one in leading if one is not None}.values())


def _reordered(found: Answer, drawn: Sequence[Drawn]) -> Answer:
    """All choices, those that were drawn with their fleets of the median: the answer first, then the best of the other kind unless it is refused."""
    fixed = [each.choice for each in drawn if not each.choice.adaptive]
    other = [choice for choice in fixed if choice.plain is not fixed[0].plain and not choice.refusal][:1]
    new = {each.choice.fleet.candidate: each.choice for each in drawn}
    ranked = [new.get(choice.fleet.candidate, choice) for choice in found.choices]
    ranked.sort(key=lambda choice: rank(found.question, choice, believed(found.question, choice)))
    leading = [drawn[0].choice, *fixed[:1], *other, *ranked]
    return replace(found, choices=list({id(choice): choice for choice in leading}.values()))


def _sized(drawn: Sequence[Drawn], question: Question) -> list[Drawn]:
    """With fleets of the size that the median over the draws asks for."""
    return [replace(each, choice=resized(question, each.choice, each.band.middle)) for each in drawn]


def _tell(chosen: Sequence[Choice], draws: int, say: Callable[[str], None]) -> None:
    fixed = [choice for choice in chosen if not choice.adaptive]
    say(tr("{count} of them {draws} times, with other numbers and arrivals", count=len(fixed), draws=draws))
    for choice in chosen:
        if choice.adaptive:
            say(tr("{deployment} {draws} times", deployment=choice.fleet.label, draws=adaptive_draws(draws)))


def _shortlist(found: Answer) -> list[Choice]:
    """The answer first; then the best of the other kind, the one that would be best if it had been measured, and what comes next; and adaptive roles."""
    kinds = (found.best_of(plain=True), found.best_of(plain=False), found.most_promising)
    able = [choice for choice in found.fixed if choice.fleet.carries > 0]
    chosen: list[Choice] = []
    for choice in (*found.fixed[:1], *filter(None, kinds), *able):
        if choice not in chosen and len(chosen) < _SHORTLIST:
            chosen.append(choice)
    if found.adaptive is None:
        return chosen
    return [found.adaptive, *chosen] if found.best.adaptive else [*chosen, found.adaptive]
