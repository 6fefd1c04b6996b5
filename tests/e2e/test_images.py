"""What the images are made of, and how they refuse to start."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["pd-proxy", "pd-simulator", "pd-monitor", "pd-loadgen", "pd-analysis"]
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=800)


def build(package: str) -> str:
    image = f"pdstack/{package.removeprefix('pd-')}"
    result = run(
        "docker",
        "build",
        "--tag",
        image,
        "--file",
        "services/python.Dockerfile",
        "--build-arg",
        f"PACKAGE={package}",
        ".",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return image


@pytest.mark.parametrize("package", PACKAGES)
def test_a_python_image_runs_as_a_user_and_holds_its_own_package_alone(docker: None, package: str) -> None:
    image = build(package)

    config = json.loads(run("docker", "image", "inspect", image).stdout)[0]["Config"]
    assert config["User"] == "10001:10001"
    listing = run("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", "ls /opt/venv/lib/python3*/site-packages")
    ours = {name for name in listing.stdout.split() if name.startswith("pd_") and not name.endswith(".dist-info")}
    # A simulated engine is probed and drained by the same commands as a real one, and moves KV by the same connector.
    more = {"pd-simulator": {"pd_engine", "pd_connector"}, "pd-proxy": {"pd_routing"}}.get(package, set())
    assert ours == {"pd_contracts", package.replace("-", "_")} | more
    tools = run("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", "command -v uv gcc cc make; true")
    assert tools.stdout == ""
    assert run("docker", "run", "--rm", image, "--help").returncode == 0


@pytest.fixture(name="decode_image", scope="module")
def _decode_image(vllm_cpu: None) -> str:
    image = "pdstack/decode:cpu"
    build_arguments = ("--build-arg", "VLLM_IMAGE=vllm/vllm-openai-cpu:v0.32.0")
    built = run("docker", "build", "--tag", image, "--file", "services/decode/Dockerfile", *build_arguments, ".")
    assert built.returncode == 0, built.stderr[-3000:]
    return image


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "MODEL is not set"),
        ({"MODEL": "/models/none", "KV_CONNECTOR": "ExampleConnector"}, "does not exist"),
        ({"MODEL": "m", "KV_CONNECTOR": "P2pNcclConnector"}, "removed after vLLM 0.23"),
        ({"MODEL": "m", "KV_CONNECTOR": "nccl"}, "KV_CONNECTOR='nccl'"),
        ({"MODEL": "m", "MAX_MODEL_LEN": "many"}, "MAX_MODEL_LEN='many'"),
    ],
)
def test_an_engine_that_could_not_work_says_why_and_ends(
    decode_image: str, variables: dict[str, str], sentence: str
) -> None:
    options = [part for key, value in variables.items() for part in ("--env", f"{key}={value}")]

    result = run("docker", "run", "--rm", "--env", "ENGINE_DEVICE=cpu", *options, decode_image)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


# Run inside the image: texts of answers after long prompts, by vLLM as it is and with what its plugins change.
DETOKENIZE = """
import random, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
Path("/tmp/text").write_text("the quick brown fox, naïve café, 预填充和解码 👩‍💻🚀 " * 200)
subprocess.run([sys.executable, "-m", "pd_engine.tiny_model", "/tmp/tiny", "/tmp/text"], check=True)
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.plugins import load_general_plugins
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
tokenizer = AutoTokenizer.from_pretrained("/tmp/tiny")
cases = []
for seed in range(300):
    r = random.Random(seed)
    words = r.choices(["the ", "quick", " naïve", "预填", "充和", "🚀", "👩‍💻", "\\n", " café"], k=200)
    ids = tokenizer.encode("".join(words))
    cases.append((ids, [r.randrange(len(tokenizer)) for _ in range(12)], bool(seed % 2)))
def texts():
    for ids, answer, skip in cases:
        parameters = SamplingParams(skip_special_tokens=skip)
        request = SimpleNamespace(request_id="r", sampling_params=parameters, prompt_token_ids=list(ids))
        one = FastIncrementalDetokenizer(tokenizer, request)
        for token in answer:
            one.update([token], False)
        yield type(one.stream).__name__, one.output_text
before = list(texts())
load_general_plugins()
after = list(texts())
print({kind for kind, _ in before}, {kind for kind, _ in after}, sum(a[1] == b[1] for a, b in zip(before, after)), len({t for _, t in after}) > 250)
"""


def test_vllm_begins_a_text_from_the_end_of_the_prompt_and_writes_the_same(decode_image: str) -> None:
    options = (
        "--env",
        "PYTHONPATH=/opt/pdstack:/opt/pdstack/pd_engine/plugins",
        "--env",
        "VLLM_LOGGING_LEVEL=ERROR",
        "--entrypoint",
        "python3",
    )
    found = run("docker", "run", "--rm", *options, decode_image, "-c", DETOKENIZE)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.splitlines()[-1] == "{'DecodeStream'} {'TailStream'} 300 True"
