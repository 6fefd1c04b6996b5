"""What pdctl doctor reads of a machine: NVML through a library without a GPU, models on disk, engines' interpreters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.control import environment, pdctl, settings
from support.monitor import build_fake_nvml

from pd_contracts.names import Topology
from pd_control.doctor import gather, models
from pd_control.doctor.facts import Facts, Nvml
from pd_control.planning.plan import Engine, plan


@pytest.fixture(scope="module", name="library")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


def read_nvml(library: Path, folder: Path, *faults: str) -> Nvml:
    control = folder / "faults"
    control.write_text("".join(f"{line}\n" for line in faults))
    code = "import msgspec, sys; from pd_control.doctor import nvml; sys.stdout.buffer.write(msgspec.json.encode(nvml.read()))"
    env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_CONTROL": str(control)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, timeout=30)
    return msgspec.json.decode(done.stdout, type=Nvml)


def test_boards_and_what_joins_them(library: Path, tmp_path: Path) -> None:
    nvml = read_nvml(library, tmp_path)

    assert (nvml.problem, nvml.driver, nvml.cuda) == ("", "590.48.01-fake", (13, 0))
    assert [gpu.index for gpu in nvml.gpus] == [0, 1]
    gpu = nvml.gpus[0]
    assert (gpu.name, gpu.memory_bytes, gpu.free_bytes, gpu.mig) == ("Fake H200", 141 << 30, 41 << 30, False)
    assert (gpu.power_limit_w, gpu.power_default_w) == (700, 700)
    assert (gpu.links_up, gpu.links_down, gpu.throttled, gpu.tenants) == (18, 0, [], [])
    assert [(link.a, link.b, link.p2p, link.nvlink, link.path) for link in nvml.links] == [
        (0, 1, True, True, "between NUMA nodes")
    ]


def test_faults_of_boards_are_read(library: Path, tmp_path: Path) -> None:
    nvml = read_nvml(library, tmp_path, "mig 1", "p2p 3", "linkdown 0", f"process {os.getpid()}")

    assert [gpu.mig for gpu in nvml.gpus] == [False, True]
    assert (nvml.links[0].p2p, nvml.links[0].nvlink) == (False, False)
    assert [(gpu.links_up, gpu.links_down) for gpu in nvml.gpus] == [(16, 2), (18, 0)]
    (tenant,) = nvml.gpus[0].tenants
    assert (tenant.pid, tenant.memory_bytes) == (os.getpid(), 1 << 30)
    assert tenant.name


def test_boards_that_do_not_tell_are_no_failure(library: Path, tmp_path: Path) -> None:
    nvml = read_nvml(library, tmp_path, "call memory 3", "call reasons 3", "call processes 3")

    assert (nvml.problem, nvml.gpus[0].free_bytes, nvml.gpus[0].tenants) == ("", None, [])


def test_a_driver_that_is_not_loaded_is_a_finding(library: Path, tmp_path: Path) -> None:
    assert read_nvml(library, tmp_path, "init 9").problem == "Driver Not Loaded"


def test_the_doctor_looks_through_nvml_and_says_what_is_wrong(library: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "state", LD_LIBRARY_PATH=str(library.parent), MODEL=str(tmp_path / "none"))

    done = pdctl("doctor", "--json", env=env, cwd=tmp_path)

    report = json.loads(done.stdout)
    assert msgspec.convert(report["facts"], Facts).nvml is not None  # what was recorded can be read back
    codes = {finding["code"] for finding in report["findings"] if finding["level"] == "error"}
    # The fake boards have 41 GiB free, MODEL is nowhere, and this interpreter has no vLLM.
    assert codes == {"gpu-memory", "vllm-missing", "engine-refused"}
    assert done.returncode == 1
    assert "P2P over NVLink, 18 links" in [finding["sentence"] for finding in report["findings"]]


def model(folder: Path, config: dict[str, Any], tokens: int = 10, added: int = 0, weights: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"t{number}": number for number in range(tokens)}
    more = [{"id": tokens + number, "content": f"<{number}>"} for number in range(added)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": more}))
    if weights:
        (folder / weights).touch()
    return folder


def test_a_model_is_read_from_its_files(tmp_path: Path) -> None:
    config = {"vocab_size": 12, "max_position_embeddings": 4096, "num_attention_heads": 8}
    path = model(tmp_path / "model", config, added=3, weights="model.safetensors")

    seen = models.look(str(path), {})

    assert (seen.local, seen.config, seen.vocabulary, seen.tokenizer_vocabulary) == (True, True, 12, 13)
    assert (seen.longest, seen.heads, seen.weights, seen.missing) == (4096, 8, 1, [])


def test_shards_of_the_index_that_are_not_there_are_missing(tmp_path: Path) -> None:
    path = model(tmp_path / "model", {"text_config": {"vocab_size": 10}}, weights="a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))

    seen = models.look(str(path), {})

    assert (seen.vocabulary, seen.missing) == (10, ["b.safetensors"])


def test_a_broken_config_is_told_and_a_name_is_left_to_vllm(tmp_path: Path) -> None:
    path = model(tmp_path / "model", {})
    (path / "config.json").write_text('{"vocab_size": ')

    assert "config.json" in models.look(str(path), {}).problem
    assert not models.look("org/model", {"HF_HOME": str(tmp_path)}).local
    assert models.look("/nowhere", {}).local


def test_a_name_is_looked_up_in_the_cache_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "hub/models--org--model/snapshots").mkdir(parents=True)
    config = {"vocab_size": 12}
    model(tmp_path / "hub/models--org--model/snapshots/0abc", config, weights="model.safetensors")

    seen = models.look("org/model", {"HF_HOME": str(tmp_path)})

    assert (seen.name, seen.local, seen.vocabulary, seen.weights) == ("org/model", True, 12, 1)


def test_an_interpreter_is_asked_what_it_has(tmp_path: Path) -> None:
    (engine, _) = plan(settings(engine_python=sys.executable), Topology.DISAGG, Engine.VLLM).engines

    seen = gather.ask(engine, os.environ)
    absent = gather.ask(msgspec.structs.replace(engine, argv=["/nowhere/python"]), os.environ)

    assert (seen.vllm, seen.problem) == ("", "")
    assert absent.problem == "/nowhere/python: No such file or directory"


def test_an_interpreter_tells_versions_without_importing_anything(tmp_path: Path) -> None:
    for name, version in (("vllm", "0.23.0"), ("torch", "2.11.0"), ("nixl", "1.3.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (tmp_path / "torch/version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\n")
    (engine, _) = plan(settings(engine_python=sys.executable), Topology.DISAGG, Engine.VLLM).engines

    seen = gather.ask(engine, {**os.environ, "PYTHONPATH": str(tmp_path)})

    assert (seen.problem, seen.vllm, seen.torch, seen.has_nixl) == ("", "0.23.0", "2.11.0+cu130", True)


def test_an_interpreter_without_pdstack_gets_what_an_engine_imports(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages, where the workspace is
    bare.chmod(0o755)
    (engine, _) = plan(settings(engine_python=str(bare)), Topology.DISAGG, Engine.VLLM).engines

    seen = gather.ask(engine, os.environ)
    alone = gather.ask(msgspec.structs.replace(engine, python_path=[]), os.environ)

    assert (seen.problem, seen.has_pd_connector) == ("", True)
    assert (alone.problem, alone.has_pd_connector) == ("", False)


def test_secrets_are_no_facts() -> None:
    told = {"VLLM_API_KEY": "x", "HF_TOKEN": "x", "NCCL_DEBUG": "INFO", "DTYPE": "auto", "PATH": "/bin", "UCX_TLS": ""}

    assert gather.relevant(told) == {"NCCL_DEBUG": "INFO", "DTYPE": "auto"}
    for plain in ("--seed 7", "--max-num-batched-tokens 9"):
        assert gather.relevant({"ENGINE_ARGS": plain}) == {"ENGINE_ARGS": plain}
    for secret in ("--api-key x", "--api-k x", "--hf_token=x", "--hf-tok x"):
        assert gather.relevant({"ENGINE_ARGS": f"--seed 7 {secret}"}) == {}
