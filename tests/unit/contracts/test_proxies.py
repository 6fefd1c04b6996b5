"""Which proxies an engine announces itself to."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.waiting import until

from pd_contracts import proxies
from pd_contracts.proxies import Dealers, Proxies, addresses, entries, first_host

NAMES = {"proxy": ["10.0.0.1", "10.0.0.2"], "other": ["10.0.0.3"]}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, *_: Any) -> list[Any]:
        if host not in NAMES and not host[0].isdigit():
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in NAMES.get(host, [host])]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("10.0.0.9", ["10.0.0.9:30001"]),
        ("proxy", ["10.0.0.1:30001", "10.0.0.2:30001"]),
        ("proxy, other:7", ["10.0.0.1:30001", "10.0.0.2:30001", "10.0.0.3:7"]),
        ("other,other,nobody,", ["10.0.0.3:30001"]),
        ("nobody", []),
        ("", []),
    ],
)
def test_all_that_the_setting_names_each_once(hosts: str, expected: list[str]) -> None:
    assert addresses(hosts, 30001) == expected


@pytest.mark.parametrize("hosts", ["proxy:x", "a,proxy:0", "proxy:70000"])
def test_a_port_that_is_none_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match=r"PROXY_HOST: .* is neither a host nor host:port"):
        entries(hosts, 1)


def test_the_way_to_the_first_is_the_way_to_all() -> None:
    assert first_host("other:7,proxy", 30001) == ("other", 7)
    assert first_host("", 30001) == ("", 30001)


def test_what_was_found_stands_while_nothing_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = Proxies("proxy", 1, interval_s=0.01)
    proxies.start()
    until(lambda: list(proxies.known()) == ["10.0.0.1:1", "10.0.0.2:1"])
    monkeypatch.setitem(NAMES, "proxy", ["10.0.0.5"])
    until(lambda: list(proxies.known()) == ["10.0.0.5:1"])
    monkeypatch.delitem(NAMES, "proxy")
    time.sleep(0.1)

    assert proxies.known() == ["10.0.0.5:1"]
    proxies.stop()


def test_messages_go_to_all_and_to_nobody_who_is_gone() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as one, context.socket(zmq.ROUTER) as two:
        for router in (one, two):
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # the second connection with an identity replaces the first
        first, second = (f"127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}" for router in (one, two))
        dealers = Dealers(context, "me")
        assert reached(dealers, b"a", [first, second], [one, two])

        assert reached(dealers, b"b", [second], [two])
        assert not reached(dealers, b"b", [second], [one], tries=2)

        assert reached(dealers, b"c", [first, second], [one, two])
        dealers.close()


def reached(dealers: Dealers, message: bytes, to: list[str], routers: list[Any], tries: int = 100) -> bool:
    """Whether it comes to all of them; a DEALER that has just connected, or whose last message is not read yet, may drop one."""
    missing = set(routers)
    for _ in range(tries):
        dealers.send(message, to)
        time.sleep(0.05)
        for router in list(missing):
            while router.poll(0):
                identity, found = router.recv_multipart()
                assert identity == b"me"
                if found == message:
                    missing.discard(router)
        if not missing:
            return True
    return False


def test_a_proxy_that_is_away_keeps_nobody_waiting() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        here = f"127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        dealers = Dealers(context, "me")
        for number in range(5):
            assert reached(dealers, str(number).encode(), ["127.0.0.1:9", here], [router])
        dealers.close()


def test_a_connection_that_does_not_come_about_is_given_up_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of Kubernetes keeps to where a connection's first packet went, so that repeating the packet leads nowhere."""
    monkeypatch.setattr(proxies, "CONNECT_TIMEOUT_MS", 100)
    with socket.socket() as full, zmq.Context() as context:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # Linux drops what does not fit into the queue
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        before = attempts(port)
        dealers = Dealers(context, "me")
        dealers.send(b"here", [f"127.0.0.1:{port}"])
        until(lambda: attempts(port) - before)
        first = attempts(port)
        until(lambda: attempts(port) - first)
        dealers.close()
        for one in waiting:
            one.close()


def attempts(port: int) -> set[str]:
    """Addresses from which connections to a port are being tried."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[1] for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "02"}
