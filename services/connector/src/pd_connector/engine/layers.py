"""Tells how far a step that completes a prompt's KV has come, and when its last layer has written, which is some time before the step ends.

KV that is copied from then on reaches decode sooner, and the step's tokens come later by the time of the copies: the GPU does both. So this
is done only where a client waits for decode's token and not for prefill's.
"""

from collections.abc import Iterable

from pd_connector.core.forecast import milestones
from pd_connector.core.orders import WITH_STEP, Computed, Order


class Layers:
    """The layers of a model, and which of them have written the KV of the current step. A step is known by its list of orders.

    Attributes:
        milestone: the share of the layers that have written, and the next one at which to look, if the last call of `wrote` reached such a share.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Without names, no layer is the last."""
        self._names = frozenset(names)
        self._begun: list[Order] | None = None
        self._step: list[Order] | None = None
        self._missing: set[str] = set()
        self._early = False
        self._written = False
        self._milestones = milestones(len(self._names))
        self.milestone: tuple[float, float] | None = None

    def begin(self, orders: list[Order]) -> None:
        """All orders of this step that do not need its results are carried out."""
        self._begun = orders

    def wrote(self, name: str, orders: list[Order]) -> bool:
        """Note that a layer has written its KV. True once in a step, if that was the last layer and somebody waits for KV of this step."""
        if self._step is not orders:
            self._start(orders)
        self.milestone = None
        if name not in self._missing:
            return False
        self._missing.discard(name)
        self._written = self._early and not self._missing
        self.milestone = self._milestones.get(len(self._names) - len(self._missing))
        return self._written

    def _start(self, orders: list[Order]) -> None:
        self._step, self._written = orders, False
        completed = [order for order in orders if isinstance(order, Computed) and order.last]
        self._early = any(order.early for order in completed)
        # vLLM may carry out orders only after the last layer; KV is not sent before the order that says where it goes.
        told = self._begun is orders or all(isinstance(order, WITH_STEP) for order in orders)
        self._missing = set(self._names) if completed and told else set()

    def end(self, orders: list[Order]) -> bool:
        """The step ends. True if `wrote` was in this step."""
        written = self._step is orders and self._written
        self._begun = self._step = None
        self._missing, self._written = set(), False
        return written
