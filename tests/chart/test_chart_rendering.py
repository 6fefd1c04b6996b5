"""Every example and many other combinations of values become objects that Kubernetes' own schemas accept."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chart import (
    CHART,
    EXAMPLES,
    Manifest,
    Values,
    engines,
    environment,
    helm,
    load,
    of_kind,
    pod_specs,
    render,
)

VERSIONS = ["1.31", "1.34", "1.37"]
AWKWARD = "a0:'\"#%$ {}\\|,"  # a value must come through whatever YAML, helm or a shell would make of it
# Operators bring the schemas of these; their fields were looked up in the operators' documentation.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}

EVERYTHING: Values = {
    "model": {"volume": {"type": "newClaim"}, "tokenSecret": "hf", "download": True},
    "engine": {"topology": "separate", "kvConnector": "NixlConnector", "stepTimeoutSeconds": 60, "maxNumSeqs": 64},
    "gpu": {"runtimeClassName": "nvidia", "extraResources": {"rdma/ib": 1}, "lockMemory": True},
    "placement": {
        "engines": "spread",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "high",
    },
    "prefill": {"count": 2, "resources": {"requests": {"cpu": "4", "memory": "32Gi"}}},
    "decode": {"count": 2},
    "combined": {"count": 2},
    "monitor": {"enabled": True, "podResources": True},
    "loadgen": {"enabled": True, "recordPower": True, "page": {"enabled": True, "workers": 2}},
    "proxy": {"discovery": "kubernetes", "apiKeysSecret": "clients", "pingNetworks": ["10.0.0.0/8"]},
    "network": {"interface": "eth0", "ncclHca": "mlx5", "ucxNetDevices": "all", "ucxTls": "rc"},
    "analysis": {"enabled": True, "title": "All of it"},
    "networkPolicy": {
        "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "scrapers": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
    },
    "ingress": {"enabled": True, "host": "llm.example.org", "tlsSecret": "tls", "className": "nginx"},
    "gateway": {
        "enabled": True,
        "parents": [{"name": "gateway", "namespace": "infra"}],
        "hostnames": ["llm.example.org"],
    },
    "prometheus": {"serviceMonitors": {"enabled": True}, "rules": {"enabled": True}, "dashboard": {"enabled": True}},
    "autoscaling": {"enabled": True, "prometheus": "http://prometheus:9090"},
}


def check(manifests: list[Manifest], versions: Sequence[str] = VERSIONS) -> None:
    for version in versions:
        for manifest in manifests:
            if manifest["kind"] not in FOREIGN:
                kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture(autouse=True, scope="module")
def _read_schemas_once() -> Any:
    # The package parses a megabyte of definitions for each object that it checks.
    contents = kubernetes_validate.utils.schema_contents
    kubernetes_validate.utils.schema_contents = functools.cache(contents)
    yield
    kubernetes_validate.utils.schema_contents = contents


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(example: Path) -> None:
    check(render(load(example)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_passes_lint(example: Path) -> None:
    result = helm("lint", "--strict", str(CHART), values=load(example))

    assert result.returncode == 0, result.stdout


def test_everything_at_once_is_valid() -> None:
    manifests = render(EVERYTHING)

    check(manifests)
    assert {manifest["kind"] for manifest in manifests} >= FOREIGN


def test_plain_autoscalers_are_valid() -> None:
    values = {"engine": {"topology": "separate"}, "autoscaling": {"enabled": True, "by": "hpa"}}
    manifests = render(values)

    check(manifests)
    assert len(of_kind(manifests, "HorizontalPodAutoscaler")) == 2


def test_no_two_objects_have_one_name() -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in render(EVERYTHING)]

    assert len(names) == len(set(names))


def test_nothing_that_needs_more_than_a_bare_cluster_is_on_by_itself() -> None:
    kinds = {manifest["kind"] for manifest in render()}

    assert kinds == {"ServiceAccount", "Secret", "Service", "Deployment", "StatefulSet", "Pod", "NetworkPolicy"}


@st.composite
def combinations(draw: st.DrawFn) -> Values:
    """Values that fit together."""
    connector = draw(st.sampled_from(["P2pConnector", "P2pNcclConnector", "NixlConnector", "ExampleConnector"]))
    pairs = draw(st.booleans())
    return {
        "images": {
            "vllmVersion": "0.23.0",  # the one that has every connector
            "tag": draw(st.sampled_from(["", "1.2.3"])),
            "engineTag": draw(st.sampled_from(["", "cpu"])),
        },
        "model": {"download": draw(st.booleans()), "tokenSecret": draw(st.sampled_from(["", "hf"]))},
        "engine": {
            "kind": draw(st.sampled_from(["vllm", "sim"])),
            "topology": draw(st.sampled_from(["pod", "separate"])),
            "kvConnector": connector,
            "kvClaim": "kv",
            "kvSocketFolder": draw(st.sampled_from(["", "/run/pd-kv"])),
            "tensorParallelSize": draw(st.sampled_from([1, 2, 8])),
            "maxNumSeqs": draw(st.sampled_from([None, 16])),
            "stepTimeoutSeconds": draw(st.sampled_from([0, 90])),
            "env": draw(
                st.dictionaries(
                    st.sampled_from(["NCCL_DEBUG", "UCX_LOG_LEVEL"]), st.text(AWKWARD, max_size=8), max_size=2
                )
            ),
        },
        "gpu": {"perNode": 80},
        "network": {
            "interface": draw(st.sampled_from(["", "eth0"])),
            "ucxNetDevices": draw(st.sampled_from(["", "all"])),
        },
        "proxy": {
            "discovery": draw(st.sampled_from(["ping", "kubernetes"])),
            "apiKeysSecret": draw(st.sampled_from(["", "clients"])),
            "pingNetworks": draw(st.sampled_from([[], ["10.0.0.0/8"]])),
        },
        "placement": {"engines": draw(st.sampled_from(["none", "together", "spread"]))},
        "ports": {"decodeHttp": 20105},
        "prefill": {"count": draw(st.integers(1, 5)) if pairs else 0},
        "decode": {"count": draw(st.integers(1, 5)) if pairs else 0},
        "combined": {"count": draw(st.integers(0 if pairs else 1, 3))},
        "monitor": {"enabled": draw(st.booleans())},
        "loadgen": {"enabled": draw(st.booleans()), "rate": draw(st.sampled_from([1, 0.5, 1000]))},
        "networkPolicy": {"enabled": draw(st.booleans()), "scrapers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "prometheus": {"serviceMonitors": {"enabled": draw(st.booleans())}},
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(combinations())
def test_generated_combinations_are_valid_and_have_the_engines_that_they_ask_for(values: Values) -> None:
    manifests = render(values)

    check(manifests, VERSIONS[-1:])
    for container in engines(manifests).values():
        assert values["engine"]["env"].items() <= environment(container).items()
    pods = {item["metadata"]["name"]: item["spec"]["replicas"] for item in of_kind(manifests, "StatefulSet")}
    counts = dict.fromkeys(["prefill", "decode", "combined"], 0)
    for name in engines(manifests):
        workload, engine = name.split("/")
        counts[engine.split("-")[0]] += pods[f"demo-pdstack-{workload}"]
    assert counts == {role: values[role]["count"] for role in counts}


FOLDERS: list[Values] = [
    {"engine": {"kvConnector": "ExampleConnector"}},
    {"engine": {"topology": "separate", "kvSocketFolder": "/run/pd-kv"}, "combined": {"count": 1}},
]


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    for values in [{}, EVERYTHING, *FOLDERS, *map(load, EXAMPLES)]:
        for name, spec in pod_specs(render(values)).items():
            containers = [*spec.get("initContainers", []), *spec["containers"]]
            mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in spec.get("volumes", [])}, name


def test_long_release_names_make_valid_names() -> None:
    result = helm("template", "a" * 53, str(CHART), values=EVERYTHING)

    assert result.returncode == 0, result.stderr
    names = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("  name: ")]
    assert max(map(len, names)) <= 60  # room for a pod's number below 63
