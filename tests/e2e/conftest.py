"""Container tests run where a Docker engine answers and the base images can be had; elsewhere they say why they do not."""

import subprocess

import pytest

VLLM_CPU_IMAGE = "vllm/vllm-openai-cpu:v0.32.0"


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False  # no docker command, or an engine that hangs: either way there is none


@pytest.fixture(scope="session")
def docker() -> None:
    """Skip unless an engine and compose answer."""
    if not _answers("docker", "info"):
        pytest.skip("no Docker engine answers")
    if not _answers("docker", "compose", "version"):
        pytest.skip("Docker has no compose plugin")


@pytest.fixture(scope="session")
def vllm_cpu(docker: None) -> None:
    """Skip unless the vLLM CPU image is here or can be pulled."""
    if not _answers("docker", "image", "inspect", VLLM_CPU_IMAGE):
        pulled = subprocess.run(["docker", "pull", "--quiet", VLLM_CPU_IMAGE], capture_output=True, check=False)
        if pulled.returncode != 0:
            pytest.skip(f"{VLLM_CPU_IMAGE} is not here and cannot be pulled")
