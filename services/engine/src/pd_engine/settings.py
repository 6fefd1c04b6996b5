"""Settings of an engine container; the defaults were measured to work (docs/engines.md)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pd_contracts.deployment import Member
from pd_contracts.names import Connector, Role
from pd_contracts.ports import Port, Ports
from pd_engine.gpus import Gpus

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]


class EngineSettings(Member, frozen=True, kw_only=True):
    """One engine. Unset numbers (None) leave the choice to vLLM."""

    pd_role: Annotated[Role, Meta(description="what this engine does")]
    instance: Annotated[int, Meta(ge=0, description="number of this engine among those of its role, from 0")] = 0
    model: Annotated[str, Meta(description="Hugging Face name or directory of the model")] = ""
    served_model_name: Annotated[str, Meta(description="model name that clients use; the value of MODEL if empty")] = ""
    kv_connector: Annotated[Connector, Meta(description="how KV travels from prefill to decode")] = Connector.P2P
    engine_device: Annotated[Literal["gpu", "cpu"], Meta(description="hardware that the vLLM image is built for")] = (
        "gpu"
    )
    vllm_host_ip: Annotated[
        str, Meta(description="numeric address at which other hosts reach this engine; detected if empty")
    ] = ""
    proxy_host: Annotated[
        str,
        Meta(
            description="host of the proxy's discovery port; several with commas (host or host:port), or a name with several addresses: the engine announces itself to all"
        ),
    ] = "127.0.0.1"
    proxy_port: Annotated[Port, Meta(description="discovery port of the proxy (zmq)")] = 30001
    nccl_socket_ifname: Annotated[
        str, Meta(description="network interface for NCCL between hosts; NCCL chooses if empty")
    ] = ""
    gloo_socket_ifname: Annotated[
        str, Meta(description="network interface for torch.distributed within one engine")
    ] = ""
    ucx_net_devices: Annotated[
        str, Meta(description="NIXL: devices for KV between hosts, such as mlx5_0:1 or eth0; all if empty")
    ] = ""
    ucx_tls: Annotated[str, Meta(description="NIXL: UCX transports; UCX chooses if empty, tcp on the CPU")] = ""
    kv_both: Annotated[
        bool,
        Meta(
            description="combined engines with P2pConnector both send and receive KV, as the proxy's ROUTING decides; this turns prefix caching on"
        ),
    ] = False
    kv_shared_path: Annotated[str, Meta(description="folder that both roles see, for ExampleConnector")] = "/kv"
    kv_shared_max_age_s: Annotated[
        float, Meta(gt=0, description="age at which KV in that folder is deleted, seconds")
    ] = 300
    kv_transports: Annotated[
        tuple[Literal["vmm", "nccl", "tcp"], ...],
        Meta(description="P2pConnector: transports for KV, in order of preference; on the CPU only tcp"),
    ] = ("vmm", "nccl", "tcp")
    kv_socket_folder: Annotated[
        str, Meta(description="P2pConnector: folder that the engines of one node share, for sockets of vmm")
    ] = "/tmp/pd-connector"  # noqa: S108  every engine of the node must find it
    kv_landing_bytes: Annotated[
        int, Meta(gt=0, description="P2pConnector: memory of a decode engine for arriving KV; of the GPU, unless tcp")
    ] = 4 * 1024**3
    kv_staging_bytes: Annotated[
        int,
        Meta(
            gt=0,
            description="P2pConnector: memory of a prefill engine for KV that waits to be sent; of the GPU, unless tcp",
        ),
    ] = 2 * 1024**3
    kv_load_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            description="P2pConnector: seconds that decode waits without a sign of its KV before it computes the prompt itself",
        ),
    ] = 30
    kv_load_failure_policy: Annotated[
        Literal["recompute", "fail"],
        Meta(description="P2pConnector: what decode does with a prompt whose KV does not arrive"),
    ] = "recompute"
    kv_buffer_bytes: Annotated[float, Meta(gt=0, description="P2pNccl: GPU memory of decode for arriving KV")] = 8e9
    max_model_len: Annotated[Positive | None, Meta(description="longest prompt plus output, tokens")] = None
    max_num_seqs: Annotated[Positive | None, Meta(description="maximum number of requests in one batch")] = None
    max_num_batched_tokens: Annotated[Positive | None, Meta(description="maximum number of tokens in one step")] = None
    block_size: Annotated[
        Positive | None, Meta(description="tokens per KV block; only whole blocks are transferred")
    ] = None
    gpu_memory_utilization: Annotated[
        float | None, Meta(description="share of GPU memory for weights and KV cache")
    ] = None
    tensor_parallel_size: Annotated[int, Meta(ge=1, description="GPUs per engine; the same for prefill and decode")] = 1
    dtype: Annotated[str, Meta(description="data type of the weights, as vLLM names it")] = "auto"
    kv_cache_dtype: Annotated[
        str, Meta(description="data type of the KV cache, as vLLM names it; the same for prefill and decode")
    ] = "auto"
    load_format: Annotated[str, Meta(description="vLLM's --load-format; dummy needs no weights")] = "auto"
    prefix_caching: Annotated[
        bool, Meta(description="reuse the KV of prompts that begin alike; not with P2pNcclConnector")
    ] = False
    enforce_eager: Annotated[bool, Meta(description="no CUDA graphs; P2pNccl's prefill always runs so")] = False
    guard_model_runner: Annotated[
        bool, Meta(description="P2pNccl: disable vLLM's V2 model runner; off only to see the canary reject its answers")
    ] = True
    engine_api_key: Annotated[
        str, Meta(description="API key that the engine requires, the same as the proxy's; none if empty")
    ] = ""
    engine_tls_cert_file: Annotated[str, Meta(description="certificate with which the engine speaks HTTPS")] = ""
    engine_tls_key_file: Annotated[str, Meta(description="its private key")] = ""
    engine_args: Annotated[str, Meta(description="further vllm serve arguments, quoted as in a shell")] = ""

    @property
    def http_port(self) -> int:
        """Port of vLLM's API."""
        return self.http(self.pd_role, self.instance)

    @property
    def kv_port(self) -> int:
        """Port on which KV is exchanged; rank r of a tensor-parallel engine uses this + r."""
        return self.kv(self.pd_role, self.instance, both=self.both)

    @property
    def moves_kv(self) -> bool:
        """Whether KV comes or goes; a combined engine has no connector unless KV_BOTH."""
        return self.pd_role is not Role.COMBINED or self.kv_both

    @property
    def both(self) -> bool:
        """Whether it is a combined engine that hands KV over and takes it."""
        return self.pd_role is Role.COMBINED and self.kv_both

    @property
    def name(self) -> str:
        """Name that clients use for the model."""
        return self.served_model_name or self.model


class CheckSettings(Ports, frozen=True, kw_only=True):
    """What a probe or the draining of a running engine, real or simulated, must know; the names that an engine has mean the same."""

    pd_role: Annotated[Role, Meta(description="what this engine does")] = Role.COMBINED
    instance: Annotated[int, Meta(ge=0, description="number of this engine among those of its role, from 0")] = 0
    http_port: Annotated[
        int, Meta(ge=0, le=65535, description="HTTP port of the engine; 0 for the role's base port plus INSTANCE")
    ] = 0
    vllm_host_ip: Annotated[str, Meta(description="numeric address that the engine announces; detected if unset")] = ""
    proxy_host: Annotated[str, Meta(description="host of the proxy, or several, as an engine has it")] = "127.0.0.1"
    proxy_port: Annotated[Port, Meta(description="discovery port of the proxy (zmq)")] = 30001
    http_proxy_port: Annotated[Port, Meta(description="HTTP port of the proxy")] = 10001
    engine_tls_cert_file: Annotated[str, Meta(description="set if the engine speaks HTTPS")] = ""
    admin_key: Annotated[str, Meta(description="the proxy's ADMIN_KEY; without it an engine cannot be drained")] = ""
    drain_wait_s: Annotated[
        float, Meta(gt=0, le=3600, description="longest time that draining waits for running requests, s")
    ] = 40.0
    engine_stall_s: Annotated[
        float,
        Meta(
            ge=0,
            description="time after which an engine with running requests that computes nothing counts as dead, s; 0: never",
        ),
    ] = 120.0

    @property
    def listen_http_port(self) -> int:
        """Port of the engine's API."""
        return self.http_port or self.http(self.pd_role, self.instance)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the container, gathered once at start, so that planning needs no I/O.

    Attributes:
        vllm_version: (major, minor) of the installed vLLM.
        address: numeric IPv4 address from which the proxy is reached.
        proxies: addresses that PROXY_HOST has.
        model_exists: False if MODEL is a path that is not there.
        kv_path_writable: whether KV_SHARED_PATH is a folder that this user may write.
        has_flashinfer, has_nixl, has_pd_connector: whether these packages can be imported.
        versions: of packages that matter for what is measured, by name.
        gpus: those that the engine will compute on.
        config: what the file that ENGINE_ARGS name by `--config` says.
        config_problem: why it could not be read.
    """

    vllm_version: tuple[int, int]
    address: str
    proxies: int = 1
    model_exists: bool = True
    kv_path_writable: bool = True
    has_flashinfer: bool = True
    has_nixl: bool = True
    has_pd_connector: bool = True
    versions: dict[str, str] = {}
    gpus: Gpus = Gpus()
    config: dict[str, Any] = {}
    config_problem: str = ""
