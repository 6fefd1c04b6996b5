"""Reads the facts about this machine, once, on which the checks decide."""

import os
import resource
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from pd_contracts.address import own_address
from pd_contracts.proxies import first_host
from pd_contracts.settings import fields
from pd_control.doctor import models
from pd_control.doctor.facts import Facts, Gpu, Machine, Nvml, Software
from pd_control.planning.plan import ProcessSpec
from pd_control.settings import ControlSettings
from pd_control.supervision import supervisor
from pd_control.supervision.state import Running
from pd_engine.commandline import parse
from pd_engine.settings import EngineSettings

PREFIXES: Final = ("NCCL_", "UCX_", "GLOO_", "CUDA_", "VLLM_")
SECRET: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
# Nothing is imported, because importing vLLM takes 15 s. A torch wheel from the registry names its CUDA only in a file.
ASK: Final = """
import importlib.metadata as m, importlib.util as u, json, pathlib, re
def version(name):
    try: return m.version(name) if u.find_spec(name) else ""
    except m.PackageNotFoundError: return ""
def torch():
    found, known = u.find_spec("torch"), version("torch")
    if not found or "+" in known: return known
    text = pathlib.Path(found.origin).with_name("version.py").read_text()
    cuda = re.search(r"^cuda\\b.*?'([\\d.]+)'", text, re.M)
    return known + (f"+cu{cuda[1].replace('.', '')}" if cuda else "")
print(json.dumps({"vllm": version("vllm"), "torch": torch(),
                  "has_nixl": bool(u.find_spec("nixl")), "has_flashinfer": bool(u.find_spec("flashinfer")),
                  "has_pd_connector": bool(u.find_spec("pd_connector"))}))
"""
ASK_LIMIT_S = 60.0


def gather(
    settings: ControlSettings,
    environment: Mapping[str, str],
    specs: Sequence[ProcessSpec],
    running: Sequence[Running],
    *,
    vllm: bool,
) -> Facts:
    """Facts about the machine; also about GPUs, vLLM and the model if `vllm` is to run."""
    variables = relevant(environment)
    engines = [spec for spec in specs if spec.role is not None]
    facts = Facts(
        machine=machine(settings, variables, specs, {process.name for process in running}),
        variables=variables,
        running=sorted({process.name for process in running} & {spec.name for spec in specs}),
    )
    if not vllm or not engines:
        return facts
    on_gpu = variables.get("ENGINE_DEVICE", "gpu") != "cpu"
    return msgspec.structs.replace(
        facts,
        nvml=without(_nvml(), running) if on_gpu else None,
        software=ask(engines[0], environment),
        model=models.look(settings.model, environment),
    )


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that the checks read; nothing that might be a secret. Empty ones count as unset."""
    named = {field.variable for field in fields(EngineSettings)} | {"HF_HUB_OFFLINE"}
    if _tells_secrets(environment.get("ENGINE_ARGS", "")):
        named.remove("ENGINE_ARGS")
    return {
        name: value
        for name, value in sorted(environment.items())
        if value and (name in named or name.startswith(PREFIXES)) and not any(word in name for word in SECRET)
    }


def _tells_secrets(arguments: str) -> bool:
    try:
        given = parse(["", *shlex.split(arguments)]).given
    except ValueError:
        # The engine will refuse them; until then treat them as secret.
        return any(word in arguments.upper() for word in SECRET)
    return bool(given.keys() & {"api_key", "hf_token"})


def _nvml() -> Nvml:
    try:
        from pd_control.doctor import nvml  # noqa: PLC0415  a machine without pynvml can still be looked at
    except ImportError as error:
        return Nvml(problem=f"{error}: install nvidia-ml-py")
    return nvml.read()


def without(nvml: Nvml, running: Sequence[Running]) -> Nvml:
    """The same without this deployment's own processes on the GPUs."""
    groups = {process.pid for process in running}

    def strangers(gpu: Gpu) -> Gpu:
        return msgspec.structs.replace(gpu, tenants=[t for t in gpu.tenants if _group(t.pid) not in groups])

    return msgspec.structs.replace(nvml, gpus=[strangers(gpu) for gpu in nvml.gpus])


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0  # in another container, or gone


def ask(engine: ProcessSpec, environment: Mapping[str, str]) -> Software:
    """What the engines' interpreter can import, without importing it."""
    python = engine.argv[0]
    variables = supervisor.environment_of(engine, environment)
    try:
        done = subprocess.run([python, "-c", ASK], env=variables, capture_output=True, check=False, timeout=ASK_LIMIT_S)
        told = msgspec.json.decode(done.stdout or b"{}", type=Software)
    except OSError as error:
        return Software(python=python, problem=f"{python}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Software(python=python, problem=f"{python} did not answer within {ASK_LIMIT_S:.0f} s")
    except msgspec.MsgspecError:
        return Software(python=python, problem=f"{python} cannot say what it has: {done.stderr.decode()[-200:]!r}")
    return msgspec.structs.replace(told, python=python)


def machine(
    settings: ControlSettings, variables: Mapping[str, str], specs: Sequence[ProcessSpec], running: set[str]
) -> Machine:
    shm = _shm()
    nearest = first_host(settings.proxy_host, settings.proxy_port)
    proxy = _resolve(nearest[0])
    own = own_address(*nearest) if proxy else ""
    announced = [address for address in (settings.announced_address, own) if address]
    listens = [listen for spec in specs if spec.name not in running for listen in spec.listens]
    shared = variables.get("KV_SHARED_PATH", "/kv")
    return Machine(
        shm_bytes=shm and shm.f_blocks * shm.f_frsize,
        shm_free_bytes=shm and shm.f_bavail * shm.f_frsize,
        namespaces={kind: _namespace(kind) for kind in ("ipc", "net")},
        memory_bytes=_memory(),
        memlock_bytes=_limit(resource.RLIMIT_MEMLOCK),
        interfaces=[name for _, name in socket.if_nameindex()],
        rdma=sorted(path.name for path in Path("/sys/class/infiniband").glob("*")),
        proxy_address=proxy,
        own_address=own,
        foreign=[address for address in announced if not _is_ours(address)],
        taken=[listen.port for listen in supervisor.taken(listens)],
        ephemeral=_ephemeral(),
        kv_path_writable=Path(shared).is_dir() and os.access(shared, os.W_OK),
    )


def _shm() -> os.statvfs_result | None:
    try:
        return os.statvfs("/dev/shm")  # noqa: S108  its size is what is asked for
    except OSError:
        return None


def _namespace(kind: str) -> str:
    try:
        return Path(f"/proc/self/ns/{kind}").readlink().name.strip(f"{kind}:[]")
    except OSError:
        return ""  # another kernel, or a container that hides it


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _memory() -> int | None:
    available = None
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        left = int(limit) - int(used)
        available = left if available is None else min(available, left)
    return available


def _ephemeral() -> tuple[int, int] | None:
    numbers = _text("/proc/sys/net/ipv4/ip_local_port_range").split()
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # another kernel, or a container that hides it


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _is_ours(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
