"""Boards whose readings failed a check: what is wrong, in the check's own numbers, and what to do."""

from collections.abc import Iterable, Sequence
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.energy.checks import Check, Fault
from pd_analysis.energy.joules import GpuEnergy
from pd_analysis.words.formatting import listed, number
from pd_analysis.words.language import mark, tr

_MEASURE_AGAIN: Final = mark("See the monitor's log, and measure again once the driver's readings are right.")
# What is wrong with a board, what to do, and the same without numbers.
_WORDS: Final = {
    Check.UNREAD: (
        mark("GPU {index} could not be read for {value} s of the measured window"),
        mark(
            "See the monitor's log. Let the recording begin before the load and end after it; if it ran on another host, set both clocks by NTP."
        ),
        mark("GPUs could not be read for all of the measured window, so energy is unknown"),
    ),
    Check.IMPOSSIBLE: (
        mark("GPU {index} reported {value} W, which is impossible (it draws more than 0 and at most {bound} W)"),
        _MEASURE_AGAIN,
        mark("GPUs reported an impossible power, so energy is unknown"),
    ),
    Check.JUMP: (
        mark("the energy counter of GPU {index} jumped by {value} J in {bound} s"),
        _MEASURE_AGAIN,
        mark("The energy counter of a GPU jumped, so energy is unknown"),
    ),
    Check.STILL: (
        mark("the energy counter of GPU {index} did not move for {value} s"),
        _MEASURE_AGAIN,
        mark("The energy counter of a GPU did not move, so energy is unknown"),
    ),
    Check.STUCK: (
        mark("GPU {index} reported {bound} W without any change during {value} s of work, and has no energy counter"),
        _MEASURE_AGAIN,
        mark("GPUs at work reported a power that did not change, so energy is unknown"),
    ),
    Check.IDLE: (
        mark(
            "GPU {index} was idle for all {value} s of the measured window, though the engines of its role answered requests"
        ),
        mark(
            "The readings may be those of other GPUs: let the monitor run where the engines do, and tell it each role's GPUs."
        ),
        mark("GPUs were idle while their engines answered requests, so energy is unknown"),
    ),
    Check.DISAGREE: (
        mark("the energy counter of GPU {index} says {value} J where its power says {bound} J"),
        mark("One of the two is wrong, and it is not known which: look at the power timeline, and measure again."),
        mark("Energy counter and power of a GPU disagree, so energy is unknown"),
    ),
}


def unbelieved(name: str, gpus: Sequence[GpuEnergy]) -> Iterable[Doubt]:
    """One doubt for each kind of fault, with the boards that have it."""
    for check, (_, remedy, general) in _WORDS.items():
        found = [_said(gpu, fault) for gpu in gpus for fault in gpu.faults if fault.check is check]
        if found:
            what = tr("{run}: {faults}, so energy is unknown.", run=name, faults=listed(found))
            yield Doubt(Level.CARE, what, tr(remedy), tr(general))


def _said(gpu: GpuEnergy, fault: Fault) -> str:
    words, _, _ = _WORDS[fault.check]
    return tr(words, index=gpu.index, value=number(fault.value), bound=number(fault.bound))
