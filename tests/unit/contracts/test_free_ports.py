"""Ports that are given out before they are bound."""

import socket
import subprocess
import sys

import pytest

from pd_contracts import free_ports

FIRST, COUNT = 12_345, 12
ANOTHER = f"""
import sys
from pd_contracts import free_ports
print(*[port for port in range({FIRST}, {FIRST + COUNT}) if free_ports.claim(port)], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps claims")
def test_what_another_process_has_claimed_is_free_again_when_it_ends() -> None:
    command = [sys.executable, "-c", ANOTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = {int(port) for port in other.stdout.readline().split()}
        assert theirs
        assert not [port for port in theirs if free_ports.claim(port)]
        other.communicate()

    assert all(free_ports.claim(port) for port in theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps claims")
def test_a_process_gets_no_port_twice_before_it_has_bound_it() -> None:
    given = free_ports.free_ports(3)

    assert not [port for port in given if free_ports.claim(port)]


def test_a_port_that_something_listens_on_is_not_given_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        assert not free_ports.is_free(port)
        assert not free_ports.claim(port)


def test_claims_do_not_use_up_the_files_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_ports, "_MOST_CLAIMS", 2)
    free_ports.free_ports(5)

    assert len(free_ports._claims) == 2
