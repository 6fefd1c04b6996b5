"""The values of ROUTING and REJECT."""

from enum import StrEnum


class Routing(StrEnum):
    """Names as in the setting."""

    STATIC = "static"
    LOCAL_FIRST = "local_first"
    ADAPTIVE = "adaptive"


class Reject(StrEnum):
    """Names as in the setting."""

    OFF = "off"
    SLO = "slo"
