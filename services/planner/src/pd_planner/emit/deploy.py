"""A plan as variables for pdctl and Compose, and as values for the Helm chart."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from pd_contracts.names import Connector
from pd_contracts.vllm_releases import LAST_WITH_P2P_NCCL, full, image
from pd_planner.emit.plan_file import Deployment, PlanFile
from pd_routing.names import Routing
from pd_simulator.steps.engines import Order

# As `.env` and the chart have them: the first prefill engine's ports, the next engine's distance, and the first decode engine's ports.
PREFILL_HTTP, PREFILL_KV, HTTP_STEP, KV_STEP = 20003, 21001, 1, 100
DECODE_HTTP, DECODE_KV = 20005, 22001
NODE_GPUS: Final = 8  # the chart's gpu.perNode
_NEEDS_OLD_VLLM: Final = f"P2pNcclConnector needs vLLM {full(LAST_WITH_P2P_NCCL)}, the last release that has it"
# Beside plan.json: what the proxy's STEP_PROFILE names, if the plan does not rest on a shipped profile.
STEP_PROFILE_FILE: Final = "profile.toml"
_IN_THE_IMAGE: Final = Path("/")


def variables(plan: PlanFile, folder: Path) -> dict[str, str]:
    """The variables of one cell on one host: which GPUs serve as what, and the engines' limits. `folder` is that of plan.json."""
    deployment = plan.best.deployment
    found = dict(_gpus(deployment)) | {name: str(port) for name, _, port in _ports(deployment)}
    if deployment.connector:
        found["KV_CONNECTOR"] = deployment.connector.value
    if writer := _first_token(deployment):
        found |= {"DECODE_ASKED": "at_once", "FIRST_TOKEN": writer}
    if deployment.adaptive:
        found |= {"KV_BOTH": "on", **routing(plan.goodput, _step_profile(plan, folder.resolve()))}
    if plan.max_model_len:
        found["MAX_MODEL_LEN"] = str(plan.max_model_len)
    return found | {
        "TENSOR_PARALLEL_SIZE": str(deployment.tensor_parallel),
        "MAX_NUM_SEQS": str(plan.engine.max_num_seqs),
        "MAX_NUM_BATCHED_TOKENS": str(plan.engine.max_num_batched_tokens),
        "PREFIX_CACHING": "on" if plan.prefix_caching else "off",
    }


def routing(goodput: Mapping[str, float], profile: str) -> dict[str, str]:
    """The proxy's settings for adaptive roles: limits in milliseconds, and the name or path of a profile."""
    return {
        "ROUTING": Routing.ADAPTIVE.value,
        "TTFT_SLO_MS": f"{goodput['ttft']:g}",
        "TPOT_SLO_MS": f"{goodput['tpot']:g}",
        "STEP_PROFILE": profile,
    }


def _step_profile(plan: PlanFile, folder: Path) -> str:
    """The shipped profile that a plan rests on, or the file in `folder` that has its own."""
    return plan.step_profile or str(folder / STEP_PROFILE_FILE)


def _first_token(deployment: Deployment) -> str:
    """FIRST_TOKEN; empty for connectors without that choice."""
    return {Order.AFTER: "", Order.AT_ONCE: "decode", Order.HAND_OFF: "prefill"}[deployment.order]


def _gpus(deployment: Deployment) -> Iterator[tuple[str, str]]:
    size = deployment.tensor_parallel
    prefill, other = deployment.prefills * size, deployment.others * size
    if not prefill:
        yield "COMBINED_GPUS", _listed(0, other * (1 if deployment.adaptive else deployment.cells))
        return
    yield "PREFILL_GPUS", _listed(0, prefill)
    yield "DECODE_GPUS", _listed(prefill, prefill + other)


def _ports(deployment: Deployment) -> Iterator[tuple[str, str, int]]:
    """First ports of decode engines, as a variable and in the chart, where so many prefill engines would reach the usual ones."""
    http, kv = PREFILL_HTTP + HTTP_STEP * deployment.prefills, PREFILL_KV + KV_STEP * deployment.prefills
    if http > DECODE_HTTP:
        yield "DECODE_HTTP_PORT", "decodeHttp", http
    if kv > DECODE_KV:
        yield "DECODE_KV_PORT", "decodeKv", kv


def _listed(first: int, end: int) -> str:
    return ",".join(map(str, range(first, end)))


def env_text(plan: PlanFile, folder: Path) -> str:
    """Lines for .env.local, which Compose and pdctl read. `folder` is that of plan.json."""
    deployment = plan.best.deployment
    lines = [
        f"# {deployment.label}, planned by pd-plan on {plan.created}: pdctl {'all' if deployment.prefills else 'all combined'}"
    ]
    if deployment.in_cells and deployment.cells > 1:
        lines.append(f"# One of {deployment.cells} cells; each has its own proxy, and the load is shared among them.")
    if deployment.connector is Connector.P2P_NCCL:
        lines.append(f"# {_NEEDS_OLD_VLLM}: in ENGINE_PYTHON, or VLLM_IMAGE={image(LAST_WITH_P2P_NCCL)}.")
    lines += [f"{name}={value}" for name, value in variables(plan, folder).items()]
    return "\n".join(lines) + "\n"


def values_text(plan: PlanFile) -> str:
    """Values of the chart: cells are pods, or, if one is larger than a node, a release each."""
    deployment = plan.best.deployment
    large = deployment.prefills > 0 and deployment.gpus // deployment.cells > NODE_GPUS
    lines = [
        f"# {deployment.label}, planned by pd-plan on {plan.created}. The model is not part of a plan: set model.name."
    ]
    if large:
        lines.append(
            f"# A cell has more GPUs than a node ({NODE_GPUS}): its engines are pods of their own, and KV goes over the network, which the plan does not know."
        )
    if deployment.connector is Connector.P2P_NCCL:
        lines.append(f"# {_NEEDS_OLD_VLLM}: build the engine images from {image(LAST_WITH_P2P_NCCL)}.")
    if (large or deployment.adaptive) and deployment.cells > 1:
        lines.append(f"# One of {deployment.cells} cells: install each as a release, and share the load among them.")
    if deployment.adaptive and not plan.step_profile:
        lines.append(f"# The proxy needs this plan's {STEP_PROFILE_FILE}: put it into its image, or mount it there.")
    placed: dict[str, object] = {"topology": "pod", "podReplicas": deployment.cells} if deployment.prefills else {}
    values: dict[str, Any] = {
        "engine": _engine(plan) | ({"topology": "separate"} if large else placed),
        **_counts(deployment),
    }
    if deployment.connector is Connector.P2P_NCCL:
        values["images"] = {"vllmVersion": full(LAST_WITH_P2P_NCCL)}
    ports = {name: port for _, name, port in _ports(deployment)}
    if ports and not large:
        values["ports"] = ports
    if writer := _first_token(deployment):
        values["proxy"] = {"decodeAsked": "at_once", "firstToken": writer}
    if deployment.adaptive:
        values["proxy"] = {
            **values.get("proxy", {}),
            "env": routing(plan.goodput, _step_profile(plan, _IN_THE_IMAGE)),
        }
    return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False)


def _engine(plan: PlanFile) -> dict[str, object]:
    deployment = plan.best.deployment
    connector = {"kvConnector": deployment.connector.value} if deployment.connector else {}
    longest = {"maxModelLen": plan.max_model_len} if plan.max_model_len else {}
    return {
        "tensorParallelSize": deployment.tensor_parallel,
        "maxNumSeqs": plan.engine.max_num_seqs,
        "maxNumBatchedTokens": plan.engine.max_num_batched_tokens,
        "prefixCaching": plan.prefix_caching,
        **connector,
        **longest,
    }


def _counts(deployment: Deployment) -> dict[str, dict[str, int | bool]]:
    if deployment.prefills:
        return {"prefill": {"count": deployment.prefills}, "decode": {"count": deployment.others}}
    if deployment.adaptive:
        return {
            "prefill": {"count": 0},
            "decode": {"count": 0},
            "combined": {"count": deployment.others, "kvBoth": True},
        }
    plain = deployment.others * deployment.cells
    return {"prefill": {"count": 0}, "decode": {"count": 0}, "combined": {"count": plain}}
