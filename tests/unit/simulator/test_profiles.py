"""Shipped profiles are complete, and the default one gives what was measured on the hardware that it is named after."""

import random
import statistics
from pathlib import Path

import pytest
from support.simulator import virtual_run

from pd_contracts import profiles
from pd_contracts.names import Connector
from pd_contracts.profiles import ProfileError
from pd_simulator.profile import load_profile, shipped
from pd_simulator.steps.engines import Arrival, Engines
from pd_simulator.steps.virtual_time import token_times

P2P, NIXL = Connector.P2P_NCCL, Connector.NIXL

# Medians in ms from docs/results/h200: at the lowest rate, where requests hardly meet, by connector (None: plain) and prompt tokens.
MEASURED_TTFT = {
    (None, 512): 18.6,
    (None, 2048): 51.7,
    (P2P, 512): 45.6,
    (P2P, 2048): 75.3,
    (NIXL, 512): 50.7,
    (NIXL, 2048): 96.9,
}
# Median TPOT under load, by connector and (input, output, requests per second at one decoding engine).
MEASURED_TPOT = {
    (None, (512, 64, 32)): 7.2,
    (None, (2048, 128, 11)): 9.9,
    (P2P, (512, 64, 48)): 5.8,
    (P2P, (2048, 128, 16)): 6.1,
    (NIXL, (512, 64, 48)): 6.0,
    (NIXL, (2048, 128, 16)): 9.0,
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

    assert times[0] * 1e3 == pytest.approx(MEASURED_TTFT[connector, prompt], rel=0.15)
    assert 4.7 <= tpot_ms(times) <= 5.3


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

    # Other arrivals than the measured ones, and longer: loads near saturation differ by that alone. Launches are those of a later vLLM, which are slower.
    assert statistics.median(medians) == pytest.approx(MEASURED_TPOT[connector, load], rel=0.3)


def test_three_senders_saturate_one_listener_and_not_themselves() -> None:
    # Measured with 512 prompt tokens and 96 requests per second: 156 ms at the median with 2P2D, 2,387 ms with 3P1D.
    profile, arrivals = load_profile("h200-llama3-8b"), poisson(96, 512, 64, seed=1, duration=6.0)

    def median_ttft(prefills: int, decodes: int) -> float:
        times = token_times(profile, Engines(prefills, decodes, P2P, 152_000), arrivals)
        return statistics.median(each[0] - arrival.at for each, arrival in zip(times, arrivals, strict=True))

    assert median_ttft(3, 1) > 1.0
    assert median_ttft(3, 1) > 3 * median_ttft(2, 2)


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
    with pytest.raises(
        ProfileError, match="no profile 'h100': expected one of demo, h200-llama3-8b, h200-qwen3-4b, slow-exact"
    ):
        load_profile("h100")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("base_ms = 150.0", "base_ms = -1"), r"prefill\.base_ms: expected a number of at least 0\.0"),
        (("api_ms", "apy_ms"), "apy_ms"),
        (("[handoff.NixlConnector]", "[handoff.Nixl]"), "Nixl"),
        (("limit_w = 700.0", "limit_w = 50.0"), "idle_w <= limit_w"),
        (("description", 'base = "none"\ndescription'), "base 'none': expected one of demo"),
        (("description", 'base = "demo"\nslower = -1\ndescription'), "slower: expected a number above 0"),
        (("[memory]", "[memory"), "line"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_field(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    shipped_file = Path(profiles.__path__[0]) / "slow-exact.toml"
    path = tmp_path / "mine.toml"
    path.write_text(shipped_file.read_text(encoding="utf-8").replace(*change), encoding="utf-8")

    with pytest.raises(ProfileError, match=reason):
        load_profile(str(path))


def test_a_missing_profile_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="there is no such file or folder"):
        load_profile(str(tmp_path / "none.toml"))
