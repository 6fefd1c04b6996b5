"""Rounds at an interval, for loops that judge others by how long they were silent."""

import asyncio


class Pace:
    """Says when the next round is due, and whether it may judge.

    A process that was stopped, or got no CPU, has not read what came meanwhile: everybody seems to have been silent. A round that comes
    too late by more than an interval therefore judges nobody; the next one does, even if it is late too.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._late = False

    async def on_time(self) -> bool:
        """Wait for the next round; false if that round should judge no engine."""
        clock = asyncio.get_running_loop().time
        due = clock() + self.interval_s
        await asyncio.sleep(self.interval_s)
        self._late = not self._late and clock() - due > self.interval_s
        return not self._late
