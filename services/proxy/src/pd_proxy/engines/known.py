"""The choices among engines, which stay the same for many requests."""

from collections.abc import Sequence
from typing import TypeAlias

from pd_proxy.engines.pairing import Choices, Needs, choices
from pd_proxy.engines.registry import Instance
from pd_proxy.engines.trust import Trust

# What of a request decides which engines can serve it; models that no engine serves are not kept.
_Kind: TypeAlias = tuple[str | None, bool, bool, bool]


class KnownChoices:
    """Remembers the choices for each kind of request, until an engine or the verdict on a pair changes.

    With eight prefill and eight decode engines, to work them out takes about a fifth of the time that a request costs.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._verdicts = trust.version
        self._view: Sequence[Instance] = ()
        self._known: dict[_Kind, Choices] = {}
        self._models: frozenset[str] = frozenset()

    def serves(self, view: Sequence[Instance], model: str) -> bool:
        """Whether any engine, also one that is not ready, serves the model; `view` as in `of`."""
        self._look_at(view)
        return model in self._models

    def of(self, view: Sequence[Instance], needs: Needs) -> Choices:
        """As `choices`, for a view that is the same object as long as no engine changes."""
        self._look_at(view)
        kind = (needs.model, needs.combined_only is None, needs.told, needs.sequences == 1)
        found = self._known.get(kind)
        if found is None:
            found = self._known[kind] = choices(view, needs, self._trust)
        return found

    def _look_at(self, view: Sequence[Instance]) -> None:
        """Forget what was known of another view, or with other verdicts."""
        if view is not self._view or self._trust.version != self._verdicts:
            self._view, self._verdicts, self._known = view, self._trust.version, {}
            self._models = frozenset(name for instance in view for name in instance.models)
