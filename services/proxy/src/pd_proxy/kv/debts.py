"""Debts: KV that prefill pushed and that decode may not have consumed. Pure.

A decode that fails or stalls before its first byte may still hold the request's KV, may have consumed it, or may be waiting for it.
The engine does not tell which, and asking for KV that is gone makes a P2pNccl decode stall forever. But KV is keyed by the request's
id alone, so the KV of a short prompt can be pushed under the same id: it replaces what is there, wakes a request that waits for it,
and is consumed by decoding one token. `repay` does that, once decode serves again.
"""

from dataclasses import dataclass
from typing import Final

from pd_proxy.protocol.body import Fields

# Debts are small, but an engine that stalls for a day must not fill the memory.
CAPACITY: Final = 4096
# How many attempts to repay a debt, at an engine that serves other requests, before it is given up.
TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Debt:
    """One request's KV at one decode.

    Attributes:
        address: the KV address that the KV was sent to; it may belong to another process by now.
        path: the endpoint, which determines how engines name the KV.
        fields: a request body with as many sequences, each with a short prompt.
        asked: decode got the request, so it may be waiting for this KV.
    """

    address: str
    path: str
    engine_id: str
    fields: Fields
    tries: int = 0
    asked: bool = True


class Debts:
    """All debts, by KV address and id."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._owed: dict[str, dict[str, Debt]] = {}

    def add(self, debt: Debt) -> bool:
        """Remember a debt; returns False if it has been tried too often or there is no room."""
        owed = self._owed.setdefault(debt.address, {})
        if debt.tries >= TRIES or (len(owed) >= self._capacity and debt.engine_id not in owed):
            return False
        owed[debt.engine_id] = debt
        return True

    def addresses(self) -> set[str]:
        return {address for address, owed in self._owed.items() if owed}

    def at(self, address: str) -> list[Debt]:
        """The debts at a KV address, the oldest first."""
        return list(self._owed.get(address, {}).values())

    def take(self, debt: Debt) -> None:
        """Remove a debt in order to repay it; it is added again if that fails."""
        self._owed.get(debt.address, {}).pop(debt.engine_id, None)

    def later(self, debt: Debt) -> None:
        """Put a debt behind all others at its address."""
        owed = self._owed.get(debt.address, {})
        if debt.engine_id in owed:
            owed[debt.engine_id] = owed.pop(debt.engine_id)

    def forget(self, address: str) -> None:
        """Drop all debts at an address: its engine is gone, and so is the KV."""
        self._owed.pop(address, None)

    def __len__(self) -> int:
        return sum(map(len, self._owed.values()))
