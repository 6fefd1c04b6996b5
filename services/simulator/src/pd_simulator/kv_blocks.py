"""Blocks of KV: what an engine's room is given out in."""

from typing import Final

BLOCK_TOKENS: Final = 16  # vLLM's default


def blocks_of(tokens: int) -> int:
    """How many blocks the KV of so many tokens takes."""
    return -(-tokens // BLOCK_TOKENS)
