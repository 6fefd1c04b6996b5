"""Shipped profiles are complete, and the default one gives what was measured on the hardware that it is named after."""

import random
import statistics
from pathlib import Path

import pytest
from support.simulator import Arrival, virtual_run

from pd_contracts.names import Connector
from pd_simulator.profile import ProfileError, load_profile, shipped

P2P, NIXL = Connector.P2P_NCCL, Connector.NIXL

# Medians with one stream on H200, in ms: plain vLLM 0.23.0, P2pNcclConnector, NixlConnector.
MEASURED_TTFT = {
    (None, 512): 19.1,
    (None, 4096): 105.0,
    (P2P, 512): 45.8,
    (P2P, 4096): 130.8,
    (NIXL, 512): 52.6,
    (NIXL, 4096): 185.3,
}
# Median TPOT under an open-loop load, in ms, by connector and (input, output, requests a second and GPU).
MEASURED_TPOT = {
    (None, (512, 64, 30)): 7.0,
    (None, (2048, 128, 10)): 10.5,
    (P2P, (512, 64, 30)): 6.4,
    (P2P, (2048, 128, 10)): 7.3,
}


def poisson(rate: float, prompt: int, output: int, seed: int, duration: float = 8.0) -> list[Arrival]:
    generator, at, arrivals = random.Random(seed), 0.0, []
    while (at := at + generator.expovariate(rate)) < duration:
        arrivals.append(Arrival(at, prompt, output))
    return arrivals


def tpot_ms(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1) * 1e3


@pytest.mark.parametrize(("connector", "prompt"), list(MEASURED_TTFT))
def test_one_stream_gets_its_first_token_when_it_did_on_the_hardware(connector: Connector | None, prompt: int) -> None:
    (times,) = virtual_run(load_profile("h200-llama3-8b"), connector, [Arrival(0.0, prompt, 64)])

    assert times[0] * 1e3 == pytest.approx(MEASURED_TTFT[connector, prompt], rel=0.01)
    assert 4.8 <= tpot_ms(times) <= 5.3


@pytest.mark.parametrize(("connector", "load"), list(MEASURED_TPOT))
def test_tpot_under_load_is_what_it_was_on_the_hardware(
    connector: Connector | None, load: tuple[int, int, int]
) -> None:
    prompt, output, rate = load
    profile = load_profile("h200-llama3-8b")

    medians = [
        statistics.median(map(tpot_ms, virtual_run(profile, connector, poisson(rate, prompt, output, seed))))
        for seed in range(5)
    ]

    assert statistics.median(medians) == pytest.approx(MEASURED_TPOT[connector, load], rel=0.10)


def test_a_saturated_prefill_engine_queues_as_it_did_on_the_hardware() -> None:
    profile = load_profile("h200-llama3-8b")
    arrivals = poisson(30, 512, 64, seed=1)

    waits = [
        times[0] - arrival.at for times, arrival in zip(virtual_run(profile, P2P, arrivals), arrivals, strict=True)
    ]

    # Measured: 550 ms at the median, against 45.8 with one stream; the order of magnitude is what the model must give.
    assert statistics.median(waits) > 0.15


def test_the_demo_profile_is_the_default_one_four_times_slower() -> None:
    arrivals = [Arrival(i * 0.05, 512, 32) for i in range(20)]
    slow = [Arrival(4 * a.at, a.prompt_tokens, a.output_tokens) for a in arrivals]

    for connector in (None, P2P, NIXL, Connector.EXAMPLE):
        fast_times = virtual_run(load_profile("h200-llama3-8b"), connector, arrivals)
        slow_times = virtual_run(load_profile("demo"), connector, slow)
        flat = [4 * time for times in fast_times for time in times]
        assert [time for times in slow_times for time in times] == pytest.approx(flat)


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_know_every_connector(name: str) -> None:
    assert set(load_profile(name).handoff) == set(Connector)


def test_an_unknown_profile_is_refused_with_the_names_of_those_that_exist() -> None:
    with pytest.raises(ProfileError, match="no profile 'h100': expected one of demo, h200-llama3-8b, slow-exact"):
        load_profile("h100")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("base_ms = 150.0", "base_ms = -1"), r">= 0\.0.*prefill\.base_ms"),
        (("api_ms", "apy_ms"), "apy_ms"),
        (("[handoff.NixlConnector]", "[handoff.Nixl]"), "Nixl"),
        (("idle_w = 100.0", "idle_w = 500.0"), "idle_w <= prefill_w"),
        (("[memory]", "[memory"), "line"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_field(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    shipped_file = Path(load_profile.__code__.co_filename).parent / "profiles" / "slow-exact.toml"
    path = tmp_path / "mine.toml"
    path.write_text(shipped_file.read_text(encoding="utf-8").replace(*change), encoding="utf-8")

    with pytest.raises(ProfileError, match=reason):
        load_profile(str(path))


def test_a_missing_profile_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        load_profile(str(tmp_path / "none.toml"))
