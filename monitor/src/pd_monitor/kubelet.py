"""One gRPC call over a UNIX socket, and the back end that keeps asking it beside the samples."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from pd_contracts.names import Role
from pd_monitor.pods import Pod, pods_by_device, with_pods
from pd_monitor.reading import Backend, Reading

REFRESH_S: Final = 10.0
_TIMEOUT_S: Final = 5.0
_READ_BYTES: Final = 64 << 10
_MOST_BYTES: Final = 16 << 20
# gRPC puts a byte "compressed" and four of length before a message.
_PREFIX_BYTES: Final = 5
_LIST: Final = "/v1.PodResourcesLister/List"

_log = logging.getLogger(__name__)


class KubeletError(Exception):
    """The kubelet did not answer; the message is the reason."""


async def list_pods(socket_path: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Pod]:
    """Device id to pod, as the kubelet knows now.

    Raises:
        KubeletError: if it does not say.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return pods_by_device(await _call(socket_path, _LIST))
    except TimeoutError as error:
        msg = "no answer in time"
        raise KubeletError(msg) from error
    except OSError as error:
        msg = f"{socket_path}: {error.strerror or error}"
        raise KubeletError(msg) from error
    except (h2.exceptions.ProtocolError, ValueError) as error:
        msg = f"an invalid answer: {error}"
        raise KubeletError(msg) from error


async def _call(socket_path: str, method: str) -> bytes:
    """Call a method with an empty message; the answer's message."""
    reader, writer = await asyncio.open_unix_connection(socket_path)
    try:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
        headers |= {"content-type": "application/grpc", "te": "trailers", "user-agent": "pd-monitor"}
        connection.send_headers(1, list(headers.items()))
        connection.send_data(1, bytes(_PREFIX_BYTES), end_stream=True)
        writer.write(connection.data_to_send())
        body, status = await _answer(connection, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # the other end may have closed first
            await writer.wait_closed()
    if status.get("grpc-status", "0") != "0":
        msg = f"status {status['grpc-status']}: {status.get('grpc-message', '')}"
        raise KubeletError(msg)
    if len(body) < _PREFIX_BYTES or body[0] != 0 or int.from_bytes(body[1:_PREFIX_BYTES]) != len(body) - _PREFIX_BYTES:
        msg = f"an answer of {len(body)} bytes that is not a message"
        raise KubeletError(msg)
    return body[_PREFIX_BYTES:]


async def _answer(
    connection: h2.connection.H2Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, dict[str, str]]:
    body, status = bytearray(), dict[str, str]()
    while data := await reader.read(_READ_BYTES):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                status |= {str(name): str(value) for name, value in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                body += event.data or b""
                connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            elif isinstance(event, h2.events.StreamEnded):
                return bytes(body), status
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                msg = f"it ended the call: {event.error_code}"
                raise KubeletError(msg)
        writer.write(connection.data_to_send())
        if len(body) > _MOST_BYTES:
            break
    msg = "it closed the connection, or does not end"
    raise KubeletError(msg)


class WithPods:
    """A back end whose GPUs are named after the pods that have them."""

    def __init__(
        self, inner: Backend, socket_path: str, patterns: Sequence[tuple[Role, str]], refresh_s: float = REFRESH_S
    ) -> None:
        self.pods: dict[str, Pod] = {}
        self.problem = ""
        self._inner = inner
        self._socket_path = socket_path
        self._patterns = patterns
        self._refresh_s = refresh_s
        self._asking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def simulated(self) -> bool:
        return self._inner.simulated

    async def sample(self) -> Reading:
        """Read every GPU; the pods are those of the last answer, for the kubelet must not hold up a sample."""
        if self._asking is None:
            await self._refresh()
            self._asking = asyncio.create_task(self._keep_asking())
        return with_pods(await self._inner.sample(), self.pods, self._patterns)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # our own cancellation
                await self._asking
        await self._inner.close()

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            self.pods = await list_pods(self._socket_path)
            problem = ""
        except KubeletError as error:
            # A pod that ended would keep its GPU's joules forever.
            self.pods = {}
            problem = str(error)
        if problem != self.problem:
            _log.log(logging.WARNING if problem else logging.INFO, "pods by GPU", extra={"reason": problem or "known"})
        self.problem = problem
