"""Engines as the proxy knows them, for tests of decisions."""

from typing import Any

from pd_contracts.names import Connector, Role
from pd_proxy.engines.registry import Instance, State


def engine(role: Role, number: int = 0, **fields: Any) -> Instance:
    """A ready engine with an address of its own; its number is its incarnation, too."""
    defaults: dict[str, Any] = {"models": ("m",), "state": State.READY, "connector": Connector.P2P_NCCL}
    return Instance(
        name=f"{role.value}-{number}",
        role=role,
        http_address=f"10.0.0.{number}:8000",
        zmq_address=f"10.0.0.{number}:21001",
        incarnation=number,
        **defaults | fields,
    )
