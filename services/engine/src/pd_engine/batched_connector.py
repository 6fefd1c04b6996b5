"""P2pNcclConnector that sends a request's KV in one piece, and whose decode never waits for it inside a step.

vLLM 0.23's own connector sends each layer by itself, with a round trip for each, and its decode waits for them within the step: while one
request's KV is on its way, or lost, every other request stands still. Here prefill gathers all layers of a request into one
buffer, which is sent beside the next step; decode takes requests up when their KV has come (vLLM's asynchronous loading), and computes a
prompt itself whose KV does not come. It speaks a protocol of its own between the engines, so both must use it; to the proxy nothing changes:
ids, ports and pings are upstream's. vLLM loads this class by `kv_connector_module_path`; it must carry the connector's name.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import torch
import zmq
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.p2p import p2p_nccl_connector as upstream
from vllm.distributed.kv_transfer.kv_connector.v1.p2p import p2p_nccl_engine as transport
from vllm.logger import init_logger

from pd_engine.kv_loads import LOAD_TIMEOUT_S, Load, Loads

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only what lies below its own name

# Gathered KV that waits to be sent; when there is more, prefill's next step waits.
SEND_QUEUE_BYTES: Final = 2 * 1024**3
ANSWER_TIMEOUT_MS: Final = 10_000
RETRY_S: Final = 0.005
# Decode's answers to an announced buffer.
COME, NO_MEMORY, STRANGER, LATER = b"0", b"1", b"2", b"3"


class Metadata(upstream.P2pNcclConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What a step's workers are told; `requests` (upstream's) is what prefill sends."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[str] = []
        self.loads: list[Load] = []
        self.declined: list[str] = []


@dataclass
class Parcel:
    """One request's KV on its way; `ready` is when the GPU has gathered it."""

    request_id: str
    remote_address: str
    tensor: torch.Tensor
    ready: torch.cuda.Event


class Transport(transport.P2pNcclEngine):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Upstream's sockets, communicators and pings, with one message per request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._room = threading.Condition()
        self._queued = 0
        super().__init__(*args, **kwargs)
        # The copy's kernels come before the model's, which keep a busy GPU full.
        self.send_stream = torch.cuda.Stream(priority=-1)
        self.recv_stream = torch.cuda.Stream(priority=-1)

    def push(self, request_id: str, tensor: torch.Tensor, remote_address: str) -> None:
        """Send a buffer when the GPU has filled it; waits only if too much waits already."""
        ready = torch.cuda.Event()
        ready.record()
        with self._room:
            self._room.wait_for(lambda: not self._queued or self._queued + tensor.nbytes <= SEND_QUEUE_BYTES)
            self._queued += tensor.nbytes
        with self.send_queue_cv:
            self.send_queue.append(Parcel(request_id, remote_address, tensor, ready))
            self.send_queue_cv.notify()

    def send_sync(self, item: Parcel) -> bool:
        """Called by upstream's sending thread, which must survive whatever happens here."""
        try:
            # Before decode is asked to receive: its kernel occupies the GPU while it waits.
            item.ready.synchronize()
            return self._send(item)
        except (RuntimeError, zmq.ZMQError):
            logger.exception("KV of %s was not sent to %s", item.request_id, item.remote_address)
            self._forget(item.remote_address)
            return False
        finally:
            with self._room:
                self._queued -= item.tensor.nbytes
                self._room.notify()

    def _send(self, item: Parcel) -> bool:
        announcement = msgpack.dumps({"cmd": "PUT", "request_id": item.request_id, "bytes": item.tensor.nbytes})
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < deadline:
            sock, (comm, rank) = self.create_connect(item.remote_address)
            sock.send(announcement)
            answer = sock.recv()
            if answer == COME:
                self.send(comm, item.tensor, rank ^ 1, self.send_stream)
                return True
            if answer == NO_MEMORY:
                break
            if answer == STRANGER:
                self._forget(item.remote_address)  # it has restarted
            else:
                time.sleep(RETRY_S)
        logger.error("%s has no room for the KV of %s", item.remote_address, item.request_id)
        return False

    def create_connect(self, remote_address: str | None = None) -> tuple[Any, Any]:
        """Socket and communicator to another engine; made at the first call."""
        known = remote_address in self.socks
        found: tuple[Any, Any] = super().create_connect(remote_address)
        if not known:
            found[0].setsockopt(zmq.RCVTIMEO, ANSWER_TIMEOUT_MS)
        return found

    def _forget(self, remote_address: str) -> None:
        sock = self.socks.pop(remote_address, None)
        if sock is not None:
            sock.close(linger=0)
        self.comms.pop(remote_address, None)

    def listen_for_requests(self) -> None:
        # A sender that had to begin anew comes under the name of its old connection.
        self.router_socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        while True:
            sender, *parts = self.router_socket.recv_multipart()
            try:
                self._hear(sender, msgpack.loads(b"".join(parts)))
            except (RuntimeError, ValueError, KeyError, TypeError):
                # A peer that broke off, or no peer at all: this thread serves all others, and whoever it was may join anew.
                logger.exception("a message of %r could not be served", sender)
                self.comms.pop(sender.decode(errors="replace"), None)

    def _hear(self, sender: bytes, data: Any) -> None:
        if data["cmd"] == "NEW":
            self._join(sender.decode(), bytes(data["unique_id"]))
        else:
            self._take(sender, data["request_id"], data["bytes"])

    def _join(self, remote_address: str, unique_id: bytes) -> None:
        with torch.accelerator.device_index(self.device.index), transport.set_p2p_nccl_context(self.nccl_num_channels):
            comm = self.nccl.ncclCommInitRank(2, self.nccl.unique_id_from_bytes(unique_id), 1)
        self.comms[remote_address] = (comm, 1)
        logger.info("%s joined %s", remote_address, self.zmq_address)

    def _take(self, sender: bytes, request_id: str, size: int) -> None:
        if sender.decode() not in self.comms:
            self._answer(sender, STRANGER)
        elif self.buffer_size and self.buffer_size + size > self.buffer_size_threshold:
            self._answer(sender, LATER)
        else:
            try:
                with torch.cuda.stream(self.recv_stream):
                    tensor = torch.empty(size, dtype=torch.uint8, device=self.device)
            except torch.cuda.OutOfMemoryError:
                self._answer(sender, NO_MEMORY)
                return
            self._answer(sender, COME)
            comm, rank = self.comms[sender.decode()]
            self.recv(comm, tensor, rank ^ 1, self.recv_stream)
            with self.recv_store_cv:
                before = self.recv_store.get(request_id)  # of an earlier request with this id
                self.buffer_size += size - (before.nbytes if before is not None else 0)
                self.recv_store[request_id] = tensor

    def _answer(self, sender: bytes, answer: bytes) -> None:
        self.router_socket.send_multipart([sender, answer])

    def pop(self, request_id: str) -> torch.Tensor | None:
        """What came for a request, if it is still here; the caller uses it on the current stream."""
        with self.recv_store_cv:
            tensor: torch.Tensor | None = self.recv_store.pop(request_id, None)
            if tensor is None:
                return None
            self.buffer_size -= tensor.nbytes
        tensor.record_stream(torch.cuda.current_stream())
        return tensor


class P2pNcclConnector(upstream.P2pNcclConnector):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Upstream's connector to vLLM's scheduler and to the proxy, with `Transport` in between."""

    # The worker's transport, if the scheduler runs in the same process (one GPU per engine).
    _beside: Transport | None = None

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super(upstream.P2pNcclConnector, self).__init__(
            vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config
        )
        self._block_size = vllm_config.cache_config.block_size
        self.is_producer = self._kv_transfer_config.is_kv_producer
        self.chunked_prefill: dict[str, Any] = {}
        self._requests_need_load: dict[str, Any] = {}  # upstream's code looks into it
        self._asked: set[str] = set()
        self._next = Metadata()
        self._loads = Loads()
        self._layers: list[torch.Tensor] = []
        self._block_bytes = 0  # of all layers
        self._invalid: set[int] = set()
        self._rank = 0
        self.p2p_nccl_engine: Transport | None = None
        if role == KVConnectorRole.WORKER:
            self._become_worker()

    def _become_worker(self) -> None:
        world = upstream.get_world_group()
        self._rank = world.rank
        self.p2p_nccl_engine = Transport(
            local_rank=world.local_rank, config=self._kv_transfer_config, hostname="", port_offset=world.rank
        )
        if world.world_size == 1:
            P2pNcclConnector._beside = self.p2p_nccl_engine

    # Scheduler's side

    def on_new_request(self, request: Any) -> None:
        """Decode has heard of a request, which may wait for a place."""
        if not self.is_producer and self._address(request.request_id) is not None:
            self._next.known.append(request.request_id)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens that prefill computed, but for the last, and whether they are still on their way."""
        if self.is_producer or request.request_id in self._asked or self._address(request.request_id) is None:
            return 0, False
        tokens = len(request.prompt_token_ids or ()) - 1 - num_computed_tokens
        return (tokens, not self._is_here(request.request_id)) if tokens > 0 else (0, False)

    def _is_here(self, request_id: str) -> bool:
        return self._beside is not None and request_id in self._beside.recv_store

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Load what prefill sends into these blocks, once; a request that was preempted is computed again."""
        request_id = request.request_id
        if self.is_producer or request_id in self._asked or self._address(request_id) is None:
            return
        self._asked.add(request_id)
        if num_external_tokens <= 0:
            self._next.declined.append(request_id)
            return
        cached = len(request.prompt_token_ids) - 1 - num_external_tokens
        load = Load(
            request_id, list(blocks.get_block_ids()[0]), cached // self._block_size, ready=self._is_here(request_id)
        )
        self._next.loads.append(load)

    def build_connector_meta(self, scheduler_output: Any) -> Metadata:
        """What the workers do in this step."""
        meta, self._next = self._next, Metadata()
        if self.is_producer:
            meta.requests = super().build_connector_meta(scheduler_output).requests
        return meta

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Nothing keeps a request's blocks: what prefill sends is a copy."""
        if request.request_id in self._asked:
            self._asked.remove(request.request_id)
        elif not self.is_producer and self._address(request.request_id) is not None:
            self._next.declined.append(request.request_id)  # it ended before it was scheduled
        found: tuple[bool, dict[str, Any] | None] = super().request_finished(request, block_ids)
        return found

    # Workers' side

    @property
    def _transport(self) -> Transport:
        if self.p2p_nccl_engine is None:
            msg = "the scheduler's half of a connector has no transport"
            raise RuntimeError(msg)
        return self.p2p_nccl_engine

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The layers, in an order that both sides have."""
        self._layers = [kv_caches[name] for name in sorted(kv_caches)]
        self._block_bytes = sum(layer[:1].nbytes for layer in self._layers)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:  # noqa: ARG002  upstream's signature
        """Put KV that is here into its blocks before the step, and expect the rest."""
        meta = self._get_connector_metadata()
        for request_id in meta.known:
            self._loads.know(request_id)
        for request_id in meta.declined:
            self._loads.decline(request_id)
        for load in meta.loads:
            if load.ready:
                self._loads.use(load.request_id)
                self._unpack(load)
            else:
                self._loads.expect(load, time.monotonic())

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """All layers go together, after the last."""

    def wait_for_save(self) -> None:
        """Gather what this step computed, and have it sent."""
        if not self.is_producer:
            return
        for request in self._get_connector_metadata().requests:
            address = self._address(request.request_id)
            if address is not None:
                self._transport.push(request.request_id, self._pack(request.block_ids), address)

    def get_finished(self, finished_req_ids: set[str], **kwargs: Any) -> tuple[set[str] | None, set[str] | None]:  # noqa: ARG002  upstream's signature
        """Requests whose KV is in its blocks, or that wait for none any more."""
        if self.is_producer:
            return None, None
        outcome = self._loads.look(list(self._transport.recv_store), finished_req_ids, time.monotonic())
        for load in outcome.arrived:
            self._unpack(load)
        for load in outcome.overdue:
            logger.warning("KV of %s did not come; its prompt is computed here", load.request_id)
            self._invalid.update(load.block_ids[load.skip :])
        for request_id in outcome.unwanted:
            self._transport.pop(request_id)
        done = outcome.abandoned | {load.request_id for load in (*outcome.arrived, *outcome.overdue)}
        return None, done or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that stayed empty since the last call."""
        invalid, self._invalid = self._invalid, set()
        return invalid

    def _address(self, request_id: str) -> str | None:
        """The other engine's, from the id; None for a request that is no half of a pair's."""
        try:
            host, port = self.parse_request_id(request_id, self.is_producer)
        except ValueError:
            return None
        return f"{host}:{port + self._rank}"

    def _pack(self, block_ids: torch.Tensor) -> torch.Tensor:
        index = block_ids.to(self._layers[0].device)
        packed = torch.empty(self._block_bytes * len(index), dtype=torch.uint8, device=index.device)
        for layer, piece in self._pieces(packed, len(index)):
            torch.index_select(layer, 0, index, out=piece)
        return packed

    def _unpack(self, load: Load) -> None:
        packed = self._transport.pop(load.request_id)
        if packed is None:  # dropped after the scheduler saw it, as that of an earlier request with this id
            self._invalid.update(load.block_ids[load.skip :])
            return
        sent = packed.nbytes // self._block_bytes
        # Decode may not have a block yet for the prompt's last token, which it computes itself.
        end = min(sent, len(load.block_ids))
        index = torch.tensor(load.block_ids[load.skip : end], device=packed.device)
        for layer, piece in self._pieces(packed, sent):
            layer[index] = piece[load.skip : end]

    def _pieces(self, packed: torch.Tensor, blocks: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each layer with its part of a packed buffer, as `[blocks, …]`."""
        offset = 0
        for layer in self._layers:
            size = layer[:1].nbytes * blocks
            yield layer, packed[offset : offset + size].view(layer.dtype).view(blocks, *layer.shape[1:])
            offset += size
