"""Every definition that the report prints beside a number: latency's from the contracts, and what this package adds."""

from collections.abc import Iterable
from typing import Final

from pd_analysis.words.language import tr
from pd_contracts.latency import FORMULAS

PER_GPU: Final = "the rate / GPUs of the deployment"

ENERGY: Final[dict[str, str]] = {
    "Energy": "difference of the board's energy counter over the measured window, interpolated between the samples at its edges",
    "Closure": "integral of sampled power (instantaneous, or the board's average) / counter difference − 1",
    "Energy per output token": "energy of all serving GPUs / output tokens",
    "Energy per token": "energy of all serving GPUs / (prompt + output tokens)",
    "J per prompt token (prefill)": "energy of the prefill GPUs / prompt tokens",
    "J per output token (decode)": "energy of the decode GPUs / output tokens",
    "J per prompt and output token (combined)": "energy of the combined GPUs / (prompt + output tokens)",
    "Mean power per GPU": "energy of all serving GPUs / measured window / their number",
    "Static part": "lowest median power without a request × measured window; unknown if the recording has no idle second",
    "Dynamic part": "energy − static part",
    "J per computed prompt token": (
        "energy of the prefill GPUs (of combined ones: of their prefill) / prompt tokens that the engines computed in the measured window, "
        "by their own counters: prompt tokens − those that a cache or another engine had"
    ),
    "Joules of a request": (
        "each 0.2 s of a role's energy is divided among the requests in that phase then, by their tokens spread evenly over the phase; "
        "prefill: until it answered, or the first token; decode: from then to the last token"
    ),
    "Joules without a request": "energy of the slices of 0.2 s in which no request was being served; together with the joules of all requests it is the whole energy",
    "Batch": "all batches of one size together, each from its send to its last end; TTFT and TPOT are medians over their requests",
    "Phases by difference": (
        "prefill: window of the requests of one output token / their number; decode: the window of those of all tokens, over their number, − that; "
        "energy in the same way, power = energy / time; ± is one standard error"
    ),
    "Error of a short window": "one update of the energy counter (0.1 s of the mean power) at either end of the window",
    "Phases of combined GPUs": (
        "energy of a second = idle + a × prompt tokens + b × output tokens + c × seconds with a decode, fitted without negative terms; "
        "each 0.2 s is divided as a × prompt tokens is to the rest"
    ),
}

COUNTING: Final[dict[str, str]] = {
    "Measured window": "first scheduled send to last end, warm-up left out",
    "Percentiles": "over successful requests of the measured window, linear interpolation; failures are counted separately",
    "Request rate": "successful requests / measured window",
    "Requests within all limits": "requests that meet every given limit / all measured requests; failures never meet one",
    "Tokens": "of successful requests, from the server's usage",
    "Per GPU": PER_GPU,
    "95% interval": (
        "bootstrap, 2,000 seeded draws over requests (over repeats too, where there are some); where consecutive requests "
        "are alike, they count as fewer"
    ),
    "Saturated": "median TTFT and the requests in flight both rise more than 1.5× from the first third of the run to the last",
    "Stages": "the proxy's own timing of one request; the slowest 1% are the requests at or above the p99 of their sum",
}

ALL: Final[dict[str, str]] = {**FORMULAS, **COUNTING, **ENERGY}


def formula(name: str) -> str:
    """One definition in the current language."""
    return tr(ALL[name])


def defined(names: Iterable[str]) -> str:
    """Several, each after its name, as sentences."""
    return "".join(tr("{name}: {formula}. ", name=tr(name), formula=formula(name)) for name in names).rstrip()
