"""The copiers and transports of a worker, chosen by the device of vLLM's KV cache."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from pd_connector.engine.compat import RefusalError
from pd_connector.memory.host import HostCopier
from pd_connector.memory.layout import Layout
from pd_connector.memory.pages import HOST, Copier, HostMemory, Memory
from pd_connector.memory.streams import SCRATCH_BYTES, NvidiaGpu
from pd_connector.net.handshake import Identity
from pd_connector.net.libnccl import Nccl, NcclError
from pd_connector.net.nccl import NcclTransport
from pd_connector.net.tcp import TcpTransport
from pd_connector.net.transport import Transport
from pd_connector.settings import GIB, Settings

log = logging.getLogger(f"vllm.{__name__}")


class Hardware(Protocol):
    """The device of the KV cache, and the ways to copy from it."""

    copier: Copier

    def transports(self, identity: Identity) -> dict[str, Transport]:
        """The transports that exist on this device, by name."""
        ...

    def memory(self, kind: str, pages: int, page_bytes: int) -> Memory:
        """Pages for KV on its way.

        Raises:
            RefusalError: if there is no memory for them.
        """
        ...


def hardware_of(kv_caches: Mapping[str, Any], layout: Layout, settings: Settings) -> Hardware:
    """The hardware of vLLM's tensors."""
    tensors = list(kv_caches.values())
    if tensors[0].device.type == "cuda":
        return Gpu(tensors, layout, settings)
    return Cpu(tensors, layout)


class Cpu:
    """vLLM on the CPU."""

    def __init__(self, tensors: list[Any], layout: Layout) -> None:
        self.copier: Copier = HostCopier(layout, tensors)

    def transports(self, identity: Identity) -> dict[str, Transport]:
        return {"tcp": TcpTransport(identity.boot, identity.address)}

    def memory(self, kind: str, pages: int, page_bytes: int) -> Memory:  # noqa: ARG002  there is one kind
        return HostMemory(pages, page_bytes)


class Gpu:
    """vLLM on an NVIDIA GPU."""

    def __init__(self, tensors: list[Any], layout: Layout, settings: Settings) -> None:
        """Compile the kernels.

        Raises:
            RefusalError: if the KV cache cannot be copied by them.
        """
        # Imported here, because these need a GPU.
        import torch  # noqa: PLC0415

        from pd_connector.memory.cumem import Driver  # noqa: PLC0415
        from pd_connector.memory.gpu import GpuCopier  # noqa: PLC0415

        self._torch = torch
        self._settings = settings
        self._device = tensors[0].device
        torch.cuda.set_device(self._device)  # vLLM's device; kernels are launched on the current one
        self._driver = Driver()
        try:
            copier = GpuCopier(layout, self._device, tensors)
        except ValueError as error:
            msg = f"P2pConnector cannot move this model's KV: {error}"
            raise RefusalError(msg) from error
        scratch = torch.empty(layout.row_bytes + 16, dtype=torch.uint8, device=self._device)
        copier.warm_up(-(-scratch.data_ptr() // 16) * 16)
        self.copier: Copier = copier

    def transports(self, identity: Identity) -> dict[str, Transport]:
        """The same node's GPUs, NCCL if there is one, and TCP."""
        from pd_connector.net.vmm import VmmTransport  # noqa: PLC0415  needs a GPU

        vmm = VmmTransport(identity.boot, identity.rank, self._settings.socket_folder, self._device)
        found: dict[str, Transport] = {"vmm": vmm, "tcp": TcpTransport(identity.boot, identity.address)}
        if "nccl" in self._settings.transports:
            try:
                nccl = Nccl(self._settings.nccl_library)
            except NcclError as error:
                log.warning("P2pConnector goes without nccl: %s", error)
            else:
                scratch = self._torch.empty(SCRATCH_BYTES, dtype=self._torch.uint8, device=self._device)
                gpu = NvidiaGpu(self._driver, self.copier, self._device.index or 0, scratch)
                found["nccl"] = NcclTransport(identity.boot, identity.address, nccl, gpu, self._settings)
        return found

    def memory(self, kind: str, pages: int, page_bytes: int) -> Memory:
        """The GPU's memory, or the host's in a form that the GPU reaches."""
        if kind == HOST:
            # This is only the slow fallback, so it gets little memory.
            return self._pinned(min(pages, max(2, GIB // page_bytes)), page_bytes)
        from pd_connector.memory.cumem import CudaError, DeviceMemory  # noqa: PLC0415  needs a GPU

        free, _ = self._torch.cuda.mem_get_info(self._device)
        try:
            return DeviceMemory(self._driver, self._device.index or 0, pages, page_bytes)
        except CudaError as error:
            msg = (
                f"P2pConnector needs {pages * page_bytes / GIB:.1f} GiB of the GPU's memory for KV on its way ({error}); {free / GIB:.1f} GiB "
                "are free. Lower --gpu-memory-utilization, or `landing_bytes` and `staging_bytes`"
            )
            raise RefusalError(msg) from error

    def _pinned(self, pages: int, page_bytes: int) -> HostMemory:
        memory = HostMemory(pages, page_bytes)
        portable_and_mapped = 1 | 2
        code = self._torch.cuda.cudart().cudaHostRegister(memory.address(0), pages * page_bytes, portable_and_mapped)
        if int(code):
            msg = f"the host's memory cannot be shared with the GPU: {code}"
            raise RefusalError(msg)
        return memory
