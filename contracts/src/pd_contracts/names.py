"""Names that several services must spell alike."""

from enum import StrEnum


class Role(StrEnum):
    """What an engine does."""

    PREFILL = "prefill"
    DECODE = "decode"
    COMBINED = "combined"


class Topology(StrEnum):
    """How a deployment uses its GPUs."""

    DISAGG = "disagg"
    COMBINED = "combined"


class Connector(StrEnum):
    """How KV travels: `kv_connector` in `--kv-transfer-config`. P2P is our own (`pd_connector`), the others are vLLM's."""

    P2P = "P2pConnector"
    P2P_NCCL = "P2pNcclConnector"
    NIXL = "NixlConnector"
    EXAMPLE = "ExampleConnector"


REQUEST_ID_HEADER = "X-Request-Id"
TIMING_HEADER = "X-PD-Timing"

# pd-simulator announces itself with this value of the ping's `engine` key; every number that comes from a run with such an
# engine is marked SIMULATED.
SIMULATED_ENGINE = "pd-simulator"
