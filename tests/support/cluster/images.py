"""The project's images for the node, built from its Dockerfiles as k8s/README.md says; the engine that runs them is the node's."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from support.chart import ROOT

REPOSITORY: Final = "pdstack-cluster"
TAG: Final = "test"
SERVICES: Final = ("simulator", "proxy", "monitor", "loadgen", "analysis")
ROLES: Final = ("prefill", "decode", "combined")
VLLM_CPU: Final = "vllm/vllm-openai-cpu:v0.32.0"


def service(name: str) -> str:
    """Build one Python service's image; its name."""
    return _build(name, "services/python.Dockerfile", f"PACKAGE=pd-{name}")


def role(name: str) -> str:
    """Build the image of one engine role on vLLM for CPUs; its name."""
    return _build(name, f"services/{name}/Dockerfile", f"VLLM_IMAGE={VLLM_CPU}")


def there(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def remove() -> None:
    """All images that were built here; what they are made of stays in the build cache."""
    listed = subprocess.run(
        ["docker", "images", "--quiet", f"{REPOSITORY}/*"], capture_output=True, text=True, check=False, timeout=60
    )
    if listed.stdout:
        command = ["docker", "rmi", "--force", *sorted(set(listed.stdout.split()))]
        subprocess.run(command, capture_output=True, check=False, timeout=120)


def _build(name: str, dockerfile: str, argument: str) -> str:
    image = f"{REPOSITORY}/{name}:{TAG}"
    command = ["docker", "build", "--quiet", "--file", dockerfile, "--build-arg", argument, "--tag", image, "."]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    if built.returncode != 0:
        msg = f"{image} could not be built: {built.stderr[-3000:]}"
        raise RuntimeError(msg)
    return image


def derived(name: str, tag: str, recipe: str, files: Mapping[str, bytes]) -> str:
    """Build an image from a recipe and files beside it, under the name of one of the project's; its name."""
    image = f"{REPOSITORY}/{name}:{tag}"
    with tempfile.TemporaryDirectory() as folder:
        for path, content in {"Dockerfile": recipe.encode(), **files}.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        command = ["docker", "build", "--quiet", "--tag", image, folder]
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if built.returncode != 0:
        msg = f"{image} could not be built: {built.stderr[-3000:]}"
        raise RuntimeError(msg)
    return image
