"""Combinations that cannot work, each refused at start with a sentence that says what to change.

All were met for real: the first two let decode answer 200 with tokens that have nothing to do with the prompt.
"""

import ipaddress
import shlex
from collections.abc import Iterator, Mapping

from pd_contracts.names import Connector
from pd_contracts.vllm_releases import FIRST_WITH_P2P, LAST_WITH_P2P_NCCL, image, words
from pd_engine.settings import EngineSettings, Host


def refusals(settings: EngineSettings, host: Host, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for every setting and variable that must not start; guards.py looks at the command that comes of them."""
    yield from _model(settings, host)
    yield from _tls(settings)
    yield from _arguments(settings)
    yield from _environment(environment, settings)
    yield from _both(settings)
    if not settings.moves_kv:
        return
    yield from _address(settings, host)
    if settings.kv_connector is Connector.P2P:
        yield from _p2p(host)
    elif settings.kv_connector is Connector.P2P_NCCL:
        yield from _p2p_nccl(settings, host)
        yield from _p2p_nccl_environment(settings, environment)
    elif settings.kv_connector is Connector.NIXL and not host.has_nixl:
        yield "KV_CONNECTOR=NixlConnector, but this image has no nixl package: use an image that includes it, or another connector."
    elif settings.kv_connector is Connector.EXAMPLE and not host.kv_path_writable:
        yield (
            f"KV_SHARED_PATH={settings.kv_shared_path} is not a folder that this user can write to: mount a volume there, "
            "the same in prefill and decode."
        )


def _model(settings: EngineSettings, host: Host) -> Iterator[str]:
    if not settings.model:
        yield "MODEL is not set: give a Hugging Face name or the path of a model directory."
    elif not host.model_exists:
        yield f"MODEL={settings.model} is a path that does not exist: mount the model directory, or give a Hugging Face name."


def _both(settings: EngineSettings) -> Iterator[str]:
    if settings.both and settings.kv_connector is not Connector.P2P:
        yield f"KV_BOTH needs KV_CONNECTOR=P2pConnector, and it is {settings.kv_connector}: only that lets decode be chosen late."


def _tls(settings: EngineSettings) -> Iterator[str]:
    if bool(settings.engine_tls_cert_file) != bool(settings.engine_tls_key_file):
        yield "ENGINE_TLS_CERT_FILE and ENGINE_TLS_KEY_FILE belong together: one of them is not set."


def _arguments(settings: EngineSettings) -> Iterator[str]:
    try:
        shlex.split(settings.engine_args)
    except ValueError as error:
        yield f"ENGINE_ARGS={settings.engine_args!r} is not quoted as in a shell: {error}."


def _environment(environment: Mapping[str, str], settings: EngineSettings) -> Iterator[str]:
    if environment.get("VLLM_API_KEY", "") not in ("", settings.engine_api_key):
        yield (
            "VLLM_API_KEY is a key that the proxy does not have: it would never admit this engine. "
            "Set ENGINE_API_KEY instead, the same for the proxy and every engine."
        )
    if environment.get("VLLM_DP_SIZE", "1") not in ("", "1"):
        yield "VLLM_DP_SIZE: the proxy balances between engines; start several instances instead."


def _address(settings: EngineSettings, host: Host) -> Iterator[str]:
    address = settings.vllm_host_ip or host.address
    try:
        usable = not ipaddress.IPv4Address(address).is_unspecified
    except ValueError:
        usable = False
    if not usable:
        yield (
            f"VLLM_HOST_IP={address!r} is not a numeric IPv4 address: the engines bind it and send it to each other, "
            "so a name, IPv6 or 0.0.0.0 does not work."
        )


def _p2p(host: Host) -> Iterator[str]:
    if host.vllm_version < FIRST_WITH_P2P:
        yield (
            f"KV_CONNECTOR=P2pConnector needs vLLM {words(FIRST_WITH_P2P)} or later, and this image has {words(host.vllm_version)}: "
            "set VLLM_IMAGE to a later one."
        )
    if not host.has_pd_connector:
        yield (
            "KV_CONNECTOR=P2pConnector, but this image has no pd_connector: build it from services/prefill/Dockerfile or its siblings, "
            "or pip install the wheel of services/connector."
        )


def _p2p_nccl(settings: EngineSettings, host: Host) -> Iterator[str]:
    if "," in settings.proxy_host or host.proxies > 1:
        yield (
            f"KV_CONNECTOR=P2pNcclConnector announces itself to one proxy, and PROXY_HOST={settings.proxy_host} names several: "
            "run one proxy, or set KV_CONNECTOR=P2pConnector."
        )
    if settings.engine_device == "cpu":
        yield "KV_CONNECTOR=P2pNcclConnector needs NVIDIA GPUs: on the CPU use P2pConnector, ExampleConnector or NixlConnector."
    if host.vllm_version > LAST_WITH_P2P_NCCL:
        yield (
            f"KV_CONNECTOR=P2pNcclConnector was removed after vLLM {words(LAST_WITH_P2P_NCCL)}, and this image has {words(host.vllm_version)}: "
            f"set KV_CONNECTOR=P2pConnector, or VLLM_IMAGE to {image(LAST_WITH_P2P_NCCL)}."
        )


def _p2p_nccl_environment(settings: EngineSettings, environment: Mapping[str, str]) -> Iterator[str]:
    if settings.guard_model_runner and environment.get("VLLM_USE_V2_MODEL_RUNNER", "0") != "0":
        yield (
            "VLLM_USE_V2_MODEL_RUNNER must be 0 with P2pNcclConnector: the V2 model runner makes decode ignore the KV it "
            "received and answer 200 with garbage."
        )
    if environment.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1") != "1":
        yield (
            "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION must be 1 with P2pNcclConnector: KV is keyed by the request id, and with "
            "random endings decode waits forever."
        )
