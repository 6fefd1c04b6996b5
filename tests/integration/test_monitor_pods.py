"""Pods of GPUs: a gRPC server of our own on a real UNIX socket, and the monitor that asks it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from support.aio import until
from support.monitor import pick, running, series

from pd_contracts.names import Role
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.kubelet import KubeletError, WithPods, list_pods
from pd_monitor.pods import Pod, parse_patterns, pods_by_device
from pd_monitor.protobuf import ProtobufError
from pd_monitor.settings import Settings

PATTERNS = parse_patterns(Settings().pod_role_patterns)


def field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pod(namespace: str, name: str, container: str, *devices: str) -> bytes:
    """One PodResources: a container with GPUs, and what else the API tells of it."""
    gpus = field(1, "nvidia.com/gpu") + b"".join(field(2, device) for device in devices)
    topology = field(3, field(1, varint(1 << 3) + varint(7)))
    inside = field(1, container) + field(2, gpus + topology) + varint(3 << 3) + varint(300)
    return field(1, field(1, name) + field(2, namespace) + field(3, field(1, "sidecar")) + field(3, inside))


class Kubelet:
    """Serves HTTP/2 as a gRPC server does: headers, a message, trailers."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.pods: list[bytes] = []
        self.status = "0"
        self.silent = False
        self.raw: bytes | None = None
        self.calls: list[str] = []
        self.pending = b""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        with contextlib.closing(writer):
            writer.write(connection.data_to_send())
            while data := await reader.read(65536):
                if self.raw is not None:
                    writer.write(self.raw)
                    if self.raw:
                        continue
                    return
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.calls += [str(value) for name, value in event.headers or () if str(name) == ":path"]
                    if isinstance(event, h2.events.StreamEnded) and not self.silent:
                        self.answer(connection, event.stream_id)
                self.send(connection)
                writer.write(connection.data_to_send())

    def answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        first = [(":status", "200"), ("content-type", "application/grpc")]
        if self.status != "0":
            trailers = [("grpc-status", self.status), ("grpc-message", "told so")]
            connection.send_headers(stream, first + trailers, end_stream=True)
            return
        message = b"".join(self.pods)
        self.pending = b"\0" + len(message).to_bytes(4) + message
        connection.send_headers(stream, first)

    def send(self, connection: h2.connection.H2Connection) -> None:
        """As much as the client's window allows, and the trailers behind the last byte."""
        while self.pending and (room := min(connection.local_flow_control_window(1), 7000)):
            connection.send_data(1, self.pending[:room])
            self.pending = self.pending[room:]
            if not self.pending:
                connection.send_headers(1, [("grpc-status", self.status)], end_stream=True)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Kubelet"]:
        server = await asyncio.start_unix_server(self.handle, self.socket)
        try:
            yield self
        finally:
            server.close()


@pytest.fixture(name="kubelet")
async def _kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    async with Kubelet(tmp_path / "kubelet.sock").serving() as kubelet:
        yield kubelet


async def test_every_gpu_is_found_with_its_pod(kubelet: Kubelet) -> None:
    kubelet.pods = [
        pod("serving", "llm-prefill-0", "vllm", "GPU-a", "GPU-b"),
        pod("serving", "llm-decode-0", "vllm", "GPU-c::3"),
        pod("other", "no-gpu", "main"),
    ]

    found = await list_pods(str(kubelet.socket))

    assert kubelet.calls == ["/v1.PodResourcesLister/List"]
    assert found == {
        "GPU-a": Pod("serving", "llm-prefill-0", "vllm"),
        "GPU-b": Pod("serving", "llm-prefill-0", "vllm"),
        "GPU-c": Pod("serving", "llm-decode-0", "vllm"),
    }


async def test_a_long_answer_comes_whole(kubelet: Kubelet) -> None:
    kubelet.pods = [pod("n" * 60, f"pod-{number:05d}", "main", f"GPU-{number}") for number in range(600)]

    assert len(await list_pods(str(kubelet.socket))) == 600


async def test_a_refusal_has_its_reason(kubelet: Kubelet) -> None:
    kubelet.status = "12"

    with pytest.raises(KubeletError, match="status 12: told so"):
        await list_pods(str(kubelet.socket))


async def test_a_kubelet_that_hangs_or_talks_nonsense_is_a_reason_and_no_crash(kubelet: Kubelet) -> None:
    kubelet.silent = True
    with pytest.raises(KubeletError, match="no answer in time"):
        await list_pods(str(kubelet.socket), timeout_s=0.2)

    kubelet.raw = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(KubeletError):
        await list_pods(str(kubelet.socket), timeout_s=0.5)

    kubelet.raw = b""
    with pytest.raises(KubeletError):
        await list_pods(str(kubelet.socket))


async def test_a_socket_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(KubeletError, match="No such file"):
        await list_pods(str(tmp_path / "nothing.sock"))


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\xff" * 12])
def test_broken_messages_are_refused(message: bytes) -> None:
    with pytest.raises(ProtobufError):
        pods_by_device(message)


async def pod_labels(pods: Iterable[bytes], kubelet: Kubelet) -> dict[str, float]:
    kubelet.pods = list(pods)
    backend = WithPods(WaveBoards([0, 1]), str(kubelet.socket), PATTERNS, refresh_s=0.05)
    async with running(backend) as (client, _), client.get("/metrics") as answer:
        page = series(await answer.text())
    return pick(page, "pd_gpu_pod_info", namespace="serving", pod="llm-decode-7", container="vllm", role="decode")


async def test_series_carry_the_pod_and_the_role_that_its_name_says(kubelet: Kubelet) -> None:
    labels = await pod_labels([pod("serving", "llm-decode-7", "vllm", "SIM-wave-1")], kubelet)

    assert labels == {"1": 1.0}


async def test_a_recordings_header_names_the_pod(kubelet: Kubelet) -> None:
    kubelet.pods = [pod("serving", "llm-prefill-0", "vllm", "SIM-wave-0")]
    backend = WithPods(WaveBoards([0]), str(kubelet.socket), PATTERNS)
    async with running(backend) as (client, _), client.get("/gpus") as answer:
        (gpu,) = await answer.json()

    assert (gpu["instance"], gpu["role"]) == ("serving/llm-prefill-0/vllm", Role.PREFILL)


async def test_without_a_kubelet_the_gpus_are_read_all_the_same_and_found_again_later(tmp_path: Path) -> None:
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.pods = [pod("serving", "llm-decode-0", "vllm", "SIM-wave-0")]
    backend = WithPods(WaveBoards([0]), str(kubelet.socket), PATTERNS, refresh_s=0.05)

    without = await backend.sample()
    async with kubelet.serving():
        await until(lambda: bool(backend.pods))
        later = await backend.sample()
    kubelet.socket.unlink(missing_ok=True)
    await until(lambda: not backend.pods)
    gone = await backend.sample()
    await backend.close()

    assert [info.instance for info in without.gpus] == [""]
    assert [sample.role for sample in later.samples] == [Role.DECODE]
    assert [sample.role for sample in gone.samples] == [None]
