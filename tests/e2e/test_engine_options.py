"""pd_engine's reading of a command line against vLLM's own parser, in vLLM's image."""

import json
import random
import subprocess
from typing import Any

import pytest
from support.stack import ROOT

from pd_engine.commandline import CommandLineError, number, parse

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

IMAGE = "vllm/vllm-openai-cpu:v0.32.0"
# Run inside the image: command lines in; out the defaults, and for each line what is not as they are, or null for an error.
THEIRS = """
import contextlib, io, json, os, sys
sys.path.insert(0, "/src/services/engine")
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import record_options
from vllm.utils.argparse_utils import FlexibleArgumentParser
top = FlexibleArgumentParser()
subparsers = top.add_subparsers(required=True, dest="subparser")
home = next(m for m in map("vllm.entrypoints.{}".format, record_options.HOMES) if __import__("importlib").util.find_spec(m))
serve = __import__("importlib").import_module(home).make_arg_parser(subparsers.add_parser("serve"))
found = []
for line in json.load(sys.stdin):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values = vars(top.parse_args(["serve", "m", *line]))
    except (SystemExit, Exception):
        found.append(None)
        continue
    changed = {n: v for n, v in values.items() if n not in ("subparser", "dispatch_function", "model_tag") and serve.get_default(n) != v}
    found.append(changed)
defaults = {action.dest: action.default for action in serve._actions}
print(json.dumps([defaults, *found], default=lambda value: getattr(value, "__dict__", None) or str(value)))
"""
LINES = [
    ["--port", "9000", "--port=9001"],
    ["--tensor_parallel_size=2", "-pp", "3", "-dp=4", "-n2"],
    ["--gpu-mem", ".95", "--max-model-len", "2k"],
    ["--enforce-eager", "--no-enf"],
    ["--no-enable-chunked-prefill", "--enable-chunked-prefill"],
    ["--enable-prefix-c"],
    ["--api-key", "one", "two", "--uds", "x"],
    ["--served_model_name", "a", "b"],
    ["-O3", "--host", "::1"],
    ["--hf-overrides.a.b=1k", "--hf_overrides.a.c", "1K", "--hf-over.d+", "x,y", "--hf-over.d+=z"],
    ["--hf-overrides", '{"a": 1}', "--hf-overrides.b=2", "--hf-overrides", '{"c": 3}'],
    ["--config", "/config.yaml", "--port", "8"],
    ["--port", "8", "--config", "/config.yaml", "--uds", "z"],
    ["--data-parallel-s", "2"],
    ["--port"],
]
CONFIG = {
    "port": 7,
    "api_key": ["a", "b"],
    "enforce-eager": True,
    "enable-lora": False,
    "hf_overrides": {"a": {"b": 1}},
}


def switches(count: int) -> list[list[str]]:
    """Random switches, in any spelling and shortened at random."""
    rows = (ROOT / "services/engine/src/pd_engine/vllm_options.txt").read_text().splitlines()
    spellings = [word for row in rows if not row.startswith("#") and row.split()[1] == "0" for word in row.split()[2:]]
    generator = random.Random(15)
    lines = []
    for _ in range(count):
        words = generator.choices(spellings, k=generator.randint(1, 4))
        lines.append(
            [
                word[: generator.choice([None, None, -1, -3, -6])].replace(
                    "-", "_" if generator.random() < 0.2 else "-"
                )
                for word in words
            ]
        )
    return [["--" + word.lstrip("_-") if word.startswith(("--", "__")) else word for word in line] for line in lines]


def same(theirs: Any, ours: str | bool | list[str]) -> bool:
    if isinstance(theirs, (bool, list)) or isinstance(ours, bool):
        return bool(theirs == ours)
    if isinstance(theirs, dict):
        return isinstance(ours, str) and theirs == json.loads(ours)
    return str(theirs) == ours or (isinstance(theirs, int | float) and theirs == number(str(ours)))


def test_a_command_line_means_what_vllm_makes_of_it(vllm_cpu: None, tmp_path: Any) -> None:
    lines = LINES + switches(300)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG))  # JSON is YAML, too
    mounts = ["-v", f"{ROOT}:/src:ro", "-v", f"{config}:/config.yaml:ro"]
    command = ["docker", "run", "--rm", "-i", *mounts, "--entrypoint", "python3", IMAGE, "-c", THEIRS]

    told = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, check=True, timeout=300)

    defaults, *answers = json.loads(told.stdout.splitlines()[-1])
    compared = 0
    for line, theirs in zip(lines, answers, strict=True):
        try:
            ours = parse(["m", *line], CONFIG if "--config" in line else None).given
        except CommandLineError:
            continue  # refused by us: the table holds names of other versions, too, so more is ambiguous
        if theirs is not None:
            compared += 1
            assert theirs.keys() <= ours.keys(), line
            known = {name: value for name, value in ours.items() if name in defaults.keys() - {"model_tag", "config"}}
            assert all(same({**defaults, **theirs}[name], value) for name, value in known.items()), (line, theirs, ours)
    assert compared > 100
