"""How KV gets from the engine that computed it to the engine that needs it: one module per connector, one interface (`base`)."""

from pd_contracts.names import Connector
from pd_simulator.transfer.base import Site, Transfer
from pd_simulator.transfer.example import ExampleTransfer
from pd_simulator.transfer.keyed import KeyedTransfer
from pd_simulator.transfer.nixl import NixlTransfer
from pd_simulator.transfer.p2p import P2pTransfer


def make_transfer(connector: Connector | None, site: Site) -> Transfer:
    """The transfer of a connector; without a connector, a transfer that moves nothing."""
    kinds: dict[Connector | None, type[Transfer]] = {
        Connector.P2P: KeyedTransfer,
        Connector.P2P_NCCL: P2pTransfer,
        Connector.NIXL: NixlTransfer,
        Connector.EXAMPLE: ExampleTransfer,
    }
    return kinds.get(connector, Transfer)(site)
