"""Which transport the metrics of a prefill engine name for a decode engine."""

import pytest

from pd_proxy.kv.transport import transport_to

PAGE = b"""# HELP pd_kv_peer_up Whether a connection to another engine stands, by its address and transport.
# TYPE pd_kv_peer_up gauge
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.7:22001",transport="vmm"} 0.0
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.7:22001",transport="tcp"} 1.0
pd_kv_peer_up{engine="0",model_name="m",peer="10.0.0.8:22001",transport="vmm"} 1.0
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
