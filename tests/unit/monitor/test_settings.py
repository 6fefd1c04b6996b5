from collections.abc import Callable

import pytest

from pd_contracts.names import Role
from pd_contracts.settings import SettingsError, load
from pd_monitor.roles import roles_of, unknown_gpus
from pd_monitor.settings import Settings


def from_environment(**environment: str) -> Settings:
    return load(Settings, environment)


def test_lists_give_every_gpu_its_role() -> None:
    settings = from_environment(PREFILL_GPUS="0", DECODE_GPUS="1, 2,3")

    assert settings.roles == {0: Role.PREFILL, 1: Role.DECODE, 2: Role.DECODE, 3: Role.DECODE}


def test_single_forms_serve_where_the_lists_are_unset() -> None:
    settings = from_environment(PREFILL_GPU="4", DECODE_GPU="5", DECODE_GPUS="6,7")

    assert settings.roles == {4: Role.PREFILL, 6: Role.DECODE, 7: Role.DECODE}


def test_gpus_named_for_both_topologies_count_as_disaggregated() -> None:
    assert roles_of(prefill=[0], decode=[1], combined=[0, 1, 2]) == {0: Role.PREFILL, 1: Role.DECODE, 2: Role.COMBINED}


def test_a_gpu_that_prefill_and_decode_share_has_no_role() -> None:
    assert roles_of(prefill=[0, 1], decode=[1, 2], combined=[1]) == {0: Role.PREFILL, 2: Role.DECODE}


def test_roles_of_gpus_that_do_not_exist_are_named() -> None:
    assert unknown_gpus({0: Role.PREFILL, 9: Role.DECODE, 4: Role.DECODE}, [0, 1]) == [4, 9]


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MONITOR_INTERVAL_S", "0", "MONITOR_INTERVAL_S"),
        ("RECORDING_INTERVAL_S", "0.001", "RECORDING_INTERVAL_S"),
        ("MONITOR_BACKEND", "cuda", "auto, nvml, rocm, simulated"),
        ("POD_ROLE_PATTERNS", "prefill:*", "prefill=*-prefill-*"),
        ("PREFILL_GPUS", "0,-1", "PREFILL_GPUS"),
        ("DECODE_GPUS", "GPU-1", "DECODE_GPUS"),
        ("MONITOR_PORT", "70000", "MONITOR_PORT"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL"),
        ("SIM_BOARDS", "127.0.0.1:20003", "http://127.0.0.1:20003/sim/board"),
        ("MAX_RECORDING_S", "0", "MAX_RECORDING_S"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_name(variable: str, value: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        from_environment(**{variable: value})

    assert variable in str(refusal.value)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_the_log_level_may_be_written_either_way(spelling: Callable[[str], str]) -> None:
    assert from_environment(LOG_LEVEL=spelling("debug")).log_level.upper() == "DEBUG"
