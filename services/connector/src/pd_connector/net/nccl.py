"""KV between the GPUs of two nodes by NCCL's send and receive, over RDMA or whatever NCCL finds.

For each push connection there is a communicator of two ranks: prefill, which sends, and decode, which receives. A data connection beside it carries what
the two must agree on. A receive occupies the GPU until its sender sends, so decode posts one only when prefill is about to send: `Write` says what,
and it comes after the KV is gathered. NCCL itself never waits for anything here: its communicators are non-blocking, each wait is a
loop that looks at the time and at the data connection, whose end means that the peer is gone; then the communicator is aborted, which
ends its kernels. All of this happens in the threads of this one peer.

NCCL's one-sided put (`ncclPutSignal`, from 2.29 on) is not used: 2.28, which is torch 2.11's, does not have it.
"""

import logging
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from pd_connector.memory.pages import DEVICE, Memory
from pd_connector.memory.streams import SCRATCH_BYTES
from pd_connector.net.data import DataTransport, hang_up, read_message
from pd_connector.net.libnccl import ID_BYTES, Nccl, NcclError, readable
from pd_connector.net.transport import Invitation, Move, Site, TransportError, neighbours
from pd_connector.settings import Settings
from pd_connector.wire.frames import frame
from pd_connector.wire.messages import Join, Joined, ProtocolError, Write, Written

# A transfer takes milliseconds: first looks come close upon each other, later ones spare the processor.
LOOK_S: Final = 0.0001
LOOK_LATER_S: Final = 0.001
CLOSE_LOOKS: Final = 200
# After an abort the GPU ends what it was doing within milliseconds.
ABORT_S: Final = 10.0
SENDER: Final = 0
RECEIVER: Final = 1
log = logging.getLogger(f"vllm.{__name__}")


class Stream(Protocol):
    """A stream of the GPU of its own, so that a transfer delays nothing else."""

    handle: int

    def mark(self) -> None:
        """Remember what is in the stream now."""
        ...

    def is_over(self) -> bool:
        """Whether everything before the mark is complete.

        Raises:
            RuntimeError: if the GPU reports an error.
        """
        ...

    def close(self) -> None: ...


class Device(Protocol):
    """The GPU.

    Attributes:
        identity: equal only for the same GPU.
        scratch: address of `SCRATCH_BYTES` for anything.
    """

    identity: str
    scratch: int

    def enter_thread(self) -> None:
        """Called first in every thread that uses it."""
        ...

    def stream(self) -> Stream: ...

    def wait(self, mark: Any) -> None:
        """Sleep until a copier's mark has passed."""
        ...


class Partner:
    """The data connection to the other rank, as a clock that stops when the peer leaves."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is connected; another thread may shut it down."""
        self.sock = sock
        self._looks = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def pause(self, deadline: float, what: str) -> None:
        """Wait for a moment.

        Raises:
            TimeoutError: if it is too late for `what`.
            EOFError: if the peer is gone, or this end was aborted.
        """
        if time.monotonic() > deadline:
            msg = f"{what} took too long"
            raise TimeoutError(msg)
        self._looks += 1
        seconds = LOOK_S if self._looks < CLOSE_LOOKS else LOOK_LATER_S
        if self._poll.poll(0) and not self.sock.recv(1, socket.MSG_PEEK):
            raise EOFError
        time.sleep(seconds)  # a message may be there already: it is read when its turn comes

    def rest(self) -> None:
        """The next pauses are short again."""
        self._looks = 0

    def read(self, deadline: float) -> Any:
        """The next message.

        Raises:
            EOFError, ProtocolError, OSError: if none comes in time.
        """
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        return read_message(self.sock)


class Communicator:
    """Two ranks of NCCL, one here and one in the peer's process. Used by one thread."""

    def __init__(self, nccl: Nccl, device: Device, partner: Partner) -> None:
        self._nccl = nccl
        self._device = device
        self._partner = partner
        self._stream = device.stream()
        self._handle = 0
        self._ended = False

    def join(self, identity: bytes, rank: int, blocks: int, deadline: float) -> None:
        """Set up NCCL together with the other rank, and move some bytes, which opens NCCL's connections and shows that they work.

        Raises:
            NcclError, TimeoutError, EOFError: if that fails.
        """
        self._handle = self._nccl.begin(identity, rank, blocks)
        self._settle(deadline, "setting up NCCL")
        (self.send if rank == SENDER else self.receive)([(self._device.scratch, SCRATCH_BYTES)], deadline)

    def send(self, runs: Sequence[tuple[int, int]], deadline: float) -> None:
        """Send these addresses and sizes; the bytes may be on their way when this returns."""
        self._nccl.send(runs, self._handle, self._stream.handle)
        self._finish(deadline)

    def receive(self, runs: Sequence[tuple[int, int]], deadline: float) -> None:
        """Receive into these addresses; the bytes are there when this returns."""
        self._nccl.receive(runs, self._handle, self._stream.handle)
        self._finish(deadline)

    def _settle(self, deadline: float, what: str) -> None:
        self._partner.rest()
        while self._nccl.is_busy(self._handle):
            self._partner.pause(deadline, what)

    def _finish(self, deadline: float) -> None:
        self._settle(deadline, "starting a transfer")  # until then it is not in the stream
        self._stream.mark()
        while not self._stream.is_over():
            self._nccl.is_busy(self._handle)
            self._partner.pause(deadline, "a transfer")

    def end(self) -> None:
        """Abort whatever goes on, and wait until the GPU has ended it: then nothing reads or writes memory for it any more."""
        if self._ended:
            return
        self._ended = True
        try:
            if self._handle:
                self._nccl.abort(self._handle)
        except NcclError:
            log.exception("P2pConnector: NCCL does not abort")
        try:
            self._stream.mark()
            begun, late = time.monotonic(), False
            while not self._stream.is_over():
                if not late and time.monotonic() - begun > ABORT_S:
                    late = True
                    log.error("P2pConnector: NCCL was aborted, but its work on the GPU does not end")
                time.sleep(LOOK_LATER_S)
            self._stream.close()
        except RuntimeError:
            log.exception("P2pConnector: the GPU reports an error")


def explained(error: BaseException) -> TransportError:
    """Why a transfer failed."""
    return TransportError(f"nccl: {str(error) or 'decode ended the connection'}")


# ProtocolError and TimeoutError are kinds of OSError, NcclError and CudaError of RuntimeError.
FAULTS: Final = (OSError, EOFError, RuntimeError)


class NcclWriter:
    """Prefill's end."""

    alone = True

    def __init__(
        self, partner: Partner, communicator: Communicator, device: Device, staging: Memory, timeout_s: float
    ) -> None:
        """The communicator is set up."""
        self._partner = partner
        self._communicator = communicator
        self._device = device
        self._staging = staging
        self._timeout_s = timeout_s

    def write(self, moves: list[Move]) -> float:
        """Wait until the KV is gathered, announce it, send it, and wait for the answer."""
        page, base = self._staging.page_bytes, self._staging.address(0)
        runs = neighbours(moves, page)
        try:
            for mark in {id(move.mark): move.mark for move in moves if move.mark is not None}.values():
                self._device.wait(mark)
            begun = time.perf_counter()
            deadline = time.monotonic() + self._timeout_s
            write = Write(pages=[target // page for _, target, _ in runs], sizes=[size for _, _, size in runs])
            self._partner.sock.settimeout(self._timeout_s)
            self._partner.sock.sendall(frame(write))
            self._communicator.send([(base + source, size) for source, _, size in runs], deadline)
            if not isinstance(self._partner.read(deadline), Written):
                msg = "decode answered something else"
                raise ProtocolError(msg)
        except FAULTS as error:
            raise explained(error) from error  # `close` aborts NCCL: nothing that fails now needs to wait for that
        return time.perf_counter() - begun

    def abort(self) -> None:
        """Wake the thread that waits for the peer, which then aborts NCCL."""
        hang_up(self._partner.sock)

    def close(self) -> None:
        self._communicator.end()
        self._partner.sock.close()


class NcclTransport(DataTransport):
    """Engines with a GPU each."""

    name = "nccl"
    kind = DEVICE

    def __init__(self, boot: str, address: str, nccl: Nccl, device: Device, settings: Settings) -> None:
        super().__init__(boot, address)
        self._nccl = nccl
        self._device = device
        self._settings = settings

    # Prefill

    def open(self, invitation: Invitation, staging: Memory) -> NcclWriter:
        """Set up a communicator together with decode."""
        reason = unfit(invitation.details, self._nccl.version, self._device.identity)
        if reason:
            msg = f"nccl: {reason}"
            raise TransportError(msg)
        self._device.enter_thread()
        partner = Partner(self.connect(invitation))
        begun = time.monotonic()
        deadline = begun + self._settings.join_timeout_s
        communicator: Communicator | None = None
        try:
            communicator = Communicator(self._nccl, self._device, partner)
            identity = self._nccl.unique_id()
            partner.sock.sendall(frame(Join(id=identity)))
            communicator.join(identity, SENDER, self._settings.nccl_blocks, deadline)
            if not isinstance(partner.read(deadline), Joined):
                msg = "decode answered something else"
                raise ProtocolError(msg)
        except FAULTS as error:
            hang_up(partner.sock)
            arguments = (self._device, partner, communicator)
            threading.Thread(target=_clear_up, args=arguments, name="pd-nccl-end", daemon=True).start()
            raise explained(error) from error
        log.info(
            "P2pConnector joined %s over NCCL %s in %.1f s",
            invitation.address,
            readable(self._nccl.version),
            time.monotonic() - begun,
        )
        return NcclWriter(partner, communicator, self._device, staging, invitation.put_timeout_s)

    # Decode

    def listen(self, site: Site) -> dict[str, str]:
        """Prefill must know what NCCL needs to be equal, or different, at both ends."""
        super().listen(site)
        site.landing()
        return {"version": str(self._nccl.version), "gpu": self._device.identity}

    def serve(self, session: str, sock: socket.socket, site: Site) -> None:
        """Set up a communicator together with prefill, and receive until the connection ends; then abort NCCL."""
        communicator: Communicator | None = None
        try:
            self._device.enter_thread()
            partner = Partner(sock)
            communicator = Communicator(self._nccl, self._device, partner)
            self._follow(partner, communicator)
            sock.sendall(frame(Joined()))
            while True:
                sock.settimeout(None)
                runs = asked(read_message(sock), session, site)
                communicator.receive(runs, time.monotonic() + self._settings.put_timeout_s)
                sock.sendall(frame(Written()))
        except (RuntimeError, TimeoutError) as error:
            log.warning("P2pConnector takes no more KV of a peer over nccl: %s", error)
        finally:
            hang_up(sock)  # prefill need not wait until the GPU has ended
            if communicator is not None:
                communicator.end()

    def _follow(self, partner: Partner, communicator: Communicator) -> None:
        deadline = time.monotonic() + self._settings.join_timeout_s
        message = partner.read(deadline)
        if not isinstance(message, Join) or len(message.id) != ID_BYTES:
            msg = "no join"
            raise ProtocolError(msg)
        communicator.join(message.id, RECEIVER, self._settings.nccl_blocks, deadline)


def unfit(details: Mapping[str, str], version: int, gpu: str) -> str:
    """Why NCCL cannot work with a decode engine that offers this; empty if it may."""
    theirs = details.get("version", "")
    if theirs != str(version):
        there = readable(int(theirs)) if theirs.isdigit() else "an unknown version"
        return (
            f"decode has NCCL {there} and this engine {readable(version)}, and NCCL works only between equal versions"
        )
    if details.get("gpu") == gpu:
        return "both engines are on one GPU, which NCCL refuses"
    return ""


def asked(message: object, session: str, site: Site) -> list[tuple[int, int]]:
    """The addresses and sizes to receive for a `Write`.

    Raises:
        ProtocolError: if it is none, or its pages are not the session's to write.
    """
    if not isinstance(message, Write) or len(message.pages) != len(message.sizes):
        msg = "no write"
        raise ProtocolError(msg)
    landing = site.landing()
    runs = list(zip(message.pages, message.sizes, strict=True))
    pages = [page for first, size in runs for page in range(first, first - (-size // landing.page_bytes))]
    if any(size <= 0 for _, size in runs) or len(set(pages)) < len(pages) or not site.may_write(session, pages):
        msg = "a write to pages that it was not given"
        raise ProtocolError(msg)
    return [(landing.address(first), size) for first, size in runs]


def _clear_up(device: Device, partner: Partner, communicator: Communicator | None) -> None:
    device.enter_thread()
    if communicator is not None:
        communicator.end()
    partner.sock.close()
