"""KV into another process's GPU memory on the same node, over NVLink or PCIe, by the copy engines. The processes only share a folder.

Decode's landing memory is made with CUDA's virtual memory management. Its file descriptor goes to prefill over a UNIX socket in that folder, and prefill maps
it. While the socket's connection is open, prefill may write; its end tells decode that prefill no longer can.
"""

import array
import contextlib
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final

import torch

from pd_connector.memory.cumem import CudaError, DeviceMemory, Driver, Mapping
from pd_connector.memory.gpu import Streams
from pd_connector.memory.pages import DEVICE, Memory
from pd_connector.net.transport import Invitation, Move, Site, TransportError, neighbours

NAME_BYTES: Final = 128
log = logging.getLogger(f"vllm.{__name__}")


class VmmWriter:
    """Prefill's end: decode's landing memory, mapped."""

    alone = False

    def __init__(
        self, sock: socket.socket, driver: Driver, streams: Streams, landing: Mapping, staging: DeviceMemory
    ) -> None:
        """`sock` is the UNIX connection, which tells decode that this end may write."""
        self._sock = sock
        self._driver = driver
        self._streams = streams
        self._landing = landing
        self._staging = staging

    def write(self, moves: list[Move]) -> float:
        """Copy, adjacent pages together, and sleep until it is done."""
        stream = self._streams.stream
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True, blocking=True)
        try:
            for mark in {id(move.mark): move.mark for move in moves if move.mark is not None}.values():
                stream.wait_event(mark)
            begin.record(stream)
            for source, target, size in neighbours(moves, self._staging.page_bytes):
                self._driver.copy(
                    self._landing.address + target, self._staging.mapping.address + source, size, stream.cuda_stream
                )
            end.record(stream)
            end.synchronize()
        except (CudaError, RuntimeError) as error:
            msg = f"vmm: {error}"
            raise TransportError(msg) from error
        return float(begin.elapsed_time(end)) / 1000

    def abort(self) -> None:
        """A copy on the GPU ends by itself, whatever happens to the other process."""

    def close(self) -> None:
        """Unmap the memory, then close the socket, which tells decode."""
        try:
            self._landing.close()
        except CudaError as error:
            log.warning("P2pConnector: %s", error)
        self._sock.close()


class VmmTransport:
    """Engines of one node that share a folder."""

    name = "vmm"
    kind = DEVICE

    def __init__(self, boot: str, rank: int, folder: str, device: torch.device) -> None:
        """`folder` holds the sockets; every engine of the node that takes part must see it."""
        self._path = Path(folder) / f"{boot[:16]}-{rank}.sock"
        self._device = device
        self._driver = Driver()
        self._streams = Streams(device)
        self._site: Site | None = None
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._sessions: dict[str, socket.socket | None] = {}

    # Prefill

    def open(self, invitation: Invitation, staging: Memory) -> VmmWriter:
        """Fetch the descriptor and map its memory."""
        torch.cuda.set_device(self._device)
        path, size = invitation.details.get("socket", ""), int(invitation.details.get("bytes", "0"))
        if not isinstance(staging, DeviceMemory):
            msg = "vmm sends from the GPU's memory"
            raise TransportError(msg)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(invitation.timeout_s)
            sock.connect(path)
            sock.sendall(invitation.session.encode().ljust(NAME_BYTES))
            descriptor = _receive_descriptor(sock)
            try:
                landing = Mapping.imported(self._driver, self._device.index or 0, descriptor, size)
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            sock.close()
            msg = f"vmm: {path} does not exist: decode is on another node, or the engines do not share `socket_folder`"
            raise TransportError(msg) from error
        except (OSError, EOFError, CudaError, ValueError) as error:
            sock.close()
            msg = f"vmm: {error or 'decode gave no descriptor'} ({path})"
            raise TransportError(msg) from error
        return VmmWriter(sock, self._driver, self._streams, landing, staging)

    # Decode

    def listen(self, site: Site) -> dict[str, str]:
        self._site = site
        landing = site.landing()
        if not isinstance(landing, DeviceMemory):
            msg = "vmm takes KV into the GPU's memory"
            raise TransportError(msg)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self._path.parent)
            self._listener = socket.socket(socket.AF_UNIX)
            begun = self._path.with_suffix(".new")
            self._listener.bind(str(begun))
            begun.chmod(0o666)  # engines may run as different users; the secret session name admits them
            self._listener.listen(64)
            # Before listening it would look like a dead engine's socket to another engine that starts.
            begun.rename(self._path)
        except OSError as error:
            msg = f"no socket in {self._path.parent}: {error}"
            raise TransportError(msg) from error
        threading.Thread(target=self._accept, args=(self._listener, landing), name="pd-vmm", daemon=True).start()
        return {"socket": str(self._path), "bytes": str(landing.mapping.size)}

    def adopt(self, session: str, sock: socket.socket | None) -> None:  # noqa: ARG002  the interface
        """A session may ask for the descriptor."""
        with self._lock:
            self._sessions.setdefault(session, None)

    def end(self, session: str) -> None:
        """The session's connection broke. If its peer has mapped memory, the end of its UNIX connection tells when it has unmapped it."""
        with self._lock:
            if self._sessions.get(session) is not None:
                return
            self._sessions.pop(session, None)
        if self._site is not None:
            self._site.quiet(session)

    def stop(self) -> None:
        """Close and remove the socket."""
        if self._listener is not None:
            with contextlib.suppress(OSError):  # not connected: shutting down only wakes the thread
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._path.unlink(missing_ok=True)
        with self._lock:
            for sock in self._sessions.values():
                if sock is not None:
                    with contextlib.suppress(OSError):  # it has ended by itself
                        sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket, landing: DeviceMemory) -> None:
        torch.cuda.set_device(self._device)
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # the engine ends
            threading.Thread(target=self._serve, args=(sock, landing), name="pd-vmm-peer", daemon=True).start()

    def _serve(self, sock: socket.socket, landing: DeviceMemory) -> None:
        """Send the descriptor, then wait until the peer closes."""
        torch.cuda.set_device(self._device)
        session = ""
        try:
            sock.settimeout(5)
            session = self._admit(sock)
            if session:
                _send_descriptor(sock, landing)
                sock.settimeout(None)
                while sock.recv(16):
                    pass  # a peer sends nothing here
        except (OSError, CudaError) as error:
            log.warning("P2pConnector: a peer of %s: %s", self._path, error)
        sock.close()
        with self._lock:
            known = session and self._sessions.pop(session, None) is not None
        if known and self._site is not None:
            self._site.quiet(session)

    def _admit(self, sock: socket.socket) -> str:
        name = sock.recv(NAME_BYTES, socket.MSG_WAITALL).decode(errors="replace").strip()
        with self._lock:
            if self._sessions.get(name, sock) is not None:
                return ""  # left over from an earlier session, or in use
            self._sessions[name] = sock
        return name


def _send_descriptor(sock: socket.socket, memory: DeviceMemory) -> None:
    descriptor = memory.mapping.export()
    try:
        rights: Any = array.array("i", [descriptor])
        sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        os.close(descriptor)


def _receive_descriptor(sock: socket.socket) -> int:
    _, extra, _, _ = sock.recvmsg(1, socket.CMSG_LEN(array.array("i").itemsize))
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[: array.array("i").itemsize])[0]
    raise EOFError


def _sweep(folder: Path) -> None:
    """Remove sockets of engines that were killed."""
    for path in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # in use, or owned by another user
