"""Engines read from EndpointSlices and pods."""

from typing import Any

import msgspec
import pytest

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping
from pd_proxy.discovery.slices import Pod, Slice, announcements

LABELS = {"pdstack/connector": "P2pNcclConnector", "pdstack/engine-kind": "vllm"}


def endpoint(address: str = "10.0.0.7", pod: str = "demo-0", uid: str = "uid-0") -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": False, "serving": True, "terminating": None},
        "targetRef": {"kind": "Pod", "namespace": "here", "name": pod, "uid": uid},
        "nodeName": "node-1",
    }


def piece(*endpoints: dict[str, Any], labels: dict[str, str] | None = None, **ports: int) -> Slice:
    """A slice as the API server writes it."""
    written = {
        "metadata": {"name": "demo-x7k", "labels": LABELS if labels is None else labels, "resourceVersion": "12"},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": name.replace("_", "-"), "port": port, "protocol": "TCP"} for name, port in ports.items()],
    }
    return msgspec.json.decode(msgspec.json.encode(written), type=Slice)


def pods(name: str = "demo-0", uid: str = "uid-0", **restarts: int) -> dict[str, Pod]:
    written = {
        "metadata": {"name": name, "uid": uid},
        "spec": {"containers": []},
        "status": {
            "containerStatuses": [
                {"name": container.replace("_", "-"), "restartCount": count} for container, count in restarts.items()
            ]
        },
    }
    return {name: msgspec.json.decode(msgspec.json.encode(written), type=Pod)}


def the(pings: list[Ping]) -> Ping:
    [ping] = pings
    return ping


def test_the_engines_of_one_pod_are_told_by_the_names_of_their_ports() -> None:
    one = piece(endpoint(), prefill_0=20003, kv_prefill_0=21001, decode_1=20006, kv_decode_1=22101)
    prefill, decode = announcements([one], pods(prefill_0=0, decode_1=0))

    assert (prefill.type.role, prefill.http_address, prefill.zmq_address) == (
        Role.PREFILL,
        "10.0.0.7:20003",
        "10.0.0.7:21001",
    )
    assert (decode.type.role, decode.http_address, decode.zmq_address) == (
        Role.DECODE,
        "10.0.0.7:20006",
        "10.0.0.7:22101",
    )
    assert (prefill.connector, prefill.engine) == (Connector.P2P_NCCL, "vllm")


def test_a_combined_engine_has_no_kv_port_and_no_connector() -> None:
    ping = the(announcements([piece(endpoint(), combined=8000)], pods(combined=0)))

    assert (ping.type.role, ping.http_address, ping.zmq_address) == (Role.COMBINED, "10.0.0.7:8000", "10.0.0.7:8000")
    assert ping.connector is None


def test_every_endpoint_of_a_slice_is_an_engine() -> None:
    one = piece(endpoint(), endpoint("10.0.0.8", "demo-1", "uid-1"), decode=20005, kv_decode=22001)
    known = pods(decode=0) | pods("demo-1", "uid-1", decode=0)

    assert [ping.http_address for ping in announcements([one], known)] == ["10.0.0.7:20005", "10.0.0.8:20005"]


def test_an_endpoint_that_stands_in_two_slices_for_a_moment_is_one_engine() -> None:
    one = piece(endpoint(), combined=8000)

    assert len(announcements([one, one], pods(combined=0))) == 1


def test_another_pod_and_another_start_of_a_container_are_other_processes() -> None:
    def boot(uid: str, starts: int) -> str:
        return the(announcements([piece(endpoint(uid=uid), combined=8000)], pods(uid=uid, combined=starts))).boot_id

    assert len({boot("uid-0", 0), boot("uid-0", 1), boot("uid-9", 0)}) == 3
    assert boot("uid-0", 1) == boot("uid-0", 1)


@pytest.mark.parametrize(
    ("ranks", "starts", "port"), [(1, 0, 21001), (1, 3, 21004), (8, 2, 21017), (8, 12, 21001), (1, 100, 21001)]
)
def test_kv_ports_move_with_each_start_as_the_chart_moves_them(ranks: int, starts: int, port: int) -> None:
    labels = LABELS | {"pdstack/kv-step": str(ranks)}
    one = piece(endpoint(), labels=labels, prefill=20003, kv_prefill=21001)

    ping = the(announcements([one], pods(prefill=starts)))
    assert (ping.http_address, ping.zmq_address) == ("10.0.0.7:20003", f"10.0.0.7:{port}")


@pytest.mark.parametrize("label", ["", "0", "-1", "101", "x"])
def test_a_step_that_is_none_moves_nothing(label: str) -> None:
    one = piece(endpoint(), labels=LABELS | {"pdstack/kv-step": label}, prefill=20003, kv_prefill=21001)

    assert the(announcements([one], pods(prefill=5))).zmq_address == "10.0.0.7:21001"


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({}, "its pod has not been seen yet"),
        (pods(uid="another", decode=0), "the pod is its predecessor"),
        (pods(sidecar=0), "its container was not started yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_engine_whose_process_is_unknown_is_left_out(known: dict[str, Pod], why: str) -> None:
    assert announcements([piece(endpoint(), decode=20005, kv_decode=22001)], known) == [], why


def test_what_is_no_engine_is_left_out() -> None:
    known = pods(decode=0, combined=0)
    without_pod = {"addresses": ["10.0.0.7"], "conditions": {}}
    none: list[Slice] = [
        piece(endpoint(), http=80, metrics=9090),
        piece(endpoint(), decode=20005),  # where would its KV go?
        piece(without_pod, combined=8000),
        piece({**endpoint(), "addresses": []}, combined=8000),
        piece(endpoint("fd00::7"), combined=8000),
        msgspec.json.decode(b'{"metadata": {"name": "x"}, "endpoints": null, "ports": null}', type=Slice),
    ]

    assert announcements(none, known) == []


def test_an_unknown_connector_is_left_to_the_proxys_setting() -> None:
    one = piece(endpoint(), labels={"pdstack/connector": "MooncakeConnector"}, decode=20005, kv_decode=22001)

    assert the(announcements([one], pods(decode=0))).connector is None
