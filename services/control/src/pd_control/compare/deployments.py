"""The deployments that are compared: those of `--deployments`, or plain vLLM and every XpYd that fits. Pure."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from pd_contracts.deployment import with_manner
from pd_contracts.names import Connector, Role, Topology
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import label
from pd_control.settings import ControlSettings

_COMBINED: Final = re.compile(r"(\d*)(?:c|combined|plain)")
_DISAGG: Final = re.compile(r"(\d+)p(\d+)d")
_SHORT: Final = {
    "p2p": Connector.P2P,
    "p2pnccl": Connector.P2P_NCCL,
    "nixl": Connector.NIXL,
    "example": Connector.EXAMPLE,
}
# With many engines there are many ratios; these shares of prefill cover the range.
_SHARES: Final = (0.25, 0.5, 0.75)


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment: numbers of engines by role, and the connector if it is not the one of the settings.

    Attributes:
        manner: what sets combined engines apart from plain ones, as `ControlSettings.manner`.
    """

    prefill: int = 0
    decode: int = 0
    combined: int = 0
    connector: Connector | None = None
    manner: str = ""

    @property
    def topology(self) -> Topology:
        return Topology.COMBINED if self.combined else Topology.DISAGG

    @property
    def engines(self) -> int:
        return self.prefill + self.decode + self.combined

    @property
    def counts(self) -> dict[Role, int | None]:
        """Engines by role, as a plan takes them."""
        counted = {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.COMBINED: self.combined}
        return {role: count or None for role, count in counted.items()}

    @property
    def name(self) -> str:
        """Its folder: "2c", "2c-adaptive", "1p1d", "1p1d-nixl"."""
        if self.combined:
            return "-".join([f"{self.combined}c", *self.manner.lower().split()])
        shape = f"{self.prefill}p{self.decode}d"
        return shape if self.connector is None else f"{shape}-{_short(self.connector)}"

    @property
    def label(self) -> str:
        """Its name in tables: "2 combined", "2 combined adaptive", "disagg 1P1D", "disagg 1P1D nixl"."""
        if self.combined:
            return with_manner(label(self.topology, f"{self.combined} combined"), self.manner)
        named = label(self.topology, f"{self.prefill}P{self.decode}D")
        return named if self.connector is None else f"{named} {_short(self.connector)}"


def _short(connector: Connector) -> str:
    return next(short for short, known in reversed(_SHORT.items()) if known is connector)


def parse(text: str, engines: int, manner: str = "") -> list[Spec]:
    """Read a list such as "combined,1p1d,1p3d:nixl"; `combined` alone means all `engines`. Combined engines have this manner.

    Raises:
        PlanError: if an entry is not a deployment, needs more engines than fit, or is there twice.
    """
    specs = [_parse_one(entry.strip(), engines, manner) for entry in text.split(",") if entry.strip()]
    if not specs:
        msg = "--deployments is empty: name some, for example combined,1p1d"
        raise PlanError(msg)
    for spec in specs:
        if spec.engines > engines:
            msg = f"{spec.name} needs {spec.engines} engines, and the GPUs are enough for {engines}: choose a smaller one or give more GPUs (--gpus)"
            raise PlanError(msg)
        if specs.count(spec) > 1:
            msg = f"{spec.name} is named twice in --deployments"
            raise PlanError(msg)
    return specs


def _parse_one(entry: str, engines: int, manner: str) -> Spec:
    shape, _, connector = entry.lower().partition(":")
    combined, disagg = _COMBINED.fullmatch(shape), _DISAGG.fullmatch(shape)
    if combined and not connector:
        count = int(combined[1] or engines)
        if count:
            return Spec(combined=count, manner=manner)
    if disagg and int(disagg[1]) and int(disagg[2]):
        return Spec(prefill=int(disagg[1]), decode=int(disagg[2]), connector=_connector(connector, entry))
    msg = f"{entry!r} is not a deployment: write combined, 2c (two plain engines), 1p1d, or 1p3d:nixl with a connector"
    raise PlanError(msg)


def _connector(name: str, entry: str) -> Connector | None:
    if not name:
        return None
    known = {**_SHORT, **{connector.value.lower(): connector for connector in Connector}}
    if name not in known:
        msg = f"{entry!r}: unknown connector {name!r}; choose from {', '.join(_SHORT)}"
        raise PlanError(msg)
    return known[name]


def default(engines: int, manner: str = "") -> list[Spec]:
    """Plain vLLM on all engines (or combined ones of another manner), and the disaggregated deployments of equally many: all of them up to four, then a choice."""
    prefills = range(1, engines) if engines <= 4 else sorted({max(1, round(share * engines)) for share in _SHARES})
    return [Spec(combined=engines, manner=manner), *(Spec(prefill=count, decode=engines - count) for count in prefills)]


def single(specs: Sequence[Spec]) -> Spec | None:
    """The plain deployment of one engine among these, if there is one."""
    return next((spec for spec in specs if spec.combined == 1), None)


def placed(settings: ControlSettings, spec: Spec, gpus: Sequence[int]) -> ControlSettings:
    """The settings of one deployment: its engines on the first of `gpus`, its connector."""
    size = settings.tensor_parallel_size
    prefill, rest = gpus[: spec.prefill * size], gpus[spec.prefill * size :]
    return msgspec.structs.replace(
        settings,
        prefill_gpus=tuple(prefill),
        decode_gpus=tuple(rest[: spec.decode * size]),
        combined_gpus=tuple(gpus[: spec.combined * size]),
        kv_connector=spec.connector or settings.kv_connector,
    )
