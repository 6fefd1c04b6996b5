"""The one measurement that would decide: two deployments under the load at which they differ most in meeting the limits."""

import shlex
from typing import Final

from pd_planner.confidence.verdict import Comparison, Measure
from pd_planner.emit.deploy import routing
from pd_planner.search.candidates import Candidate, EngineLimits, name_of
from pd_planner.search.capacity import Setting
from pd_simulator.steps.engines import Order

_SECONDS: Final = 120
# Options of the load that the command has otherwise, or decides itself.
_SAID: Final = ("trace", "arrival", "duration", "time_scale", "rate", "seed", "input_tokens", "output_tokens")


def command(setting: Setting, compared: Comparison | None) -> str:
    """A command line of `pdctl compare` for a disaggregated deployment against a plain one; empty if there are not two deployments."""
    if compared is None:
        return ""
    apart, rate = compared.one.choice.fleet.candidate, _rate(compared)
    gpus = max(apart.gpus, 1)
    words = ["pdctl", "compare", "--gpus", ",".join(map(str, range(gpus)))]
    words += ["--deployments", f"{gpus // apart.tensor_parallel}c,{_spec(apart)}", *_offered(setting, rate, gpus)]
    return " ".join((*_variables(setting, apart), shlex.join(words)))


def _offered(setting: Setting, rate: float, gpus: int) -> list[str]:
    """The load and its limits."""
    words = _load(setting, rate)
    limits = " ".join(f"{metric}:{limit:g}" for metric, limit in setting.limits.milliseconds.items())
    words += ["--goodput", limits]
    if not setting.traffic.recorded:
        words += ["--duration", str(_SECONDS), "--seeds", "0,1"]
    return [*words, *_more(setting, rate * gpus)]


def of_roles(setting: Setting, roles: Comparison, profile: str) -> str:
    """A command line of `pdctl compare` that tries adaptive roles, of one cell, with this STEP_PROFILE."""
    cell = roles.one.choice.fleet.candidate
    rate = _rate(roles)
    words = ["pdctl", "compare", "--gpus", ",".join(map(str, range(cell.gpus))), "--deployments", f"{cell.others}c"]
    words += _offered(setting, rate, cell.gpus)
    own = {"KV_BOTH": "on", **routing(setting.limits.milliseconds, profile)}
    return " ".join(
        (*(f"{name}={value}" for name, value in own.items()), *_variables(setting, cell), shlex.join(words))
    )


def _rate(compared: Comparison) -> float:
    """Requests per second per GPU: for energy the rate that was asked for, else a rate between the two capacities, where they differ most."""
    one, other = compared.one, compared.other
    if compared.measure is Measure.ENERGY:
        return one.choice.operation.rate / one.choice.fleet.gpus
    return float((one.band.middle * other.band.middle) ** 0.5)


def _spec(candidate: Candidate) -> str:
    connector = f":{name_of(candidate.connector)}" if candidate.connector else ""
    return f"{candidate.prefills}p{candidate.others}d{connector}"


def _variables(setting: Setting, candidate: Candidate) -> list[str]:
    """Variables of engines and proxy that differ from the defaults."""
    engine, usual = setting.engine, EngineLimits(setting.engine.kv_tokens)
    found = {
        "TENSOR_PARALLEL_SIZE": (candidate.tensor_parallel, 1),
        "MAX_NUM_SEQS": (engine.max_num_seqs, usual.max_num_seqs),
        "MAX_NUM_BATCHED_TOKENS": (engine.max_num_batched_tokens, usual.max_num_batched_tokens),
        "MAX_MODEL_LEN": (engine.max_model_len, None),
        "PREFIX_CACHING": ("on" if setting.prefix_caching else "off", "off"),
        "FIRST_TOKEN": ("decode" if candidate.order is Order.AT_ONCE else "prefill", "prefill"),
    }
    return [f"{name}={value}" for name, (value, default) in found.items() if value != default]


def _load(setting: Setting, rate: float) -> list[str]:
    options = setting.traffic.options
    if setting.traffic.recorded:
        return ["--trace", options["trace"]]
    lengths = f"{options.get('input_tokens', '512')}:{options.get('output_tokens', '64')}"
    return ["--input-output", lengths, "--rates", f"{rate:.3g}"]


def _more(setting: Setting, rate: float) -> list[str]:
    """Options of pd-loadgen run: those of the question that pdctl compare has none for, and a trace's pace at `rate` requests per second."""
    traffic = setting.traffic
    own = {name: value for name, value in traffic.options.items() if name not in _SAID}
    if traffic.recorded:
        scale = float(traffic.options.get("time_scale", "1")) * traffic.rate / rate
        own["time_scale"] = f"{scale:.3g}"
    words = [word for name, value in own.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["--", *words] if words else []
