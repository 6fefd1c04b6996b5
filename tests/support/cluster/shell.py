"""k8s/README.md's commands, run in a shell as its reader runs them."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import yaml
from support.chart import ROOT
from support.cluster.network import INSIDE
from support.cluster.release import Release

README = (ROOT / "k8s/README.md").read_text()
# What the reader's shell does when the reader leaves.
LEAVING = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"


def blocks(heading: str) -> list[str]:
    """The commands of a section, one text per block."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^ *```\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


def follow(reader: Release, block: str, folder: Path, **variables: str) -> str:
    """Run a block in a shell on the node, where its port is free; what it prints. `folder` keeps the kubeconfig."""
    config = yaml.safe_load(reader.cluster.plane.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = reader.namespace
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = reader.cluster.environment | {"KUBECONFIG": str(folder / "kubeconfig")} | variables
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [*INSIDE, "bash", "-euo", "pipefail", "-c", LEAVING + block]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
