"""Free ports for a comparison, so that it does not fail because something else runs on this machine."""

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

# Below the kernel's range for outgoing connections, so that they stay free.
FIRST, LAST = 20100, 31900


def choose(
    needs: Mapping[str, Iterable[int]], is_free: Callable[[int], bool], chance: random.Random | None = None
) -> dict[str, int]:
    """New values for those settings whose ports are not all free; settings that can stay are left out.

    `needs` maps a settings field (a base port) to the ports it leads to. The search starts at random, so that two
    comparisons started together rarely collide; `is_free` may claim the ports, so that they never do.

    Raises:
        RuntimeError: if no ports are free at all.
    """
    wanted = {field: list(ports) for field, ports in needs.items()}
    free = {field: all(map(is_free, ports)) for field, ports in wanted.items()}
    used = {port for field, ports in wanted.items() if free[field] for port in ports}
    start: int = (chance or random.Random()).randrange(FIRST, LAST)
    chosen: dict[str, int] = {}
    for field, ports in wanted.items():
        if not free[field]:
            chosen[field] = _find([port - min(ports) for port in ports], used, is_free, start)
            used.update(chosen[field] + port - min(ports) for port in ports)
    return chosen


def _find(offsets: list[int], used: set[int], is_free: Callable[[int], bool], start: int) -> int:
    for base in chain(range(start, LAST), range(FIRST, start)):
        ports = [base + offset for offset in offsets]
        if not used.intersection(ports) and all(map(is_free, ports)):
            return base
    msg = f"no free ports between {FIRST} and {LAST} on this machine"
    raise RuntimeError(msg)
