"""Which pings are believed."""

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector
from pd_contracts.ping import Ping, PingType, encode_ping, sign_ping
from pd_contracts.settings import load
from pd_proxy.discovery.belief import MAX_SKEW_S, Believer
from pd_proxy.engines.registry import PingRefusedError
from pd_proxy.settings import Settings

NOW = 1_800_000_000.0
HOST = "10.0.0.1"
KV = b"10.0.0.1:21001"
VLLMS = Ping(PingType.DECODE, f"{HOST}:8000", KV.decode())
OURS = msgspec.structs.replace(VLLMS, connector=Connector.NIXL, boot_id="b", deployment="mine")


def believer(**changes: Any) -> Believer:
    plain: dict[str, Any] = {"deployment": "", "key": "", "unsigned": True, "networks": ()}
    own: dict[str, Any] = {
        "own_ports": frozenset({10001, 30001}),
        "is_own": lambda host: host in ("127.0.0.1", "10.9.9.9"),
        "goes_on": lambda _: False,
    }
    return Believer(**{**plain, **own, **changes})


MINE = believer(deployment="mine", key="secret")


def judged(who: Believer, data: bytes, peer: str = HOST, identity: bytes = KV) -> str:
    """What comes of a message: "trusted", "believed" or the reason of the refusal."""
    try:
        said = who.judge(identity, data, peer, NOW)
    except PingRefusedError as refusal:
        return refusal.reason if str(refusal) else "no sentence"
    return "trusted" if said.trusted else "believed"


def signed(ping: Ping = OURS, key: str = "secret", at: float = NOW) -> bytes:
    return sign_ping(ping, key, at)


def test_vllms_own_ping_is_believed_from_the_address_that_it_announces() -> None:
    data = encode_ping(VLLMS)

    assert judged(believer(), data) == "believed"
    assert judged(believer(), data, peer="10.0.0.2") == "sender"
    assert judged(believer(), data, peer="") == "sender"
    assert judged(believer(), data, identity=b"10.0.0.2:1") == "identity"
    assert judged(believer(), encode_ping(msgspec.structs.replace(VLLMS, http_address="10.0.0.2:8000"))) == "sender"
    elsewhere = msgspec.structs.replace(VLLMS, zmq_address="10.0.0.2:21001")
    assert judged(believer(), encode_ping(elsewhere), identity=b"10.0.0.2:21001") == "sender"


def test_on_one_host_an_engine_may_announce_any_address_of_the_host() -> None:
    ping = Ping(PingType.DECODE, "10.9.9.9:8000", "10.9.9.9:21001")

    assert judged(believer(), encode_ping(ping), peer="127.0.0.1", identity=b"10.9.9.9:21001") == "believed"
    assert judged(believer(), encode_ping(VLLMS), peer="127.0.0.1") == "sender"


def test_a_signed_ping_is_believed_wherever_it_comes_from() -> None:
    assert judged(MINE, signed(), peer="192.0.2.1", identity=b"whatever") == "trusted"
    named = msgspec.structs.replace(OURS, http_address="decode-0.engines:8000")
    assert judged(MINE, signed(named), peer="192.0.2.1") == "trusted"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (signed(key="another"), "signature"),
        (signed(at=NOW - MAX_SKEW_S - 1), "clock"),
        (signed(at=NOW + MAX_SKEW_S + 1), "clock"),
        (signed(msgspec.structs.replace(OURS, deployment="another")), "deployment"),
        (signed(msgspec.structs.replace(OURS, deployment="")), "deployment"),
        (encode_ping(OURS), "unsigned"),
        (encode_ping(msgspec.structs.replace(OURS, deployment="")), "unsigned"),
        (encode_ping(msgspec.structs.replace(OURS, mac=b"0" * 32)), "signature"),
        (b"nonsense", "malformed"),
    ],
)
def test_what_is_not_this_deployments_is_refused(data: bytes, reason: str) -> None:
    assert judged(MINE, data) == reason


def test_a_clock_that_is_a_little_off_does_not_matter() -> None:
    assert judged(MINE, signed(at=NOW - MAX_SKEW_S + 1)) == "trusted"


def test_the_next_ping_of_a_known_process_is_believed_whatever_the_clocks_say() -> None:
    going_on = msgspec.structs.replace(MINE, goes_on=lambda ping: ping.up > 5.0)

    for jump in (3600.0, -3600.0):
        assert judged(going_on, sign_ping(OURS, "secret", NOW + jump, 6.0)) == "trusted"
        assert judged(going_on, sign_ping(OURS, "secret", NOW + jump, 5.0)) == "clock"
        assert judged(going_on, sign_ping(OURS, "another", NOW + jump, 6.0)) == "signature"


def test_a_changed_ping_is_no_longer_signed() -> None:
    fields = msgpack.loads(signed())

    assert judged(MINE, msgpack.dumps({**fields, "zmq_address": "10.6.6.6:1"})) == "signature"
    assert judged(MINE, msgpack.dumps({**fields, "time": NOW + 1})) == "signature"


def test_vllms_own_pings_are_believed_beside_signed_ones_unless_that_is_switched_off() -> None:
    assert judged(MINE, encode_ping(VLLMS)) == "believed"
    assert judged(MINE, encode_ping(VLLMS), peer="10.0.0.2") == "sender"
    off = msgspec.structs.replace(MINE, unsigned=False)
    assert judged(off, encode_ping(VLLMS)) == "unsigned"
    assert judged(off, signed()) == "trusted"


def test_without_a_key_deployments_still_do_not_mix() -> None:
    mine, nobodys = believer(deployment="mine"), believer()

    assert judged(mine, encode_ping(OURS)) == "believed"
    assert judged(nobodys, encode_ping(OURS)) == "deployment"
    assert judged(nobodys, encode_ping(msgspec.structs.replace(OURS, deployment=""))) == "believed"
    assert judged(mine, encode_ping(msgspec.structs.replace(OURS, deployment="another"))) == "deployment"
    assert judged(mine, encode_ping(msgspec.structs.replace(OURS, deployment=""))) == "deployment"


@pytest.mark.parametrize("port", [10001, 30001])
def test_the_proxys_own_addresses_are_no_engines(port: int) -> None:
    own = msgspec.structs.replace(OURS, http_address=f"10.9.9.9:{port}")
    beside = msgspec.structs.replace(OURS, http_address="10.9.9.9:10002")
    elsewhere = msgspec.structs.replace(OURS, http_address=f"10.0.0.1:{port}")

    assert judged(MINE, signed(own)) == "own"
    assert judged(MINE, signed(beside)) == "trusted"
    assert judged(MINE, signed(elsewhere)) == "trusted"


def test_networks_bind_those_who_sign_too() -> None:
    networks = load(Settings, {"PING_NETWORKS": "10.1.0.0/16"}).networks()

    assert judged(msgspec.structs.replace(MINE, networks=networks), signed()) == "network"


@given(st.binary(max_size=200), st.binary(max_size=20), st.sampled_from(["", HOST, "x", "::1"]))
def test_nothing_else_does_more_than_raise_the_one_error(data: bytes, identity: bytes, peer: str) -> None:
    assert judged(MINE, data, peer, identity) == "malformed"


@given(st.integers(0, len(encode_ping(VLLMS)) - 1))
def test_a_truncated_ping_is_malformed(length: int) -> None:
    assert judged(believer(), encode_ping(VLLMS)[:length]) == "malformed"
