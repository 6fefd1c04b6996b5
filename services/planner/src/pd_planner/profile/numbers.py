"""A profile's numbers by dotted names, such as `handoff.P2pNcclConnector.wait_ms`."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pd_simulator.profile import Profile


def number(profile: Profile, name: str) -> float:
    """The value under a name; 0 where the profile leaves a table out."""
    value: Any = msgspec.to_builtins(profile)
    for part in _parts(name):
        value = value.get(part) if value is not None else None
    return float(value or 0.0)


def changed(profile: Profile, values: Mapping[str, float]) -> Profile:
    """The profile with these numbers in place of its own; shares stay at most 1."""
    document = msgspec.to_builtins(profile)
    for name, value in values.items():
        *tables, key = _parts(name)
        place = document
        for table in tables:
            place[table] = place.get(table) or {}
            place = place[table]
        place[key] = min(1.0, value) if key.endswith("share") else value
    return msgspec.convert(document, Profile)


def beside_ms(profile: Profile, prompt: float) -> float:
    """What the board needs for a prompt of so many tokens in a step that also decodes, beyond the decodes."""
    tokens_ms = profile.prefill.base_ms + profile.prefill.per_token_ms * profile.mixed.prefill_token_share * prompt
    return max(0.0, tokens_ms - profile.mixed.overlap_ms)


def is_per_token(name: str) -> bool:
    """Whether a number is multiplied by tokens: those are a thousandth of the others."""
    return "per_token" in name or "per_context" in name


def _parts(name: str) -> list[str]:
    """The keys on the way; a connector's name holds no dot."""
    return name.split(".")
