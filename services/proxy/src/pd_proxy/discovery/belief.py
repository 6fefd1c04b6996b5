"""Which pings are believed. Pure, except for the check whether an address is this host's own, which is passed in.

Everybody who reaches the port can send a ping. A ping that is signed with the deployment's key is believed as long as it is fresh.
An unsigned ping is vLLM's own (three keys, from its P2pNcclConnector), or comes from an engine that was started without a key.
It can announce only its own host's addresses, and never displaces a live engine (engines/registry.py).
"""

import ipaddress
from collections.abc import Callable
from typing import Final

import msgspec

from pd_contracts.ping import Ping, PingError, decode_ping, is_signed
from pd_proxy.access import Networks, check_networks
from pd_proxy.engines.registry import PingRefusedError

# How far two hosts' clocks may be apart, and so how long a recorded ping can be replayed.
MAX_SKEW_S: Final = 60.0

IsOwn = Callable[[str], bool]
GoesOn = Callable[[Ping], bool]


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A ping that is believed. `trusted`: it is signed, or comes from the API server. `peer` is the address that it came from."""

    ping: Ping
    trusted: bool
    peer: str = ""


class Believer(msgspec.Struct, frozen=True, kw_only=True):
    """Judges pings.

    Attributes:
        deployment: the deployment whose engines are admitted; if empty, engines that belong to none are.
        key: the deployment's key; if empty, pings are not signed.
        unsigned: whether vLLM's own, unsigned pings are believed, too.
        networks: the networks in which engines may announce addresses; if empty, any.
        own_ports: ports on which this proxy listens.
        is_own: tells whether an address is this host's.
        goes_on: tells whether a signed ping is the next one of a known process or of its successor, so that it is no old one, whatever the clocks say.
    """

    deployment: str
    key: str
    unsigned: bool
    networks: Networks
    own_ports: frozenset[int]
    is_own: IsOwn
    goes_on: GoesOn

    def judge(self, identity: bytes, payload: bytes, peer: str, now: float) -> Announcement:
        """Judge one message; `peer` is the numeric address of its sender, `now` the seconds since 1970.

        Raises:
            PingRefusedError: with the reason.
        """
        try:
            ping = decode_ping(payload)
        except PingError as error:
            raise PingRefusedError("malformed", str(error)) from error
        signed = bool(self.key and ping.mac)
        if signed:
            self._check_signature(ping, payload, now)
        else:
            self._check_unsigned(ping, identity)
        self._check_deployment(ping, signed=signed)
        if not signed:
            self._check_sender(ping, peer)
        self._check_addresses(ping)
        return Announcement(ping=ping, trusted=signed, peer=peer)

    def _check_signature(self, ping: Ping, payload: bytes, now: float) -> None:
        if not is_signed(payload, self.key):
            raise PingRefusedError("signature", "is not signed with this deployment's PING_KEY")
        if abs(now - ping.time) > MAX_SKEW_S and not self.goes_on(ping):
            raise PingRefusedError(
                "clock", f"the sender's clock differs by {now - ping.time:.0f} s from this host's: synchronise both"
            )

    def _check_unsigned(self, ping: Ping, identity: bytes) -> None:
        if identity != ping.zmq_address.encode():
            raise PingRefusedError("identity", "the sender's identity is not its zmq_address")
        if self.key and not _is_bare(ping):
            raise PingRefusedError("unsigned", "is not signed: the engine needs this deployment's PING_KEY")
        if not self.unsigned:
            raise PingRefusedError("unsigned", "is not signed, and UNSIGNED_PINGS is off")

    def _check_deployment(self, ping: Ping, *, signed: bool) -> None:
        if ping.deployment == self.deployment or (not signed and _is_bare(ping)):
            return
        theirs = f"deployment {ping.deployment!r}" if ping.deployment else "no deployment"
        ours = f"of {self.deployment!r}" if self.deployment else "of none"
        raise PingRefusedError("deployment", f"belongs to {theirs}, and this proxy is {ours} (DEPLOYMENT)")

    def _check_sender(self, ping: Ping, peer: str) -> None:
        for address in (ping.http_address, ping.zmq_address):
            host = address.rpartition(":")[0]
            if host != peer and not (_is_loopback(peer) and self.is_own(host)):
                raise PingRefusedError("sender", "is not signed, and announces an address other than its sender's")

    def _check_addresses(self, ping: Ping) -> None:
        for address in (ping.http_address, ping.zmq_address):
            host, _, port = address.rpartition(":")
            if int(port) in self.own_ports and self.is_own(host):
                raise PingRefusedError("own", "announces this proxy's own address")
        check_networks(ping, self.networks)


def _is_bare(ping: Ping) -> bool:
    """Whether a ping has no other keys than vLLM's own pings."""
    return ping == Ping(ping.type, ping.http_address, ping.zmq_address)


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
