"""KV that prefill pushed, and that decode may or may not have used. Pure.

A decode that breaks off or stands still before its first byte may have the KV of the request still, may have used it up, or may
stand still for want of it. Nothing can be asked about that, and asking for KV that is gone makes a P2pNccl decode stand still for
ever. But KV is keyed by the request's id alone, so a short prompt's can be pushed under the same id: it takes the place of what
lies there, wakes whoever waits for it, and one token of decode then uses it up. `repay` does that, once decode serves again.
"""

from dataclasses import dataclass
from typing import Final

from pd_proxy.protocol.body import Fields

# Debts are small, but an engine that stands still for a day must not fill the memory either.
CAPACITY: Final = 4096
# A debt that could not be repaid to an engine that serves others is given up after so many attempts.
TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Debt:
    """One request's KV at one decode.

    Attributes:
        address: where the KV was sent, which may by now belong to another process.
        path: the endpoint, which decides how engines name the KV.
        fields: a body of as many sequences, with a short prompt each.
        asked: decode was asked for it, so it may be what a decode that stands still waits for.
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
        """Remember a debt; False if it has been tried too often or there is no room."""
        owed = self._owed.setdefault(debt.address, {})
        if debt.tries >= TRIES or (len(owed) >= self._capacity and debt.engine_id not in owed):
            return False
        owed[debt.engine_id] = debt
        return True

    def addresses(self) -> set[str]:
        return {address for address, owed in self._owed.items() if owed}

    def at(self, address: str) -> list[Debt]:
        """What is owed there, the oldest first."""
        return list(self._owed.get(address, {}).values())

    def take(self, debt: Debt) -> None:
        """Somebody repays it, and will add it again if that fails."""
        self._owed.get(debt.address, {}).pop(debt.engine_id, None)

    def later(self, debt: Debt) -> None:
        """Put a debt behind all others at its address."""
        owed = self._owed.get(debt.address, {})
        if debt.engine_id in owed:
            owed[debt.engine_id] = owed.pop(debt.engine_id)

    def forget(self, address: str) -> None:
        """There is no engine at this address any more, and its KV went with it."""
        self._owed.pop(address, None)

    def __len__(self) -> int:
        return sum(map(len, self._owed.values()))
