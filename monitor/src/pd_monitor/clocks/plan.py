"""What would be changed, and why it must not be: decisions over the state of the boards, without any call to them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pd_contracts.names import Role

# NVML_GPU_VIRTUALIZATION_MODE: bare metal and passed-through boards are whole; the others share one with strangers.
WHOLE_BOARDS: Final = frozenset({None, 0, 1})


class ClockError(Exception):
    """Clocks cannot be set or restored; the message is a sentence for the operator, `status` the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a role's GPUs; None leaves it as it is."""

    lock_mhz: int | None = None
    cap_w: float | None = None


@dataclass(frozen=True, slots=True)
class BoardState:
    """A board before any change. None: the board does not report it."""

    index: int
    uuid: str
    name: str = ""
    clocks_mhz: tuple[int, int] | None = None
    cap_mw: int | None = None
    cap_range_mw: tuple[int, int] | None = None
    mig: bool = False
    virtualization: int | None = None
    processes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One board and what it is to become."""

    board: BoardState
    role: Role
    wish: Wish


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps, and the sentences that forbid them."""

    steps: tuple[Step, ...]
    refusals: tuple[str, ...]


def make_plan(
    boards: Sequence[BoardState], roles: Mapping[int, Role], wishes: Mapping[Role, Wish], ours: Collection[int]
) -> Plan:
    """`ours` are the processes that may use the boards: the engines, with their children."""
    steps = tuple(
        Step(board, roles[board.index], wishes[roles[board.index]])
        for board in boards
        if roles.get(board.index) in wishes
    )
    refusals = [f"no GPU has the role {role}" for role in wishes if role not in {step.role for step in steps}]
    for step in steps:
        refusals += _refusals(step, ours)
    return Plan(steps, tuple(refusals or ([] if steps else ["nothing is asked for"])))


def _refusals(step: Step, ours: Collection[int]) -> list[str]:
    board, wish, found = step.board, step.wish, []
    if board.mig:
        found.append("MIG is on, and clocks and power belong to the whole board")
    if board.virtualization not in WHOLE_BOARDS:
        found.append(f"it is a shared virtual GPU (mode {board.virtualization})")
    if strangers := sorted(set(board.processes) - set(ours)):
        found.append(f"process {strangers[0]} uses it and is not named in CLOCKS_ALLOW_PIDS")
    if wish.lock_mhz and board.clocks_mhz and not board.clocks_mhz[0] <= wish.lock_mhz <= board.clocks_mhz[1]:
        found.append(f"{wish.lock_mhz} MHz is outside of its {board.clocks_mhz[0]} to {board.clocks_mhz[1]} MHz")
    if wish.cap_w:
        found += _cap_refusals(board, wish.cap_w)
    return [f"GPU {board.index}: {reason}" for reason in found]


def _cap_refusals(board: BoardState, cap_w: float) -> list[str]:
    if board.cap_mw is None:
        return ["it does not report its power limit, so the limit could not be restored"]
    if board.cap_range_mw and not board.cap_range_mw[0] <= cap_w * 1e3 <= board.cap_range_mw[1]:
        low, high = (limit / 1e3 for limit in board.cap_range_mw)
        return [f"{cap_w:g} W is outside of its {low:g} to {high:g} W"]
    return []


def describe(step: Step) -> str:
    board, wish = step.board, step.wish
    parts = []
    if wish.lock_mhz:
        parts.append(f"lock the graphics clock to {wish.lock_mhz} MHz (restored by a reset)")
    if wish.cap_w:
        before = "an unknown limit" if board.cap_mw is None else f"{board.cap_mw / 1e3:g} W"
        parts.append(f"limit the power to {wish.cap_w:g} W (given back: {before})")
    return f"GPU {board.index} {board.uuid} {step.role}: {'; '.join(parts)}"
