"""What tells machines, and processes of one machine, apart."""

import os
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Equal for processes whose monotonic clocks are one; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # a time namespace moves the monotonic clock of a container
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


def orphaned(parent: int) -> bool:
    """True once the process that started this one is gone."""
    return os.getppid() != parent
