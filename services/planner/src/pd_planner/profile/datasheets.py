"""Peak performance of boards from NVIDIA's data sheets: dense 16-bit tensor operations and memory bandwidth."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of board.

    Attributes:
        name: as NVML has it, as far as it tells the kind.
        flops: 16-bit operations a second without sparsity.
        bandwidth: bytes of memory a second; `memory_bytes` is its size.
        limit_w: the default power limit.
        link: bytes per second to another board of the same host and in one direction, over NVLink or PCIe.
    """

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float
    limit_w: float
    link: float


BOARDS: Final = (
    Board("NVIDIA H200", 989e12, 4.8e12, 141e9, 700, 450e9),
    Board("NVIDIA H100 80GB HBM3", 989e12, 3.35e12, 80e9, 700, 450e9),
    Board("NVIDIA H100 NVL", 835e12, 3.9e12, 94e9, 400, 300e9),
    Board("NVIDIA H100 PCIe", 756e12, 2.0e12, 80e9, 350, 64e9),
    Board("NVIDIA H20", 148e12, 4.0e12, 96e9, 500, 450e9),
    Board("NVIDIA B200", 2250e12, 8.0e12, 180e9, 1000, 900e9),
    Board("NVIDIA A100-SXM4-80GB", 312e12, 2.039e12, 80e9, 400, 300e9),
    Board("NVIDIA A100-SXM4-40GB", 312e12, 1.555e12, 40e9, 400, 300e9),
    Board("NVIDIA L40S", 362e12, 0.864e12, 48e9, 350, 32e9),
    Board("NVIDIA L20", 119.5e12, 0.864e12, 48e9, 275, 32e9),
    Board("NVIDIA L4", 121e12, 0.3e12, 24e9, 72, 32e9),
)


def board_of(name: str) -> Board | None:
    """The board of a name: NVML's name, or a prefix of it (the first match); None if it is unknown."""
    wanted = _plain(name)
    if not wanted:
        return None
    exact = [board for board in BOARDS if wanted.startswith(_plain(board.name))]
    begun = (board for board in BOARDS if _plain(board.name).startswith((wanted, f"nvidia{wanted}")))
    return max(exact, key=lambda board: len(board.name)) if exact else next(begun, None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
