"""The role to which a GPU's energy belongs."""

from collections.abc import Collection, Mapping
from typing import Protocol

from pd_contracts.names import Role


class GpuSettings(Protocol):
    """Settings that name GPUs by role: a list or its single form."""

    @property
    def prefill_gpus(self) -> tuple[int, ...]: ...
    @property
    def prefill_gpu(self) -> int | None: ...
    @property
    def decode_gpus(self) -> tuple[int, ...]: ...
    @property
    def decode_gpu(self) -> int | None: ...
    @property
    def combined_gpus(self) -> tuple[int, ...]: ...


def roles_of(*, prefill: Collection[int], decode: Collection[int], combined: Collection[int]) -> dict[int, Role]:
    """GPU index to role.

    The two topologies use the same GPUs one after the other and `.env` names both, so the disaggregated lists win; a
    recording says which it is. A GPU that prefill and decode share has no role: its energy cannot be divided.
    """
    roles = dict.fromkeys(combined, Role.COMBINED)
    roles |= dict.fromkeys(prefill, Role.PREFILL) | dict.fromkeys(decode, Role.DECODE)
    return {index: role for index, role in roles.items() if not (index in prefill and index in decode)}


def configured(settings: GpuSettings) -> dict[int, Role]:
    """GPU index to role, from the lists or, where one is unset, its single form."""
    return roles_of(
        prefill=_listed(settings.prefill_gpus, settings.prefill_gpu),
        decode=_listed(settings.decode_gpus, settings.decode_gpu),
        combined=settings.combined_gpus,
    )


def _listed(gpus: tuple[int, ...], gpu: int | None) -> tuple[int, ...]:
    return gpus or (() if gpu is None else (gpu,))


def unknown_gpus(roles: Mapping[int, Role], known: Collection[int]) -> list[int]:
    """Indices that a request gave a role though no such GPU exists."""
    return sorted(set(roles) - set(known))
