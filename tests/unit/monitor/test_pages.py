"""What an engine's metrics page says about tokens."""

import pytest

from pd_contracts.names import Role
from pd_contracts.settings import SettingsError, load
from pd_monitor.pages import named, parse_pages, tokens_of
from pd_monitor.settings import Settings

# As vLLM 0.23 writes them, with two data-parallel engines; histograms and _created stamps have names that begin alike.
PAGE = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 5000.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 700.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 3000.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="m",source="local_compute"} 600.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 2000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 2000.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 100.0
vllm:generation_tokens_total{engine="0",model_name="m"} 42.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 9.0
http_requests_total{handler="vllm:prompt_tokens_total"} 12.0
"""


def test_counters_are_summed_over_data_parallel_engines() -> None:
    tokens = tokens_of(PAGE, t=1.0, name="prefill-0", role=Role.PREFILL)

    assert (tokens.prompt, tokens.computed, tokens.cache_hits, tokens.output) == (5700.0, 3600.0, 2100.0, 42.0)
    assert tokens.external_hits is None
    assert tokens.error == ""


def test_a_simulators_late_steps_are_counted() -> None:
    page = (
        'vllm:generation_tokens_total{engine="0"} 42.0\n'
        'sim:step_lateness_seconds_bucket{engine="0",le="0.002"} 60.0\n'
        'sim:step_lateness_seconds_bucket{engine="0",le="0.005"} 70.0\n'
        'sim:step_lateness_seconds_bucket{engine="0",le="0.01"} 90.0\n'
        'sim:step_lateness_seconds_count{engine="0"} 100.0\n'
    )

    tokens = tokens_of(page, t=1.0, name="decode-0", role=Role.DECODE)

    assert (tokens.steps, tokens.late_steps, tokens.output) == (100.0, 30.0, 42.0)
    assert tokens_of(PAGE, t=1.0, name="prefill-0", role=Role.PREFILL).late_steps is None


def test_a_page_without_token_counters_says_so_instead_of_zero() -> None:
    tokens = tokens_of("python_info 1.0\n", t=1.0, name="decode-0", role=Role.DECODE)

    assert (tokens.prompt, tokens.output) == (None, None)
    assert tokens.error == "its page has no token counter"


def test_a_counter_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="float"):
        tokens_of("vllm:prompt_tokens_total many\n", t=1.0, name="decode-0", role=Role.DECODE)


def test_pages_are_named_by_role_in_order() -> None:
    pages = parse_pages(["prefill=http://a:1/metrics", "decode=http://b:2/metrics", "decode=http://c:3/metrics?x=1"])

    assert named(pages) == [
        ("prefill-0", Role.PREFILL, "http://a:1/metrics"),
        ("decode-0", Role.DECODE, "http://b:2/metrics"),
        ("decode-1", Role.DECODE, "http://c:3/metrics?x=1"),
    ]


@pytest.mark.parametrize("value", ["http://a:1/metrics", "both=http://a:1/metrics", "decode=a:1/metrics"])
def test_an_address_without_a_role_or_scheme_is_refused(value: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(Settings, {"ENGINE_METRICS": value})

    assert "prefill=http://127.0.0.1:20003/metrics" in str(refusal.value)
