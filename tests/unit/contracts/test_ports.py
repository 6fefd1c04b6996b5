import pytest

from pd_contracts.names import Role
from pd_contracts.ports import Ports
from pd_contracts.settings import SettingsError, load


def test_the_first_instances_listen_where_users_know_them() -> None:
    ports = Ports()

    assert [ports.http(role) for role in (Role.PREFILL, Role.DECODE, Role.COMBINED)] == [20003, 20005, 8000]
    assert [ports.kv(role) for role in (Role.PREFILL, Role.DECODE)] == [21001, 22001]


def test_further_instances_count_up_and_leave_room_for_tensor_parallel_ranks() -> None:
    ports = Ports(decode_http_port=30000, decode_kv_port=31000)

    assert [ports.http(Role.DECODE, n) for n in range(3)] == [30000, 30001, 30002]
    assert [ports.kv(Role.DECODE, n) for n in range(3)] == [31000, 31100, 31200]


def test_a_combined_engine_names_its_http_port_for_kv() -> None:
    assert Ports().kv(Role.COMBINED, 3) == Ports().http(Role.COMBINED, 3) == 8003


def test_a_port_beyond_the_last_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="lower the base port"):
        Ports(prefill_kv_port=65500).kv(Role.PREFILL, 1)


def test_a_base_port_out_of_range_is_refused_as_a_setting() -> None:
    with pytest.raises(SettingsError, match="PREFILL_HTTP_PORT"):
        load(Ports, {"PREFILL_HTTP_PORT": "70000"})
