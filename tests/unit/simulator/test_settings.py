"""Settings, and the ports and the ping that follow from them."""

import pytest

from pd_contracts.names import Connector, Role
from pd_contracts.ping import PingType, decode_ping, encode_ping
from pd_contracts.settings import SettingsError, load
from pd_simulator.server import announced, ping_of
from pd_simulator.settings import Settings


def settings(**variables: str) -> Settings:
    return load(Settings, variables)


@pytest.mark.parametrize(
    ("variables", "ports"),
    [
        ({"PD_ROLE": "prefill"}, (20003, 21001)),
        ({"PD_ROLE": "decode", "INSTANCE": "2"}, (20007, 22201)),
        ({"PD_ROLE": "decode", "DECODE_HTTP_PORT": "30000", "INSTANCE": "1"}, (30001, 22101)),
        ({"PD_ROLE": "combined", "INSTANCE": "1"}, (8001, 8001)),
        ({"PD_ROLE": "prefill", "HTTP_PORT": "5000", "KV_PORT": "5001", "INSTANCE": "3"}, (5000, 5001)),
    ],
)
def test_ports_follow_role_and_number_unless_they_are_given(variables: dict[str, str], ports: tuple[int, int]) -> None:
    found = settings(**variables)

    assert (found.listen_http_port, found.listen_kv_port) == ports


def test_the_ping_says_what_the_proxy_needs() -> None:
    ping = ping_of(settings(PD_ROLE="decode", VLLM_HOST_IP="10.0.0.7", KV_CONNECTOR="NixlConnector", MODEL="m"))

    assert decode_ping(encode_ping(ping)) == ping
    assert (ping.type, ping.http_address, ping.zmq_address) == (PingType.DECODE, "10.0.0.7:20005", "10.0.0.7:22001")
    assert (ping.connector, ping.model, ping.engine) == (Connector.NIXL, "m", "pd-simulator")


def test_each_start_has_its_own_boot_id() -> None:
    assert ping_of(settings(VLLM_HOST_IP="10.0.0.7")).boot_id != ping_of(settings(VLLM_HOST_IP="10.0.0.7")).boot_id


def test_a_combined_engine_has_no_connector_and_no_kv_port_of_its_own() -> None:
    ping = ping_of(settings(PD_ROLE="combined", VLLM_HOST_IP="10.0.0.7"))

    assert (ping.type, ping.connector) == (PingType.COMBINED, None)
    assert ping.zmq_address == ping.http_address


def test_the_announced_address_is_found_if_it_is_not_given() -> None:
    assert announced(settings(PROXY_HOST="127.0.0.1")).vllm_host_ip == "127.0.0.1"
    assert announced(settings(VLLM_HOST_IP="10.0.0.7")).vllm_host_ip == "10.0.0.7"


def test_a_proxy_without_an_address_is_refused_with_the_remedy() -> None:
    with pytest.raises(OSError, match=r"PROXY_HOST='no\.such\.host\.invalid'.*VLLM_HOST_IP"):
        announced(settings(PROXY_HOST="no.such.host.invalid"))


def test_a_stock_p2p_prefill_engine_must_be_able_to_take_a_whole_prompt_in_a_step() -> None:
    small = {"MAX_MODEL_LEN": "4096", "MAX_NUM_BATCHED_TOKENS": "2048"}
    with pytest.raises(SettingsError, match="MAX_NUM_BATCHED_TOKENS must be at least MAX_MODEL_LEN"):
        settings(PD_ROLE="prefill", KV_CONNECTOR="P2pNcclConnector", **small)
    assert settings(PD_ROLE="decode", KV_CONNECTOR="P2pNcclConnector", **small).pd_role is Role.DECODE
    assert settings(PD_ROLE="prefill", **small).kv_connector is Connector.P2P


@pytest.mark.parametrize(
    "variables", [{"PD_ROLE": "both"}, {"KV_CONNECTOR": "Mooncake"}, {"SIM_CORRUPT_KV": "perhaps"}, {"INSTANCE": "-1"}]
)
def test_wrong_values_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(variables))):
        settings(**variables)
