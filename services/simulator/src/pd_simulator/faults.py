"""Fault injection: which faults are switched on. The other modules of the simulator only ask.

`SIM_FAULTS` sets the faults of the start and `POST /sim/faults` those from now on, both as a JSON object of `Faults`' fields;
what it does not name is off.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from pd_contracts.libraries import plain


class FaultsError(ValueError):
    """A description of faults that cannot be read."""


class Faults(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Switches, all off by default; shared by all parts of an engine and changed in place.

    Attributes:
        corrupt_kv: the KV that leaves this engine has one bit flipped, as a broken link or a wrong copy would leave it.
        drop_kv: the KV that arrives is acknowledged and lost: its request waits forever, with P2pConnector until the prompt is computed instead.
        out_of_memory: there is no room for the KV that arrives. P2pConnector computes the prompt instead; vLLM 0.23's P2pNcclConnector
            acknowledges the KV, stores nothing and answers wrongly.
        slow_kv_s: seconds that pass before KV that arrives is taken. The sender is blocked meanwhile, except P2pConnector's.
        refuse: the engine takes no HTTP connection and answers on none.
        hang: HTTP requests, health checks too, are taken and not answered; pings go on.
        mute: no pings; everything else goes on.
        status: requests for tokens get this status.
        swallow: requests for tokens are taken and never run; their KV comes and stays.
        stall: no step begins while a sequence is before, or after, its first token, so all sequences stall; health checks and pings go on.
        die_mid_stream: a stream's connection is reset after the first token; that of an answer in one piece, instead of the answer.
        die_after_tokens: the process is killed (SIGKILL) once it has written this number of tokens in all, whatever still runs.
    """

    corrupt_kv: bool = False
    drop_kv: bool = False
    out_of_memory: bool = False
    slow_kv_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    refuse: bool = False
    hang: bool = False
    mute: bool = False
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    swallow: bool = False
    stall: Literal["before_first_token", "after_first_token"] | None = None
    die_mid_stream: bool = False
    die_after_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def become(self, other: "Faults") -> None:
        """Take over the switches of `other`."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(other, name))

    def outgoing_kv(self, entries: bytes) -> bytes:
        """The entries as they really leave."""
        if not self.corrupt_kv or not entries:
            return entries
        return bytes([entries[0] ^ 1]) + entries[1:]

    def stalls(self, generated: Iterable[int]) -> bool:
        """Whether a step may not begin; `generated` has the number of tokens that each of its sequences has written."""
        if self.stall is None:
            return False
        return any((count > 0) == (self.stall == "after_first_token") for count in generated)

    def kills(self, written: int) -> bool:
        """Whether the process ends now that its sequences have written `written` tokens in all."""
        return self.die_after_tokens is not None and written >= self.die_after_tokens


def read(text: bytes | str) -> Faults:
    """Read a JSON object.

    Raises:
        FaultsError: if it is not a set of faults, or names an unknown one.
    """
    try:
        return msgspec.json.decode(text, type=Faults)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FaultsError(str(plain(error))) from error
