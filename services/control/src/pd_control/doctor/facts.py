"""What was found on a machine, in base units; unknown is None. Recorded with `pdctl doctor --json`, and read back in tests."""

import shlex

import msgspec

from pd_engine.commandline import parse


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A process that uses a GPU."""

    pid: int
    name: str = ""
    memory_bytes: int | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, as NVML reports it.

    Attributes:
        index: in the order of the PCI bus.
        throttled: names of the reasons for which its clocks are held down now, idleness and the normal power cap left out.
        power_limit_w, power_default_w: the limit in force, and the board's own.
        links_up, links_down: numbers of NVLinks that work, and that exist and do not work.
    """

    index: int
    name: str = ""
    memory_bytes: int | None = None
    free_bytes: int | None = None
    mig: bool | None = None
    throttled: list[str] = msgspec.field(default_factory=list)
    power_limit_w: float | None = None
    power_default_w: float | None = None
    links_up: int = 0
    links_down: int = 0
    tenants: list[Tenant] = msgspec.field(default_factory=list)


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """How two GPUs are connected. `path` is what lies between them, for example "PCIe switch"."""

    a: int
    b: int
    p2p: bool | None = None
    nvlink: bool | None = None
    path: str = ""


class Nvml(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's view; `problem` if it has none. `cuda` is (major, minor) of the newest CUDA that the driver runs."""

    problem: str = ""
    driver: str = ""
    cuda: tuple[int, int] | None = None
    gpus: list[Gpu] = msgspec.field(default_factory=list)
    links: list[Link] = msgspec.field(default_factory=list)


class Software(msgspec.Struct, frozen=True, kw_only=True):
    """What ENGINE_PYTHON can import; versions are empty where a package is missing."""

    problem: str = ""
    python: str = ""
    vllm: str = ""
    torch: str = ""
    has_nixl: bool = False
    has_pd_connector: bool = False
    has_flashinfer: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model's directory, its own or that in Hugging Face's cache; with `local` False there is none, and vLLM fetches it.

    Attributes:
        vocabulary, tokenizer_vocabulary: ids that the weights have rows for, and one more than the tokenizer's highest.
        longest: most positions (tokens); unknown if they can be extended.
        heads: attention heads.
        missing: weight files that the index names but that do not exist.
    """

    name: str = ""
    local: bool = False
    exists: bool = False
    config: bool = False
    problem: str = ""
    vocabulary: int | None = None
    tokenizer: bool = False
    tokenizer_vocabulary: int | None = None
    longest: int | None = None
    heads: int | None = None
    weights: int = 0
    missing: list[str] = msgspec.field(default_factory=list)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel, memory and network.

    Attributes:
        shm_bytes, shm_free_bytes: size of /dev/shm, and what is free of it.
        namespaces: numbers of the IPC and network namespaces; engines on one host need the same.
        memory_bytes: host memory that is still available, within the container's limit.
        memlock_bytes: the most memory that a process may pin; None for no limit.
        interfaces: names of the network interfaces.
        rdma: RDMA devices.
        proxy_address: what PROXY_HOST resolves to; empty if it does not.
        own_address: of the interface that leads to the proxy.
        foreign: addresses that would be announced but do not belong to this host.
        taken: ports of the plan on which something already listens.
        ephemeral: first and last port that the kernel uses for outgoing connections.
        kv_path_writable: whether KV_SHARED_PATH is a folder that can be written.
    """

    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    namespaces: dict[str, str] = msgspec.field(default_factory=dict)
    memory_bytes: int | None = None
    memlock_bytes: int | None = None
    interfaces: list[str] = msgspec.field(default_factory=list)
    rdma: list[str] = msgspec.field(default_factory=list)
    proxy_address: str = ""
    own_address: str = ""
    foreign: list[str] = msgspec.field(default_factory=list)
    taken: list[int] = msgspec.field(default_factory=list)
    ephemeral: tuple[int, int] | None = None
    kv_path_writable: bool = True


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the checks know.

    Attributes:
        variables: environment variables that the checks read; no secrets.
        running: names of planned processes that already run, so their own ports and GPUs are in use.
    """

    machine: Machine
    variables: dict[str, str] = msgspec.field(default_factory=dict)
    running: list[str] = msgspec.field(default_factory=list)
    nvml: Nvml | None = None
    software: Software | None = None
    model: Model | None = None

    def option(self, name: str, variable: str) -> str:
        """The value of vLLM's option `name` in ENGINE_ARGS, else of `variable`; empty if neither is set."""
        try:
            line = parse(["", *shlex.split(self.variables.get("ENGINE_ARGS", ""))])
        except ValueError:
            return self.variables.get(variable, "")  # the engine refuses such arguments by itself
        told = line.text(name)
        return self.variables.get(variable, "") if told is None else told
