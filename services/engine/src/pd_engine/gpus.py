"""Which GPUs an engine computes on, as nvidia-smi lists them. Reading the list is pure; asking for it is not."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

QUERY: Final = ("nvidia-smi", "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits")
TIMEOUT_S: Final = 20.0
MIB: Final = 1024 * 1024


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's GPUs; what is unknown is empty or None.

    Attributes:
        uuids: as NVML writes them, in the order of the engine's ranks.
        model: what they are, as NVML calls them.
        memory_bytes: of each of them.
        driver: version of the NVIDIA driver.
    """

    uuids: tuple[str, ...] = ()
    model: str = ""
    memory_bytes: int | None = None
    driver: str = ""


def listing() -> str:
    """What nvidia-smi lists; empty if it cannot be asked."""
    try:
        return subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""  # no NVIDIA driver here, or none that this container may use: the GPUs are unknown


def visible_devices(environment: Mapping[str, str]) -> str:
    """The devices that CUDA may use: from CUDA_VISIBLE_DEVICES, or from what a device plugin gave the container runtime; empty: all of the machine."""
    handed_out = environment.get("NVIDIA_VISIBLE_DEVICES", "")
    return environment.get("CUDA_VISIBLE_DEVICES", "") or (
        handed_out if handed_out.startswith(("GPU-", "MIG-")) else ""
    )


def of_engine(text: str, visible: str, ranks: int) -> Gpus:
    """The GPUs of an engine with so many ranks; `visible` are indices or UUIDs, all if empty."""
    rows = [row for row in (_row(line) for line in text.splitlines()) if row is not None]
    chosen = _chosen([row[0] for row in rows], visible)[:ranks]
    known = [row for row in rows if row[0] in chosen]
    if len(chosen) < ranks:
        return Gpus(driver=rows[0][3] if rows else "")
    model, memory, driver = (known[0][1], known[0][2], known[0][3]) if known else ("", None, "")
    return Gpus(uuids=tuple(chosen), model=model, memory_bytes=memory, driver=driver)


def _row(line: str) -> tuple[str, str, int | None, str] | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[0].startswith("GPU-"):
        return None
    memory = int(parts[2]) * MIB if parts[2].isdecimal() else None
    return parts[0], parts[1], memory, parts[3]


def _chosen(uuids: Sequence[str], visible: str) -> list[str]:
    if not visible:
        return list(uuids)
    found = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal() and int(entry) < len(uuids):
            found.append(uuids[int(entry)])
        elif entry.startswith("MIG-"):
            found.append(entry)  # nvidia-smi lists the GPU that it is a slice of
        else:
            # CUDA accepts the beginning of a UUID, and ends its list at the first invalid entry.
            named = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
            if len(named) != 1:
                break
            found += named
    return found
