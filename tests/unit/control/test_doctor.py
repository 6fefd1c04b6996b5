"""pdctl doctor's findings from facts: no error on a pair of H200, and for every fault the finding that names it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.control import settings

from pd_contracts.names import Topology
from pd_control.doctor.catalogue import CATALOGUE, Finding, Level
from pd_control.doctor.checks_gpu import exchanging
from pd_control.doctor.checks_machine import chosen
from pd_control.doctor.command import diagnose
from pd_control.doctor.facts import Facts
from pd_control.planning.plan import Engine, plan

ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "tests/support/facts/h200x2.json"
NO_MODEL = {"exists": False, "config": False}


def facts(**changes: Any) -> Facts:
    """The recorded pair of H200; `nvml__gpus__0__mig=True` changes one value."""
    tree = msgspec.json.decode(RECORDED.read_bytes())
    for path, value in changes.items():
        *way, last = [int(key) if key.isdigit() else key for key in path.split("__")]
        node = tree
        for key in way:
            node = node[key]
        node[last] = value
    return msgspec.convert(tree, Facts)


def findings(found: Facts, topology: Topology = Topology.DISAGG, **changes: Any) -> list[Finding]:
    # vLLM's own P2P NCCL, which needs the most care.
    chosen_settings = settings(**{"model": "/models/llama", "kv_connector": "P2pNcclConnector", **changes})
    return diagnose(found, plan(chosen_settings, topology, Engine.VLLM).processes)


def bad(all_: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in all_ if finding.level is not Level.OK}


@pytest.mark.parametrize("topology", list(Topology))
def test_a_pair_of_h200_is_well(topology: Topology) -> None:
    all_ = findings(facts(), topology)

    assert bad(all_) == {}
    said = {finding.subject: finding.sentence for finding in all_}
    assert said["driver"] == "580.159.04, CUDA 13.0, 2 GPUs"
    assert said["namespaces"].startswith("ipc 4026531839, net 4026531833")
    assert said["vLLM"] == "0.23.0, torch 2.11.0+cu130, P2pNcclConnector"


def test_the_way_between_prefill_and_decode_is_told() -> None:
    said = {finding.subject: finding.sentence for finding in findings(facts())}

    assert said["GPU 0 ↔ GPU 1"] == "P2P over NVLink, 18 links"


# A finding, what brings it about in facts and in settings, and words of its sentence.
FAULTS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("nvml", {"nvml__problem": "NVML Shared Library Not Found"}, {}, "Not Found"),
    ("gpu-missing", {}, {"decode_gpus": (2,)}, "decode-0 is planned on it, but the GPUs are: 0, 1"),
    (
        "gpu-memory",
        {"nvml__gpus__1__free_bytes": 90 * 1024**3},
        {},
        "90 of 140 GiB free, decode-0 takes 98 (0.7 of all)",
    ),
    (
        "gpu-tenant",
        {"nvml__gpus__0__tenants": [{"pid": 77, "name": "python", "memory_bytes": 1024**3}]},
        {},
        "python 77 (1.0 GiB) uses it",
    ),
    ("gpu-mig", {"nvml__gpus__0__mig": True}, {}, "divided by MIG"),
    ("gpu-unlike", {"nvml__gpus__1__name": "NVIDIA H100"}, {}, "NVIDIA H100 and NVIDIA H200"),
    ("gpu-throttled", {"nvml__gpus__0__throttled": ["thermal slowdown (software)"]}, {}, "thermal slowdown (software)"),
    ("gpu-capped", {"nvml__gpus__0__power_limit_w": 500.0}, {}, "500 W of 700 W"),
    ("driver-old", {"nvml__cuda": [12, 8]}, {}, "torch 2.11.0+cu130 wants CUDA 13.0, and the driver runs 12.8"),
    (
        "visible-devices",
        {"variables__CUDA_VISIBLE_DEVICES": "2,3"},
        {},
        "CUDA_VISIBLE_DEVICES=2,3, and engines are planned on 0,1",
    ),
    ("p2p", {"nvml__links__0__p2p": False}, {}, "no P2P (one host bridge)"),
    ("nvlink", {"nvml__links__0__nvlink": False}, {}, "over PCIe"),
    ("nvlink-down", {"nvml__gpus__0__links_down": 2}, {}, "2 of 20 NVLinks are down"),
    ("nccl-p2p-off", {"variables__NCCL_P2P_LEVEL": "LOC"}, {}, "NCCL_P2P_LEVEL=LOC"),
    (
        "nccl-no-way",
        {"variables__NCCL_P2P_DISABLE": "1", "variables__NCCL_SHM_DISABLE": "1"},
        {},
        "NCCL_P2P_DISABLE=1 and NCCL_SHM_DISABLE=1",
    ),
    ("nccl-cumem", {"variables__NCCL_CUMEM_ENABLE": "0"}, {}, "NCCL_CUMEM_ENABLE=0"),
    ("interface", {"variables__NCCL_SOCKET_IFNAME": "ib0"}, {}, "ib0 matches none of lo, ifb0, ifb1, eth0"),
    (
        "interface",
        {"variables__UCX_NET_DEVICES": "mlx5_1:1", "machine__rdma": ["mlx5_0"]},
        {},
        "mlx5_1:1 is not one of lo, ifb0, ifb1, eth0, mlx5_0",
    ),
    ("shm", {"machine__shm_free_bytes": 64 * 1024**2, "machine__shm_bytes": 64 * 1024**2}, {}, "64 MiB of 64 MiB free"),
    ("shm-small", {"machine__shm_free_bytes": 700 * 1024**2}, {}, "700 MiB of 256 GiB free"),
    ("host-memory", {"machine__memory_bytes": 6 * 1024**3}, {}, "6.0 GiB for 2 engines"),
    (
        "memlock",
        {"machine__memlock_bytes": 8 * 1024**2, "machine__rdma": ["mlx5_0"]},
        {"kv_connector": "NixlConnector"},
        "8 MiB",
    ),
    ("port-taken", {"machine__taken": [20005]}, {}, "port 20005 of decode-0 is taken: set DECODE_HTTP_PORT"),
    ("port-ephemeral", {}, {"proxy_port": 40001}, "PROXY_PORT 40001 is within 32768 to 60999"),
    ("proxy-host", {"machine__proxy_address": ""}, {"proxy_host": "nowhere"}, "'nowhere' does not resolve"),
    (
        "address-loopback",
        {"machine__proxy_address": "10.0.0.1"},
        {"proxy_host": "10.0.0.1", "vllm_host_ip": "127.0.0.1"},
        "127.0.0.1 would be announced to the proxy at 10.0.0.1",
    ),
    ("address-foreign", {"machine__foreign": ["10.9.9.9"]}, {"vllm_host_ip": "10.9.9.9"}, "10.9.9.9 is not an address"),
    ("vllm-missing", {"software__vllm": ""}, {}, "python3 has no vLLM"),
    ("engine-refused", {"software__vllm": "0.24.0"}, {}, "removed after vLLM 0.23"),
    ("engine-refused", {"variables__VLLM_USE_V2_MODEL_RUNNER": "1"}, {}, "VLLM_USE_V2_MODEL_RUNNER must be 0"),
    ("engine-refused", {"software__has_pd_connector": False}, {"kv_connector": "P2pConnector"}, "no pd_connector"),
    ("engine-refused", {"software__has_nixl": False}, {"kv_connector": "NixlConnector"}, "no nixl package"),
    ("engine-refused", {"variables__ENGINE_ARGS": "--a 'b"}, {}, "is not quoted as in a shell"),
    ("engine-refused", {"variables__ENGINE_ARGS": "--no-enforce-eager"}, {}, "decode would wait forever"),
    ("engine-refused", {"variables__DTYPE": "auto", "variables__BLOCK_SIZE": "x"}, {}, "BLOCK_SIZE='x'"),
    ("engine-refused", {f"model__{key}": value for key, value in NO_MODEL.items()}, {}, "does not exist"),
    ("model-fetch", {"model__local": False, "variables__HF_HUB_OFFLINE": ""}, {}, "is not on this machine"),
    ("model-absent", {"model__local": False, "variables__HF_HUB_OFFLINE": "1"}, {}, "is not on this machine"),
    ("model-path", {"model__config": False}, {}, "m has no config.json"),
    ("model-path", {"model__problem": "config.json: truncated"}, {}, "truncated"),
    ("model-weights", {"model__weights": 0}, {}, "lacks any .safetensors"),
    ("model-weights", {"model__missing": ["model-2-of-4.safetensors"]}, {}, "model-2-of-4"),
    ("model-dummy", {"variables__LOAD_FORMAT": "dummy", "model__weights": 0}, {}, "random"),
    ("model-tokenizer", {"model__tokenizer": False}, {}, "neither tokenizer.json"),
    (
        "model-vocabulary",
        {"model__tokenizer_vocabulary": 128300},
        {},
        "the tokenizer goes up to id 128299, the model to 1023",
    ),
    ("model-length", {"variables__MAX_MODEL_LEN": "200000"}, {}, "the model has 8192 positions"),
    (
        "model-heads",
        {"model__heads": 7},
        {"tensor_parallel_size": 2, "prefill_gpus": (0, 1), "decode_gpus": (2, 3)},
        "7 heads do not divide into 2 GPUs",
    ),
]


@pytest.mark.parametrize(("code", "changed", "chosen_settings", "words"), FAULTS)
def test_every_fault_is_found_and_named(
    code: str, changed: dict[str, Any], chosen_settings: dict[str, Any], words: str
) -> None:
    found = bad(findings(facts(**changed), **chosen_settings))

    assert code in found, found
    assert words in found[code].sentence
    assert found[code].level is CATALOGUE[code].level
    assert found[code].remedy == CATALOGUE[code].remedy


def test_no_finding_of_the_catalogue_is_out_of_reach() -> None:
    assert {code for code, *_ in FAULTS} == set(CATALOGUE)


def test_the_page_on_operating_lists_every_finding() -> None:
    check = subprocess.run([sys.executable, ROOT / "docs/write_operating.py", "--check"], check=False)

    assert check.returncode == 0, "translate what is new in docs/findings_zh.py, and run python docs/write_operating.py"
    for page in ("operating.md", "operating.zh.md"):
        assert all(f"| `{code}` |" in (ROOT / "docs" / page).read_text(encoding="utf-8") for code in CATALOGUE)


def test_one_fault_is_told_once() -> None:
    found = [f for f in findings(facts(software__vllm="0.24.0")) if f.level is not Level.OK]

    assert [(f.code, f.subject) for f in found] == [("engine-refused", "prefill-0, decode-0")]


@pytest.mark.parametrize("connector", ["P2pConnector", "P2pNcclConnector", "NixlConnector"])
def test_where_there_is_no_vllm_no_version_of_it_is_refused(connector: str) -> None:
    found = bad(findings(facts(software__vllm="", software__has_nixl=False), kv_connector=connector))

    assert "vllm-missing" in found
    assert "engine-refused" not in found


def test_what_runs_already_does_not_take_its_own_ports_and_memory() -> None:
    used = {"nvml__gpus__0__free_bytes": 0, "nvml__gpus__1__free_bytes": 0}
    running = ["proxy", "prefill-0", "decode-0", "monitor"]

    assert set(bad(findings(facts(**used)))) == {"gpu-memory"}
    assert bad(findings(facts(**used, running=running))) == {}


def test_arguments_for_vllm_itself_count_as_their_variables_do() -> None:
    told = "--load_format dummy --gpu-mem=0.5 --seed 1"
    changed = {"variables__ENGINE_ARGS": told, "model__weights": 0, "nvml__gpus__0__free_bytes": 80 * 1024**3}

    assert set(bad(findings(facts(**changed)))) == {"model-dummy"}
    fixed = {"variables__ENGINE_ARGS": "--kv-cache-memory-bytes 1000", "nvml__gpus__0__free_bytes": 1024**3}
    assert bad(findings(facts(**fixed))) == {}


def test_simulators_need_no_gpu_and_no_vllm() -> None:
    bare = facts(nvml=None, software=None, model=None, machine__shm_free_bytes=0)

    assert bad(findings(bare)) == {}


@pytest.mark.parametrize(("topology", "pairs"), [("disagg", [(0, 2), (0, 3), (1, 2), (1, 3)]), ("combined", [])])
def test_only_gpus_that_exchange_kv_are_paired(topology: str, pairs: list[tuple[int, int]]) -> None:
    planned = plan(settings(prefill_gpus=(0, 1), decode_gpus=(2, 3)), Topology(topology), Engine.VLLM)

    assert exchanging(planned.engines) == pairs


def test_parts_of_one_engine_exchange_too() -> None:
    planned = plan(settings(combined_gpus=(0, 1), tensor_parallel_size=2), Topology.COMBINED, Engine.VLLM)

    assert exchanging(planned.engines) == [(0, 1)]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth", []),
        ("=eth1", ["eth1"]),
        ("^eth0,lo", ["eth1"]),
        ("^=eth0", ["lo", "eth1"]),
        ("ib0,eth1", ["eth1"]),
    ],
)
def test_interfaces_are_chosen_as_nccl_chooses_them(value: str, names: list[str]) -> None:
    assert chosen(value, ["lo", "eth0", "eth1"]) == names
