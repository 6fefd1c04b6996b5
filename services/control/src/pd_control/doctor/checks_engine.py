"""vLLM, its settings and the model; no I/O."""

import re
from collections.abc import Iterator, Sequence

from pd_contracts.settings import SettingsError, load
from pd_contracts.vllm_releases import LAST_WITH_P2P_NCCL
from pd_control.doctor.catalogue import Finding, found, well
from pd_control.doctor.facts import Facts, Model, Software
from pd_control.planning.plan import ProcessSpec
from pd_engine.plan import complaints
from pd_engine.settings import EngineSettings, Host


def engine_findings(facts: Facts, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    """All findings about vLLM and the model; none if vLLM is not needed."""
    software = facts.software
    if software is None or not engines:
        return
    if software.problem or not software.vllm:
        said = software.problem or f"{software.python} has no vLLM"
        yield found("vllm-missing", "ENGINE_PYTHON", said)
    else:
        connector = engines[0].env.get("KV_CONNECTOR", "")
        yield well("vllm-missing", "vLLM", f"{software.vllm}, torch {software.torch or 'unknown'}, {connector}")
        yield from _driver(facts, software)
    yield from _refused(facts, software, engines)
    if facts.model is not None:
        yield from _model(facts, facts.model, engines)


def _driver(facts: Facts, software: Software) -> Iterator[Finding]:
    built = re.search(r"\+cu(\d+)(\d)$", software.torch)
    runs = facts.nvml.cuda if facts.nvml else None
    # Within one major version of CUDA the driver may be the older one.
    if built and runs and int(built[1]) > runs[0]:
        sentence = f"torch {software.torch} wants CUDA {built[1]}.{built[2]}, and the driver runs {runs[0]}.{runs[1]}"
        yield found("driver-old", "driver", sentence)


def _refused(facts: Facts, software: Software, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    told: dict[str, list[str]] = {}
    for engine in engines:
        for sentence in _refusals(facts, software, engine):
            told.setdefault(sentence, []).append(engine.name)
    for sentence, names in told.items():
        yield found("engine-refused", ", ".join(names), sentence)


def _refusals(facts: Facts, software: Software, engine: ProcessSpec) -> Iterator[str]:
    variables = {**facts.variables, **engine.env}
    try:
        settings = load(EngineSettings, variables)
    except SettingsError as error:
        yield str(error)
        return
    version = re.match(r"(\d+)\.(\d+)", software.vllm)
    host = Host(
        # Without vLLM only its absence is reported, so a version with every connector is assumed.
        vllm_version=(int(version[1]), int(version[2])) if version else LAST_WITH_P2P_NCCL,
        address=facts.machine.own_address,
        model_exists=facts.model is None or not facts.model.local or facts.model.exists,
        kv_path_writable=facts.machine.kv_path_writable,
        has_flashinfer=software.has_flashinfer,
        has_nixl=software.has_nixl or not software.vllm,
        has_pd_connector=software.has_pd_connector or not software.vllm,
    )
    yield from complaints(settings, host, variables)


def _model(facts: Facts, model: Model, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    dummy = facts.option("load_format", "LOAD_FORMAT") == "dummy"
    if dummy:
        yield found("model-dummy", "MODEL", "its weights are random")
    if model.name and not model.local:
        offline = facts.variables.get("HF_HUB_OFFLINE", "0").lower() in ("1", "on", "yes", "true")
        yield found("model-absent" if offline else "model-fetch", "MODEL", f"{model.name} is not on this machine")
    if not model.local or not model.exists:
        return  # a missing path was refused above
    if model.problem or not model.config:
        yield found("model-path", "MODEL", model.problem or f"{model.name} has no config.json")
        return
    if not dummy and (model.missing or not model.weights):
        lacking = ", ".join(model.missing[:3]) or "any .safetensors or .bin file"
        yield found("model-weights", "MODEL", f"{model.name} lacks {lacking}")
    yield from _vocabulary(model)
    yield from _shape(facts, model, engines)


def _vocabulary(model: Model) -> Iterator[Finding]:
    if not model.tokenizer:
        yield found("model-tokenizer", "MODEL", f"{model.name} has neither tokenizer.json nor tokenizer.model")
    elif model.tokenizer_vocabulary and model.vocabulary and model.tokenizer_vocabulary > model.vocabulary:
        sentence = f"the tokenizer goes up to id {model.tokenizer_vocabulary - 1}, the model to {model.vocabulary - 1}"
        yield found("model-vocabulary", "MODEL", sentence)
    elif model.vocabulary is not None:
        yield well("model-vocabulary", "MODEL", f"{model.name}, vocabulary of {model.vocabulary}")


def _shape(facts: Facts, model: Model, engines: Sequence[ProcessSpec]) -> Iterator[Finding]:
    longest = facts.option("max_model_len", "MAX_MODEL_LEN")
    if model.longest and longest.isdigit() and int(longest) > model.longest:
        yield found("model-length", "MODEL", f"MAX_MODEL_LEN={longest}, and the model has {model.longest} positions")
    size = len(engines[0].gpus)
    if model.heads and size and model.heads % size:
        yield found("model-heads", "MODEL", f"{model.heads} heads do not divide into {size} GPUs")
