"""Engines that get their roles by load: in cells of which size they are planned, and what a cell carries.

Each request is decided on by the proxy's own code, which takes a hundred times as long as a request of a deployment with fixed roles. So only the
size that answers the question is simulated.
"""

from math import ceil
from typing import Final

from pd_analysis.words.language import Sentence
from pd_contracts.names import Connector
from pd_planner.des.compiled import COMPILED
from pd_planner.search.candidates import Candidate
from pd_planner.search.capacity import Care, capacity
from pd_planner.search.question import Question

_CARE: Final = Care(30.0, 0.02)
_ROUGH: Final = Care(15.0, 0.1)
_FEWEST: Final = 2  # a single engine has nobody to share roles with


def unable(question: Question) -> Sentence | None:
    """Why adaptive roles cannot be planned; None if they can."""
    setting = question.setting
    if not {"ttft", "tpot"} <= set(setting.limits.milliseconds):
        return Sentence("adaptive roles, because they need limits of TTFT and TPOT")
    if setting.prefix_caching and setting.traffic.shared:
        return Sentence("adaptive roles, because they are simulated without prefix caches")
    if not COMPILED:
        return Sentence("adaptive roles, because simulating them without numba takes minutes")
    return None


def planned(question: Question, room: int, per_engine: float) -> tuple[Candidate, float] | None:
    """A cell of the size that the question asks for, and requests per second that it carries; None if there are too few engines, or no P2pConnector.

    `room` is how many engines there may be at most; `per_engine` is what engines with fixed roles carry at best, where the search begins.
    """
    largest = min(question.cell, room)
    if largest < _FEWEST or Connector.P2P not in question.connectors:
        return None
    setting = question.setting
    whole = _cell(question, largest)
    carries = capacity(setting, whole, per_engine * largest or None, _ROUGH)
    if not carries:
        return whole, 0.0
    cells, size = _split(question, largest, room, carries / largest)
    cell = _cell(question, size)
    carries = capacity(setting, cell, carries * size / largest, _CARE)
    while size < largest and _is_short(question, cells * carries):  # small cells carry less per engine
        size += 1
        cell = _cell(question, size)
        carries = capacity(setting, cell, carries * size / (size - 1), _CARE)
    return cell, carries


def _split(question: Question, largest: int, room: int, per_engine: float) -> tuple[int, int]:
    """How many cells of how many engines: as few as the rate needs, or as many as there may be."""
    engines = room
    if question.rate is not None:
        engines = max(_FEWEST, ceil(question.rate / ((1 - question.headroom) * per_engine) - 1e-9))
    cells = ceil(engines / largest)
    return cells, engines // cells if question.rate is None else ceil(engines / cells)


def _is_short(question: Question, carries: float) -> bool:
    return question.rate is not None and carries * (1 - question.headroom) < question.rate


def _cell(question: Question, engines: int) -> Candidate:
    return Candidate(0, engines, Connector.P2P, question.tensor_parallel, question.p2p, adaptive=True)
