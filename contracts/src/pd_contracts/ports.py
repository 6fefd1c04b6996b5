"""Where the n-th engine of a role listens: the base ports are variables that users know, the rest follows by counting.

Instance n of a role has HTTP port base + n and KV port base + 100 n. A KV port needs room because each tensor-parallel rank
of an engine adds its rank to it (vLLM 0.23.0, `p2p_nccl_engine.py`).
"""

from typing import Annotated

import msgspec

from pd_contracts.names import Role

KV_PORT_STEP = 100

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Base ports of engines, as in `.env`."""

    prefill_http_port: Annotated[Port, msgspec.Meta(description="HTTP port of the first prefill engine")] = 20003
    decode_http_port: Annotated[Port, msgspec.Meta(description="HTTP port of the first decode engine")] = 20005
    combined_http_port: Annotated[Port, msgspec.Meta(description="HTTP port of the first combined engine")] = 8000
    prefill_kv_port: Annotated[Port, msgspec.Meta(description="KV port of the first prefill engine")] = 21001
    decode_kv_port: Annotated[Port, msgspec.Meta(description="KV port of the first decode engine")] = 22001
    combined_kv_port: Annotated[
        Port, msgspec.Meta(description="KV port of the first combined engine that hands KV over (KV_BOTH)")
    ] = 23001

    def http(self, role: Role, number: int = 0) -> int:
        """HTTP port of instance `number` (from 0) of a role."""
        base = {
            Role.PREFILL: self.prefill_http_port,
            Role.DECODE: self.decode_http_port,
            Role.COMBINED: self.combined_http_port,
        }[role]
        return _within(base + number)

    def kv(self, role: Role, number: int = 0, *, both: bool = False) -> int:
        """KV port of instance `number` (from 0); a combined engine has one if it is `both`, and else answers with its HTTP port.

        There the HTTP port serves: the ping needs a unique address, and nobody sends KV to it.
        """
        if role is Role.COMBINED and not both:
            return self.http(role, number)
        base = {
            Role.PREFILL: self.prefill_kv_port,
            Role.DECODE: self.decode_kv_port,
            Role.COMBINED: self.combined_kv_port,
        }[role]
        return _within(base + KV_PORT_STEP * number)


def _within(port: int) -> int:
    if port > 65535:
        msg = f"port {port} is above 65535: lower the base port or run fewer instances"
        raise ValueError(msg)
    return port
