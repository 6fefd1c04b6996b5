"""Which pairs have been shown to answer correctly. Pure; `canary` sends the requests."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from pd_contracts.names import Role
from pd_proxy.engines.pairing import misfit
from pd_proxy.engines.registry import Instance, State


class Judgment(NamedTuple):
    """What is known of a pair: whether it answers correctly, the reason if not, and its KV transport (empty: unknown)."""

    right: bool
    reason: str = ""
    transport: str = ""


class Trust:
    """Verdicts, keyed by the processes of both engines, so that a restarted engine is examined again."""

    def __init__(self, *, needed: bool) -> None:
        """`needed`: a pair without a good verdict gets no requests."""
        self._needed = needed
        self._verdicts: dict[tuple[int, int], Judgment] = {}
        self.version = 0  # changes with the verdicts

    def __call__(self, prefill: Instance, decode: Instance) -> bool:
        """Whether clients may get answers from the pair."""
        said = self._verdicts.get((prefill.incarnation, decode.incarnation))
        return not self._needed if said is None else said.right

    def judged(self, prefill: Instance, decode: Instance) -> bool:
        return (prefill.incarnation, decode.incarnation) in self._verdicts

    def judge(self, prefill: Instance, decode: Instance, judgment: Judgment) -> None:
        """Remember a verdict in place of the previous one."""
        self._verdicts[prefill.incarnation, decode.incarnation] = judgment
        self.version += 1

    def verdicts(self) -> tuple[tuple[int, int, Judgment], ...]:
        """All verdicts: prefill's and decode's incarnation, and what is known of the pair."""
        return tuple((*pair, said) for pair, said in self._verdicts.items())

    def adopt(self, verdicts: Iterable[tuple[int, int, Judgment]]) -> None:
        """Replace all verdicts by these."""
        self._verdicts = {(prefill, decode): said for prefill, decode, said in verdicts}
        self.version += 1

    def says(self, prefill: Instance, decode: Instance) -> tuple[str, str]:
        """The verdict as one word, and its reason."""
        if not self.judged(prefill, decode):
            return "unknown" if self._needed else "off", ""
        said = self._verdicts[prefill.incarnation, decode.incarnation]
        return "passed" if said.right else "wrong", said.reason

    def transport(self, prefill: Instance, decode: Instance) -> str:
        """The transport of the canary's KV, if known."""
        said = self._verdicts.get((prefill.incarnation, decode.incarnation))
        return "" if said is None else said.transport

    def shown(self, view: Sequence[Instance]) -> list[Instance]:
        """The instances as clients see them: a healthy one that may be in no pair is shown as joining, with the reason."""
        ready = [i for i in view if i.state is State.READY]
        return [self._as_seen(i, ready) if i in ready and i.role is not Role.COMBINED else i for i in view]

    def _as_seen(self, instance: Instance, ready: Sequence[Instance]) -> Instance:
        one = instance.role is Role.PREFILL
        others = [i for i in ready if i.role is (Role.DECODE if one else Role.PREFILL)]
        mine = [(instance, other) if one else (other, instance) for other in others]
        differences = [misfit(*pair) for pair in mine]
        mine = [pair for pair, difference in zip(mine, differences, strict=True) if not difference]
        if any(self(*pair) for pair in mine) or not (self._needed or any(differences)):
            return instance
        said = [self.says(*pair)[1] for pair in mine if self.judged(*pair)]
        reason = (
            f"canary: {said[0]}" if said else next(filter(None, differences), "waits for the canary of a pair with it")
        )
        return msgspec.structs.replace(instance, state=State.JOINING, reason=reason)

    def forget(self, gone: Instance) -> None:
        """Drop all verdicts of a process that is gone or must be examined again."""
        self._verdicts = {key: said for key, said in self._verdicts.items() if gone.incarnation not in key}
        self.version += 1
