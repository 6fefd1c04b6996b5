"""What an engine and its P2pConnector say on the engine's metrics page."""

import pytest

from pd_proxy.engines.registry import Told
from pd_proxy.kv.engine_page import draws_of, kv_tokens_of, told_by, transport_to

PAGE = b"""# HELP pd_kv_peer_up Whether a connection to another engine stands, by its address and transport.
# TYPE pd_kv_peer_up gauge
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.7:22001",transport="vmm"} 0.0
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.7:22001",transport="tcp"} 1.0
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.8:22001",transport="vmm"} 1.0
pd_seeded_draws{engine="0",model_name="m",draws="v2 0.33.0 fp32"} 1.0
vllm:num_requests_running{engine="0"} 3.0
"""


@pytest.mark.parametrize(
    ("address", "expected"), [("10.0.0.7:22001", "tcp"), ("10.0.0.8:22001", "vmm"), ("10.0.0.9:22001", "")]
)
def test_the_transport_is_that_of_the_open_connection(address: str, expected: str) -> None:
    assert transport_to(address, PAGE) == expected


@pytest.mark.parametrize("page", [b"", b"pd_kv_peer_up{", b"\xff\xfe", b"<html>"])
def test_metrics_without_a_connection_name_no_transport(page: bytes) -> None:
    assert transport_to("10.0.0.7:22001", page) == ""
    assert draws_of(page) == ""
    assert kv_tokens_of(page) == 0


def test_how_an_engine_draws_for_a_seed_is_read_with_its_version() -> None:
    assert draws_of(PAGE) == "v2 0.33.0 fp32"
    assert draws_of(PAGE.replace(b"pd_seeded_draws{", b"pd_seeded_draws_of_others{")) == ""


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (
            b'fields="presence_penalty logits_processors",max_tokens="512"',
            (("presence_penalty", "logits_processors"), 512),
        ),
        (b'fields="",max_tokens="512"', ((), 512)),
        (b'fields="presence_penalty",max_tokens=""', (("presence_penalty",), 0)),
        (b'fields="",max_tokens="none"', ((), 0)),
    ],
)
def test_what_an_engine_does_unasked_is_read(labels: bytes, own: tuple[tuple[str, ...], int]) -> None:
    told = told_by(PAGE + b"pd_own_sampling{" + labels + b"} 1.0\n")
    assert told == Told("v2 0.33.0 fp32", 0, *own)
    assert told_by(PAGE) == Told("v2 0.33.0 fp32")


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        (b'block_size="16",kv_cache_size_tokens="399984",num_gpu_blocks="25000"', 399_984),
        (b'block_size="16",engine="0",num_gpu_blocks="25000"', 400_000),
        (b'block_size="16",kv_cache_size_tokens="None",num_gpu_blocks="25000"', 400_000),
        (b'block_size="16",num_gpu_blocks="None"', 0),
        (b'enable_prefix_caching="True"', 0),
    ],
)
def test_the_size_of_the_kv_cache_is_read_in_tokens(labels: bytes, tokens: int) -> None:
    assert kv_tokens_of(PAGE + b"vllm:cache_config_info{" + labels + b"} 1.0\n") == tokens
