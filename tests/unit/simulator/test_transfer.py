"""What each connector plans for a request, and the bytes on the wire."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_simulator.errors import ApiError
from pd_simulator.transfer import make_transfer
from pd_simulator.transfer.base import Move, Plan, Site
from pd_simulator.transfer.example import whole_blocks
from pd_simulator.transfer.p2p import decode_address, prefill_address
from pd_simulator.transfer.wire import Frame, WireError, encode, read

ID = "cmpl-___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_0123456789abcdef-0"
REMOTE = {
    "do_remote_prefill": True,
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "10.0.0.1",
    "remote_port": 21001,
}


def plan(
    connector: Connector | None,
    role: Role,
    tokens: int,
    *,
    request_id: str = ID,
    max_tokens: int = 1,
    params: dict[str, Any] | None = None,
    folder: str = "",
) -> Plan:
    site = Site(role, "x-0", "m", "127.0.0.1", "127.0.0.1", 1, shared_path=folder)
    return make_transfer(connector, site).plan(Move(request_id, [5] * tokens, max_tokens, params or {}))


@pytest.mark.parametrize("prefix", ["cmpl-", "chatcmpl-", "0_cmpl-", "3_chatcmpl-", ""])
@pytest.mark.parametrize("suffix", ["", "-0", "-17", "-0a1b2c3d"])
def test_both_addresses_are_found_in_what_an_engine_makes_of_the_id(prefix: str, suffix: str) -> None:
    request_id = f"{prefix}{ID.removeprefix('cmpl-').removesuffix('-0')}{suffix}"

    assert prefill_address(request_id) == ("10.0.0.1", 21001)
    assert decode_address(request_id) == ("10.0.0.2", 22001)


@pytest.mark.parametrize("request_id", ["cmpl-abc-0", "", "___decode_addr_", "___decode_addr_10.0.0.1"])
def test_an_id_without_addresses_is_refused_where_vllm_would_die(request_id: str) -> None:
    with pytest.raises(ApiError, match="does not contain hostname and port") as caught:
        plan(Connector.P2P_NCCL, Role.PREFILL, 5, request_id=request_id)
    assert caught.value.status == 400
    with pytest.raises(ApiError):
        plan(Connector.P2P_NCCL, Role.DECODE, 5, request_id=request_id)


def test_p2p_loads_all_but_the_last_token() -> None:
    sending = plan(Connector.P2P_NCCL, Role.PREFILL, 17)
    assert (sending.sends, sending.external, sending.fetches) == (True, 0, False)
    assert plan(Connector.P2P_NCCL, Role.DECODE, 17, max_tokens=9) == Plan(external=16)
    assert plan(Connector.P2P_NCCL, Role.DECODE, 1, max_tokens=9) == Plan(external=0)


def test_p2p_prefill_writes_one_token_and_no_more() -> None:
    with pytest.raises(ApiError, match="max_tokens is 2") as caught:
        plan(Connector.P2P_NCCL, Role.PREFILL, 17, max_tokens=2)
    assert caught.value.status == 400


def test_nixl_follows_the_parameters_whatever_the_role() -> None:
    for role in (Role.PREFILL, Role.DECODE):
        assert plan(Connector.NIXL, role, 9) == Plan()
        assert plan(Connector.NIXL, role, 9, params={"do_remote_decode": True}) == Plan(keeps=True)
        assert plan(Connector.NIXL, role, 9, params=REMOTE) == Plan(external=9, fetches=True)


@pytest.mark.parametrize("name", ["remote_engine_id", "remote_request_id", "remote_host", "remote_port"])
def test_nixl_refuses_parameters_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ApiError, match=f"lacks {name}") as caught:
        plan(Connector.NIXL, Role.DECODE, 9, params={**REMOTE, name: None})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("tokens", "shared"), [(1, 0), (2, 0), (16, 0), (17, 0), (18, 16), (33, 16), (34, 32), (700, 688)]
)
def test_the_shared_folder_holds_whole_blocks_before_the_last_token(tokens: int, shared: int) -> None:
    assert whole_blocks(tokens) == shared


async def test_the_shared_folder_is_written_once_and_then_read(tmp_path: Path) -> None:
    site = Site(Role.PREFILL, "x-0", "m", "127.0.0.1", "127.0.0.1", 1, shared_path=str(tmp_path / "kv"))
    transfer, move = make_transfer(Connector.EXAMPLE, site), Move("r", list(range(40)), 1, {})
    await transfer.start()

    assert transfer.plan(move) == Plan(sends=True)
    await transfer.save(move, bytes(40 * 32))

    assert transfer.plan(move) == Plan(external=32)
    assert transfer.plan(Move("r", [*range(39), 99], 1, {})) == Plan(external=32)
    assert transfer.plan(Move("r", [99, *range(1, 40)], 1, {})) == Plan(sends=True)
    assert await transfer.load(move) == (bytes(32 * 32), 0.0)


def test_without_a_connector_nothing_moves() -> None:
    assert plan(None, Role.COMBINED, 700, request_id="cmpl-abc-0") == Plan()


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@given(st.binary(max_size=200), st.text(max_size=100))
async def test_frames_come_back_and_follow_each_other(payload: bytes, request_id: str) -> None:
    reader = reader_of(encode(Frame("put", request_id), payload) + encode(Frame("pull", "next")))

    assert await read(reader) == (Frame("put", request_id, len(payload)), payload)
    assert await read(reader) == (Frame("pull", "next"), b"")


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n" * 10, b"\0\0\0\3abc", b"\xff" * 50, b"\0\0\0\x10\x93\xa3put\xa1x\xcf" + b"\xff" * 8],
)
async def test_what_is_no_frame_ends_the_connection(data: bytes) -> None:
    with pytest.raises((WireError, asyncio.IncompleteReadError)):
        await read(reader_of(data))
