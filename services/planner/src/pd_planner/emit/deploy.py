"""A plan as variables for pdctl and Compose, and as values for the Helm chart."""

from collections.abc import Iterator

import yaml

from pd_planner.emit.plan_file import Deployment, PlanFile
from pd_simulator.steps.engines import Order


def variables(plan: PlanFile) -> dict[str, str]:
    """The variables of one cell on one host: which GPUs serve as what, and the engines' limits."""
    deployment = plan.best.deployment
    found = dict(_gpus(deployment))
    if deployment.connector:
        found["KV_CONNECTOR"] = deployment.connector.value
    if writer := _first_token(deployment):
        found |= {"DECODE_ASKED": "at_once", "FIRST_TOKEN": writer}
    return found | {
        "TENSOR_PARALLEL_SIZE": str(deployment.tensor_parallel),
        "MAX_NUM_SEQS": str(plan.engine.max_num_seqs),
        "MAX_NUM_BATCHED_TOKENS": str(plan.engine.max_num_batched_tokens),
        "PREFIX_CACHING": "on" if plan.prefix_caching else "off",
    }


def _first_token(deployment: Deployment) -> str:
    """Who writes the first token; empty where that is no choice."""
    return {Order.AFTER: "", Order.AT_ONCE: "decode", Order.HAND_OFF: "prefill"}[deployment.order]


def _gpus(deployment: Deployment) -> Iterator[tuple[str, str]]:
    size = deployment.tensor_parallel
    prefill, other = deployment.prefills * size, deployment.others * size
    if not prefill:
        yield "COMBINED_GPUS", _listed(0, other * deployment.cells)
        return
    yield "PREFILL_GPUS", _listed(0, prefill)
    yield "DECODE_GPUS", _listed(prefill, prefill + other)


def _listed(first: int, end: int) -> str:
    return ",".join(map(str, range(first, end)))


def env_text(plan: PlanFile) -> str:
    """Lines for .env.local, which Compose and pdctl read."""
    deployment = plan.best.deployment
    lines = [
        f"# {deployment.label}, planned by pd-plan on {plan.created}: pdctl {'all' if deployment.prefills else 'all combined'}"
    ]
    if deployment.prefills and deployment.cells > 1:
        lines.append(f"# One of {deployment.cells} cells; each has its own proxy, and the load is shared among them.")
    lines += [f"{name}={value}" for name, value in variables(plan).items()]
    return "\n".join(lines) + "\n"


def values_text(plan: PlanFile) -> str:
    deployment = plan.best.deployment
    engine: dict[str, object] = {
        "tensorParallelSize": deployment.tensor_parallel,
        "maxNumSeqs": plan.engine.max_num_seqs,
        "maxNumBatchedTokens": plan.engine.max_num_batched_tokens,
        "prefixCaching": plan.prefix_caching,
    }
    if deployment.connector:
        engine |= {
            "kvConnector": deployment.connector.value,
            "topology": "pod",
            "podReplicas": deployment.cells,
        }
        counts = {"prefill": {"count": deployment.prefills}, "decode": {"count": deployment.others}}
    else:
        counts = {
            "prefill": {"count": 0},
            "decode": {"count": 0},
            "combined": {"count": deployment.others * deployment.cells},
        }
    head = f"# {deployment.label}, planned by pd-plan on {plan.created}. The model is not part of a plan: set model.name.\n"
    writer = _first_token(deployment)
    proxy = {"proxy": {"decodeAsked": "at_once", "firstToken": writer}} if writer else {}
    return head + yaml.safe_dump({"engine": engine, **counts, **proxy}, sort_keys=False)
