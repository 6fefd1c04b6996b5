import hashlib
import hmac

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_contracts.ping import MAX_PING_BYTES, Ping, PingError, PingType, decode_ping, encode_ping, is_signed, sign_ping

VALID = {"type": "P", "http_address": "10.0.0.1:20003", "zmq_address": "10.0.0.1:21001"}

msgpack_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(list(VALID)), inner, max_size=4)
    ),
    max_leaves=12,
)


def is_ping_or_refusal(data: bytes) -> bool:
    try:
        return isinstance(decode_ping(data), Ping)
    except PingError as error:
        return bool(str(error))


def test_the_map_that_vllm_sends_is_read() -> None:
    ping = decode_ping(msgpack.dumps(VALID))

    assert ping == Ping(PingType.PREFILL, "10.0.0.1:20003", "10.0.0.1:21001")
    assert ping.type.role is Role.PREFILL
    assert ping.connector is None


@pytest.mark.parametrize(("letter", "role"), [("P", Role.PREFILL), ("D", Role.DECODE), ("C", Role.COMBINED)])
def test_the_letter_is_the_role(letter: str, role: Role) -> None:
    assert decode_ping(msgpack.dumps(VALID | {"type": letter})).type.role is role


def test_keys_of_a_newer_engine_are_ignored() -> None:
    assert decode_ping(msgpack.dumps(VALID | {"colour": [1, {"deep": None}]})) == decode_ping(msgpack.dumps(VALID))


def test_a_ping_without_extras_is_exactly_vllms_map() -> None:
    assert msgpack.loads(encode_ping(decode_ping(msgpack.dumps(VALID)))) == VALID


@given(
    st.sampled_from(PingType),
    st.ip_addresses(v=4),
    st.integers(1, 65535),
    st.sampled_from([None, *Connector]),
    st.text(max_size=50),
)
def test_what_is_written_is_read_back(
    type_: PingType, address: object, port: int, connector: Connector | None, text: str
) -> None:
    ping = Ping(
        type_,
        f"{address}:{port}",
        f"proxy-1.local:{port}",
        connector,
        boot_id=text,
        model=text,
        engine=text,
        version=text,
    )

    assert decode_ping(encode_ping(ping)) == ping


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x91" * 4000)  # lists in lists in lists
@example(b"\x83\xa4type\xa1P\xacht")
@example(b"\xdf\xff\xff\xff\xff")  # a map that claims four billion entries
def test_any_bytes_are_a_ping_or_a_refusal(data: bytes) -> None:
    assert is_ping_or_refusal(data)


@given(msgpack_values)
def test_any_msgpack_is_a_ping_or_a_refusal(value: object) -> None:
    try:
        data = msgspec.msgpack.encode(value)
    except (OverflowError, msgspec.MsgspecError):
        return
    assert is_ping_or_refusal(data)


@given(st.data())
def test_a_ping_with_a_few_bytes_changed_is_a_ping_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(msgpack.dumps(VALID))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    assert is_ping_or_refusal(bytes(raw))


@given(st.integers(0, 200))
def test_a_ping_cut_short_is_refused(length: int) -> None:
    whole = msgpack.dumps(VALID)
    if length >= len(whole):
        return
    with pytest.raises(PingError):
        decode_ping(whole[:length])


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.1:80\n",
        ":80",
        " 10.0.0.1:80",
        "a b:80",
        "http://10.0.0.1:80",
        "10.0.0.1:80/path",
        "host___decode_addr_x:80",  # would break the request-id grammar
        "[::1]:80",
        "-host:80",
        "h\r\nX-Evil: 1:80",
        "h" * 300 + ":80",
        "1.2.3.4:٨٠",  # digits, but not the ones that headers and sockets know
        "10.0.0.1:080808",
    ],
)
@pytest.mark.parametrize("key", ["http_address", "zmq_address"])
def test_an_address_that_cannot_be_dialled_is_refused_by_name(key: str, address: str) -> None:
    with pytest.raises(PingError, match=key):
        decode_ping(msgspec.msgpack.encode(VALID | {key: address}))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "prefill:20003", "prefill-0.pool.svc.cluster.local:65535", "h:80"])
def test_addresses_that_engines_announce_are_accepted(address: str) -> None:
    assert decode_ping(msgpack.dumps(VALID | {"http_address": address})).http_address == address


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "X"},
        {"type": 1},
        {"type": None},
        {"http_address": 5},
        {"connector": "Carrier pigeon"},
        {"model": ["m"]},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(PingError):
        decode_ping(msgpack.dumps(VALID | wrong))


@pytest.mark.parametrize("key", list(VALID))
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(PingError, match=key):
        decode_ping(msgpack.dumps({name: value for name, value in VALID.items() if name != key}))


def test_a_ping_may_not_be_long() -> None:
    with pytest.raises(PingError, match=str(MAX_PING_BYTES)):
        decode_ping(msgpack.dumps(VALID | {"model": "m" * MAX_PING_BYTES}))


FULL = Ping(
    PingType.DECODE,
    "10.0.0.1:20005",
    "10.0.0.1:22001",
    Connector.NIXL,
    boot_id="b",
    gpus=("GPU-1", "GPU-2"),
    gpu_model="NVIDIA H200",
    versions={"torch": "2.11.0", "driver": "575.57"},
    deployment="mine",
)


def test_a_signed_ping_is_read_like_any_other_and_known_by_its_key_alone() -> None:
    data = sign_ping(FULL, "secret", 1000.5)

    read = decode_ping(data)

    assert msgspec.structs.replace(read, mac=b"") == msgspec.structs.replace(FULL, time=1000.5)
    assert is_signed(data, "secret")
    assert not is_signed(data, "secret2")
    assert not is_signed(encode_ping(FULL), "secret")


def test_without_a_key_nothing_is_signed() -> None:
    assert sign_ping(FULL, "", 1.0) == encode_ping(FULL)


@pytest.mark.parametrize("key", ["type", "http_address", "zmq_address", "boot_id", "time", "deployment", "colour"])
def test_whatever_is_changed_or_added_is_no_longer_signed(key: str) -> None:
    fields = msgpack.loads(sign_ping(FULL, "secret", 1000.5))

    assert is_signed(msgpack.dumps(fields), "secret")
    assert not is_signed(msgpack.dumps({**fields, key: "C"}), "secret")
    assert not is_signed(msgpack.dumps({name: value for name, value in fields.items() if name != "gpus"}), "secret")


def test_keys_of_a_newer_engine_are_signed_with_the_rest() -> None:
    fields = {**VALID, "colour": ["red", 1], "time": 5}
    order = dict(sorted(fields.items()))
    mac = hmac.new(b"secret", msgpack.dumps(order), hashlib.sha256).digest()

    assert is_signed(msgpack.dumps({**fields, "mac": mac}), "secret")
