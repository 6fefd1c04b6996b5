"""Every finding that pdctl doctor can make: level, meaning and remedy. docs/operating.md shows this table."""

from enum import StrEnum
from typing import Final

import msgspec


class Level(StrEnum):
    """The severity: an error keeps a deployment from starting, a warning does not."""

    ERROR = "error"
    WARNING = "warning"
    OK = "ok"


class Entry(msgspec.Struct, frozen=True):
    """A kind of finding."""

    level: Level
    means: str
    remedy: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding: what it is about, what was found, and what to do; without a remedy if all is well."""

    code: str
    level: Level
    subject: str
    sentence: str
    remedy: str = ""


def found(code: str, subject: str, sentence: str) -> Finding:
    """A finding of a kind in the catalogue."""
    entry = CATALOGUE[code]
    return Finding(code=code, level=entry.level, subject=subject, sentence=sentence, remedy=entry.remedy)


def well(code: str, subject: str, sentence: str) -> Finding:
    """A passed check; `code` is that of the finding it would be."""
    return Finding(code=code, level=Level.OK, subject=subject, sentence=sentence)


_ERROR, _WARNING = Level.ERROR, Level.WARNING
CATALOGUE: Final[dict[str, Entry]] = {
    "nvml": Entry(
        _ERROR,
        "NVML does not answer: no driver, or a container without it",
        "install the NVIDIA driver, or start the container with its GPUs; without a GPU use --engine sim",
    ),
    "gpu-missing": Entry(
        _ERROR,
        "a planned GPU is not there",
        "set PREFILL_GPUS, DECODE_GPUS or COMBINED_GPUS to GPUs that nvidia-smi lists",
    ),
    "gpu-memory": Entry(
        _ERROR,
        "less GPU memory is free than the engine takes; vLLM ends with a ValueError at start",
        "end what holds the memory (nvidia-smi names it), or lower GPU_MEMORY_UTILIZATION",
    ),
    "gpu-tenant": Entry(
        _WARNING,
        "another process uses the GPU: times and power include its work",
        "end it, or use other GPUs, before you measure anything",
    ),
    "gpu-mig": Entry(
        _ERROR,
        "MIG is on: its instances have no P2P, and an index does not identify a whole GPU",
        "switch it off (nvidia-smi -i INDEX -mig 0), or use other GPUs",
    ),
    "gpu-unlike": Entry(
        _WARNING,
        "the engines' GPUs are of different kinds: a comparison per GPU would compare the boards",
        "give all engines GPUs of one kind",
    ),
    "gpu-throttled": Entry(
        _WARNING,
        "clocks are reduced now because of heat, a power brake or the hardware",
        "check cooling and power supply (nvidia-smi -q -d PERFORMANCE); measure later",
    ),
    "gpu-capped": Entry(
        _WARNING,
        "the power limit is below the board's own, so prefill runs slower than the board could",
        "restore it (nvidia-smi -i INDEX -pl WATTS), or note it beside the numbers",
    ),
    "driver-old": Entry(
        _ERROR,
        "torch was built for a newer CUDA than the driver runs",
        "install a newer driver, or a vLLM built for the older CUDA",
    ),
    "visible-devices": Entry(
        _ERROR,
        "CUDA_VISIBLE_DEVICES of the environment and the planned GPUs disagree; pdctl pins engines by itself",
        "unset CUDA_VISIBLE_DEVICES, or list its GPUs in PREFILL_GPUS and DECODE_GPUS",
    ),
    "p2p": Entry(
        _WARNING,
        "two GPUs that exchange KV have no P2P: NCCL copies through host memory",
        "pair GPUs that nvidia-smi topo -p2p r shows as OK; in a virtual machine, ask for P2P",
    ),
    "nvlink": Entry(
        _WARNING,
        "two GPUs that exchange KV have P2P over PCIe only",
        "pair GPUs that nvidia-smi topo -m joins with NV#, or expect a longer time to the first token",
    ),
    "nvlink-down": Entry(
        _WARNING,
        "some NVLinks of a GPU are down",
        "find out which (nvidia-smi nvlink -s); restart the fabric manager, or have the board checked",
    ),
    "nccl-p2p-off": Entry(
        _WARNING,
        "an NCCL variable switches P2P off, so NVLink is not used",
        "unset NCCL_P2P_DISABLE, and NCCL_P2P_LEVEL if it is LOC",
    ),
    "nccl-no-way": Entry(
        _ERROR,
        "P2P and shared memory are both switched off: NCCL fails on one host",
        "unset NCCL_SHM_DISABLE or NCCL_P2P_DISABLE",
    ),
    "nccl-cumem": Entry(
        _WARNING,
        "NCCL_CUMEM_ENABLE=0 affects the whole engine except P2pNcclConnector's connections, which set it to 1",
        "unset NCCL_CUMEM_ENABLE",
    ),
    "interface": Entry(
        _ERROR,
        "a variable names a network interface or RDMA device that this host does not have",
        "name an available one: ip -br addr and ls /sys/class/infiniband list them",
    ),
    "shm": Entry(
        _ERROR,
        "shared memory is too small for NCCL and vLLM's workers: a bus error, or no space left on device",
        "make it larger: docker run --shm-size 16g (SHM_SIZE in compose), or mount -o remount,size=16g /dev/shm",
    ),
    "shm-small": Entry(
        _WARNING,
        "shared memory has little room",
        "remove what dead processes left in /dev/shm, or make it larger",
    ),
    "host-memory": Entry(
        _WARNING,
        "too little host memory for this many engines: each takes some GiB, and P2pNcclConnector pins 1 GiB more",
        "use fewer engines, or a larger memory limit",
    ),
    "memlock": Entry(
        _WARNING,
        "RLIMIT_MEMLOCK is low: UCX cannot register memory with RDMA devices",
        "raise it: ulimit -l unlimited, or --ulimit memlock=-1 for a container",
    ),
    "port-taken": Entry(
        _ERROR,
        "something listens on a port that the deployment needs",
        "choose another port, or end what listens there (ss -ltnp names it)",
    ),
    "port-ephemeral": Entry(
        _WARNING,
        "a port lies in the kernel's range for outgoing connections, so it may be taken by chance",
        "choose a port below net.ipv4.ip_local_port_range",
    ),
    "proxy-host": Entry(
        _ERROR,
        "PROXY_HOST does not resolve",
        "set it to an address or name that this host can look up",
    ),
    "address-loopback": Entry(
        _ERROR,
        "the engine would announce a loopback address to a proxy on another host",
        "unset VLLM_HOST_IP, or set it to this host's address in the network that all engines share",
    ),
    "address-foreign": Entry(
        _ERROR,
        "VLLM_HOST_IP is not an address of this host: the engine cannot bind it",
        "set it to one of the addresses that ip -br addr lists",
    ),
    "vllm-missing": Entry(
        _ERROR,
        "ENGINE_PYTHON has no vLLM, or does not exist",
        "set ENGINE_PYTHON to one that has, or use --containers, or --engine sim",
    ),
    "engine-refused": Entry(
        _ERROR,
        "settings under which vLLM would hang or answer wrongly (docs/engines.md)",
        "change the setting; docs/engines.md says what each is for",
    ),
    "model-fetch": Entry(
        _WARNING,
        "MODEL is not a directory and not in Hugging Face's cache: every engine fetches it at start, which needs the network",
        "fetch it beforehand (hf download MODEL), or set MODEL to a directory",
    ),
    "model-absent": Entry(
        _ERROR,
        "MODEL is not on this machine, and HF_HUB_OFFLINE forbids fetching it",
        "set MODEL to a directory, or unset HF_HUB_OFFLINE",
    ),
    "model-path": Entry(
        _ERROR,
        "MODEL is a path without a model: no directory, no config.json, or an unreadable one",
        "set MODEL to a directory with config.json, a tokenizer and weights, or to a Hugging Face name",
    ),
    "model-weights": Entry(
        _ERROR,
        "the model's directory lacks weights",
        "copy the missing files, or set LOAD_FORMAT=dummy for random weights",
    ),
    "model-dummy": Entry(
        _WARNING,
        "LOAD_FORMAT=dummy: answers hardly depend on the KV, so neither the canary nor pdctl smoke can tell whether it arrives",
        "keep it for measuring; to check correctness, use real weights (python3 -m pd_engine.tiny_model makes some)",
    ),
    "model-tokenizer": Entry(
        _ERROR,
        "the model's directory has no tokenizer",
        "copy tokenizer.json and tokenizer_config.json beside the weights",
    ),
    "model-vocabulary": Entry(
        _ERROR,
        "the tokenizer has ids beyond the model's vocabulary; the first such token ends the engine",
        "use the tokenizer that belongs to the model",
    ),
    "model-length": Entry(
        _ERROR,
        "MAX_MODEL_LEN is longer than the model supports; vLLM refuses it",
        "set a smaller MAX_MODEL_LEN",
    ),
    "model-heads": Entry(
        _ERROR,
        "the number of attention heads is not a multiple of TENSOR_PARALLEL_SIZE; vLLM refuses it",
        "set another TENSOR_PARALLEL_SIZE",
    ),
}
