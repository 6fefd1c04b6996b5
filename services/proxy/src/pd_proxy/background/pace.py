"""A fixed interval for loops that judge engines or processes by how long they were silent."""

import asyncio


class Pace:
    """Says when the next round is due, and whether it may judge.

    If this process was stopped or got no CPU, it has not read what arrived meanwhile, and all others seem to have been silent.
    A round that is late by more than one interval therefore judges nothing; the next one does, even if it is late too.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._late = False

    async def on_time(self) -> bool:
        """Wait for the next round; False if that round must not judge."""
        clock = asyncio.get_running_loop().time
        due = clock() + self.interval_s
        await asyncio.sleep(self.interval_s)
        self._late = not self._late and clock() - due > self.interval_s
        return not self._late
