"""The role to which a GPU's energy belongs."""

from collections.abc import Collection, Mapping

from pd_contracts.names import Role


def roles_of(*, prefill: Collection[int], decode: Collection[int], combined: Collection[int]) -> dict[int, Role]:
    """GPU index to role.

    The two topologies use the same GPUs one after the other and `.env` names both, so the disaggregated lists win; a
    recording says which it is. A GPU that prefill and decode share has no role: its energy cannot be told apart.
    """
    roles = dict.fromkeys(combined, Role.COMBINED)
    roles |= dict.fromkeys(prefill, Role.PREFILL) | dict.fromkeys(decode, Role.DECODE)
    return {index: role for index, role in roles.items() if not (index in prefill and index in decode)}


def listed(gpus: tuple[int, ...], gpu: int | None) -> tuple[int, ...]:
    """The GPUs of a role, from their list or, where that is unset, from its single form."""
    return gpus or (() if gpu is None else (gpu,))


def unknown_gpus(roles: Mapping[int, Role], known: Collection[int]) -> list[int]:
    """Indices that a request gave a role though no such GPU exists."""
    return sorted(set(roles) - set(known))
