"""The GPUs of one engine, from nvidia-smi's lists."""

import pytest

from pd_engine.gpus import Gpus, of_engine, visible_devices

A, B, C = "GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbbb3333"
LIST = "".join(f"{uuid}, NVIDIA H200, 143771, 575.57.08\n" for uuid in (A, B, C))


@pytest.mark.parametrize(
    ("visible", "ranks", "uuids"),
    [
        ("", 1, (A,)),
        ("", 2, (A, B)),
        ("2", 1, (C,)),
        ("2,0", 2, (C, A)),
        ("1, 2", 1, (B,)),
        (B, 1, (B,)),
        ("GPU-a", 1, (A,)),
        ("GPU-b", 1, ()),  # two begin so
        ("7", 1, ()),
        ("-1", 1, ()),
        ("0", 2, ()),  # fewer than ranks: who knows
        ("MIG-1234", 1, ("MIG-1234",)),
    ],
)
def test_an_engine_has_the_first_of_the_gpus_that_it_sees(visible: str, ranks: int, uuids: tuple[str, ...]) -> None:
    assert of_engine(LIST, visible, ranks).uuids == uuids


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, ""),
        ({"NVIDIA_VISIBLE_DEVICES": "0"}, ""),  # the runtime's index; in the container it is the first
        ({"NVIDIA_VISIBLE_DEVICES": "MIG-1"}, "MIG-1"),
        ({"NVIDIA_VISIBLE_DEVICES": A, "CUDA_VISIBLE_DEVICES": "0"}, "0"),
    ],
)
def test_which_devices_an_engine_sees(environment: dict[str, str], visible: str) -> None:
    assert visible_devices(environment) == visible


def test_what_the_gpus_are_is_known_with_them() -> None:
    assert of_engine(LIST, "1", 1) == Gpus(
        uuids=(B,), model="NVIDIA H200", memory_bytes=143771 * 1024**2, driver="575.57.08"
    )


@pytest.mark.parametrize("text", ["", "No devices were found\n", "NVIDIA-SMI has failed\n", "a,b,c,d\n"])
def test_without_a_list_nothing_is_known(text: str) -> None:
    assert of_engine(text, "", 1) == Gpus()


def test_memory_that_nvidia_smi_does_not_know_stays_unknown() -> None:
    assert of_engine(f"{A}, NVIDIA GB10, [N/A], 580.1\n", "", 1).memory_bytes is None
