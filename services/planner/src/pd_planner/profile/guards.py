"""Physical bounds: no step is faster than the board's data sheet, and a step at less than half of its speed gets a remark."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pd_analysis.words.language import mark, tr
from pd_planner.profile.datasheets import board_of
from pd_simulator.profile import Profile

_SLOW: Final = 0.5


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark about a number that is impossible (`impossible`), or far from the board's peak."""

    sentence: str
    impossible: bool


def remarks(profile: Profile) -> list[Remark]:
    """Remarks about a profile's numbers; none if the board's data sheet is unknown."""
    board = board_of(profile.board)
    if board is None:
        return []
    memory = profile.memory
    operations_ms = memory.operations_per_token / board.flops * 1e3
    # Of the embeddings, which can be a fifth of a small model, a step reads a row per token.
    weights_ms = 0.8 * memory.weights_bytes / board.bandwidth * 1e3
    context_ms = memory.kv_bytes_per_token / board.bandwidth * 1e3
    bounds = []
    if operations_ms:
        bounds.append(("prefill.per_token_ms", profile.prefill.per_token_ms, operations_ms, mark("compute"), 1e6, "ns"))
    for name, decode in (("decode", profile.decode), ("combined", profile.combined)):
        if decode is not None:
            bounds += [
                (f"{name}.base_ms", decode.base_ms, weights_ms, mark("memory"), 1.0, "ms"),
                (f"{name}.per_context_token_ms", decode.per_context_token_ms, context_ms, mark("memory"), 1e6, "ns"),
            ]
    return list(_told(profile.board, bounds))


def _told(name: str, bounds: list[tuple[str, float, float, str, float, str]]) -> Iterator[Remark]:
    for number, value, least, what, scale, unit in bounds:
        told = tr(
            "{number}: {value} {unit}, and {board}'s {part} needs {least} {unit} at full speed",
            number=number,
            value=f"{value * scale:.3g}",
            least=f"{least * scale:.3g}",
            unit=unit,
            board=name,
            part=tr(what),
        )
        if value < least:
            yield Remark(tr("{finding}: no board is faster than its data sheet", finding=told), impossible=True)
        elif least < _SLOW * value:
            share = f"{least / value:.0%}"
            yield Remark(tr("{finding}: that is {share} of the speed", finding=told, share=share), impossible=False)
