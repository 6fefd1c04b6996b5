"""What can go wrong on purpose. Everything that misbehaves is decided here; the rest of the simulator is well-behaved."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Switches, all off by default.

    Attributes:
        corrupt_kv: the KV that leaves this engine has one bit flipped, as a broken link or a wrong copy would leave it.
    """

    corrupt_kv: bool = False

    def outgoing_kv(self, entries: bytes) -> bytes:
        """The entries as they really leave."""
        if not self.corrupt_kv or not entries:
            return entries
        return bytes([entries[0] ^ 1]) + entries[1:]
