"""`pdctl all` as on a GPU node: real NVML reads, the engines' entry point and its environment; only vLLM itself is replaced by a simulator.

The player is a package `vllm` that says it is 0.23.0, writes down how it was called, and serves as a simulated engine.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from support.control import alive, environment, pdctl
from support.monitor import build_fake_nvml

from pd_control.supervision.state import Store

PLAYER = """\
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["PLAYED"])
name = f"{os.environ['PD_ROLE']}-{os.environ['INSTANCE']}"
print("loading", flush=True)
if os.environ.get("FAILS") == name:
    try:
        raise ValueError("Free memory on device cuda:0 (41.2/139.8 GiB) is less than desired")
    except ValueError:
        import traceback
        traceback.print_exc()
        sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
(folder / f"{name}.json").write_text(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}))
sys.argv = sys.argv[:1]
from pd_simulator.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module", name="library")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(name="env")
def _env(library: Path, tmp_path: Path) -> dict[str, str]:
    """A node with two GPUs, vLLM and a model."""
    package = tmp_path / "site/vllm/entrypoints/cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(PLAYER)
    information = tmp_path / "site/vllm-0.23.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.23.0\n")
    return environment(
        tmp_path / "state",
        LD_LIBRARY_PATH=str(library.parent),
        PYTHONPATH=str(tmp_path / "site"),
        ENGINE_PYTHON="python3",
        PATH=_with_python(tmp_path),
        PLAYED=str(tmp_path),
        MODEL=str(_model(tmp_path / "model")),
        SIM_PROFILE="demo",
        MAX_MODEL_LEN="4096",
        GPU_MEMORY_UTILIZATION="0.2",  # the fake boards have 41 of 141 GiB free
    )


def _with_python(folder: Path) -> str:
    # The interpreter of the tests under the name that pdctl looks for, as on a node that has but one.
    (folder / "bin").mkdir()
    (folder / "bin/python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin/python3").chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def _model(folder: Path) -> Path:
    folder.mkdir()
    config = {"vocab_size": 4, "max_position_embeddings": 8192, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 3}}}))
    (folder / "model.safetensors").touch()
    return folder


def test_a_node_serves_with_every_engine_on_its_own_gpu(env: dict[str, str], tmp_path: Path) -> None:
    try:
        up = pdctl("all", env=env, cwd=tmp_path)
        assert up.returncode == 0, up.stdout
        smoke = pdctl("smoke", env=env, cwd=tmp_path)
        again = pdctl("doctor", env=env, cwd=tmp_path)
    finally:
        pdctl("down", env=env, cwd=tmp_path)

    assert smoke.returncode == 0, smoke.stdout
    assert again.returncode == 0, again.stdout  # its own ports and memory are no finding
    for role, gpu in (("prefill", "0"), ("decode", "1")):
        played = json.loads((tmp_path / f"{role}-0.json").read_text())
        told = played["environment"]
        assert (told["CUDA_VISIBLE_DEVICES"], told["CUDA_DEVICE_ORDER"]) == (gpu, "PCI_BUS_ID")
        assert told["VLLM_HOST_IP"] == "127.0.0.1"
        assert played["arguments"][:2] == ["serve", env["MODEL"]]


def test_the_error_of_an_engine_that_died_is_in_the_first_line(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("all", env={**env, "FAILS": "decode-0"}, cwd=tmp_path)

    assert up.returncode == 1
    assert "decode-0 ended: ValueError: Free memory on device cuda:0 (41.2/139.8 GiB)" in up.stdout
    assert Store(Path(env["STATE_DIR"])).load() is None


def test_a_gpu_without_room_stops_everything_before_it_starts(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("all", env={**env, "GPU_MEMORY_UTILIZATION": ""}, cwd=tmp_path)

    assert up.returncode == 1
    assert "41 of 141 GiB free, prefill-0 takes 130 (0.92 of all)" in " ".join(up.stdout.split())
    assert not (tmp_path / "prefill-0.json").exists()


def test_a_comparison_measures_nothing_if_a_later_deployment_cannot_start(env: dict[str, str], tmp_path: Path) -> None:
    asked = ("--deployments", "2c,1p1d:nixl", "--input-output", "8:4", "--rates", "5", "--duration", "2")

    done = pdctl("compare", *asked, "--out", str(tmp_path / "out"), env=env, cwd=tmp_path)

    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "no nixl package" in said
    assert "nothing was measured, because this machine cannot run disagg 1P1D nixl" in said
    assert not (tmp_path / "combined-0.json").exists()


def test_a_comparison_that_goes_on_checks_only_what_is_left(env: dict[str, str], tmp_path: Path) -> None:
    asked = ("--deployments", "2c", "--input-output", "8:4", "--rates", "5", "--duration", "2", "--no-report")
    words = ("compare", *asked, "--out", str(tmp_path / "out"))
    env = {**env, "LOADGEN_LAG_LIMIT_MS": "5000"}  # a late client, on a busy machine, would be measured again
    measured = pdctl(*words, env=env, cwd=tmp_path)

    again = pdctl(*words, env={**env, "GPU_MEMORY_UTILIZATION": ""}, cwd=tmp_path)

    assert measured.returncode == 0, measured.stdout
    assert again.returncode == 0, again.stdout
    assert "every point was measured before" in again.stdout


def test_force_goes_on_where_the_doctor_would_not(env: dict[str, str], tmp_path: Path) -> None:
    try:
        up = pdctl("all", "--force", env={**env, "GPU_MEMORY_UTILIZATION": ""}, cwd=tmp_path)
        state = Store(Path(env["STATE_DIR"])).load()
        assert up.returncode == 0, up.stdout
        assert "because of --force" in up.stdout
        assert state is not None
    finally:
        pdctl("down", env=env, cwd=tmp_path)
    assert not any(alive(process.pid) for process in state.processes)
