"""Every example and many other combinations of values become objects that Kubernetes' own schemas accept."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
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


# Each has something that the others have not, so that every value is somewhere in an object.
PLACES: dict[str, Values] = {
    "everything": {**EVERYTHING, "results": {"storageClass": "fast"}, "engine": {**EVERYTHING["engine"], "apiKeySecret": "k"}},
    "folders": {
        "engine": {"topology": "separate", "kvSocketFolder": "/run/kv", "priorityClassName": "high"},
        "model": {"volume": {"type": "hostPath", "path": "/models"}},
        "serviceAccount": {"create": False, "name": "mine"},
        "loadgen": {"enabled": True},
    },
    "claims": {
        "engine": {"topology": "separate", "kvConnector": "ExampleConnector", "kvClaim": "kv"},
        "model": {"volume": {"type": "claim", "claim": "models"}},
        "results": {"claim": "results"},
        "analysis": {"enabled": True},
    },
}  # fmt: skip
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def leaves(node: Any = SCHEMA, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value's path and schema."""
    for name, below in node["properties"].items():
        if "required" in below:
            yield from leaves(below, (*path, name))
        else:
            named = [SCHEMA["definitions"][it["$ref"].rpartition("/")[2]] for it in below.get("allOf", [])]
            yield (*path, name), named[0] if named else below


def at(path: Sequence[str], value: Any) -> Values:
    """Values with this one alone."""
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[no-any-return]


def over(values: Values, *others: Values) -> Values:
    """Values over values, as Helm does it."""
    merged = dict(values)
    for other in others:
        for key, item in other.items():
            known = merged.get(key)
            merged[key] = over(known, item) if isinstance(known, dict) and isinstance(item, dict) else item
    return merged


@pytest.mark.parametrize("base", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("text", ["123", "true", "a: b", "'\" #", "{{ .Values }}, x: [y}"])
def test_every_text_that_the_schema_takes_comes_through_yaml_as_that_text(base: Values, text: str) -> None:
    def takes(schema: Any) -> bool:
        return bool(jsonschema.Draft7Validator({**schema, "definitions": SCHEMA["definitions"]}).is_valid(text))

    chosen = [path for path, schema in leaves() if takes(schema) and path != ("fullnameOverride",)]
    assert ("engine", "args") in chosen
    plain, filled = render(base), render(over(base, *(at(path, text) for path in chosen)))

    assert len(pod_specs(filled)) == len(pod_specs(plain))
    check(filled, VERSIONS[-1:])
    [container, *_] = engines(filled).values()
    assert environment(container)["ENGINE_ARGS"].startswith(f"{text} {text}")


def test_null_takes_away_maps_alone() -> None:
    """As a second file of values does with what the first one has set."""
    maps = [path for path, schema in leaves() if schema["type"] == "object"]
    for base in PLACES.values():
        check(render(over(base, *(at(path, None) for path in maps))), VERSIONS[-1:])

    others = [path for path, schema in leaves() if "null" not in schema["type"] and path not in maps]
    refused = helm("template", "demo", str(CHART), values=over({}, *(at(path, None) for path in others))).stderr
    assert refused.count(" is required") == len(others)


def test_large_whole_numbers_are_bounded_and_written_in_full() -> None:
    """Helm's own way to write 2147483647 is 2.147483647e+09."""
    numbers = [(path, schema) for path, schema in leaves() if "integer" in schema["type"]]
    assert [path for path, schema in numbers if "maximum" not in schema] == []

    large = 2**31 - 1
    chosen = [
        at(path, large) for path, schema in numbers if schema["maximum"] >= large and path != ("proxy", "replicas")
    ]
    values = over(PLACES["claims"], *chosen, {"loadgen": {"enabled": True, "rate": 1, "duration": 1}, "autoscaling": {"enabled": True, "by": "hpa"}})  # fmt: skip
    written = json.dumps(render(values))
    assert "e+" not in written
    assert written.count(str(large)) > len(chosen)


def test_a_setting_without_a_value_of_its_own_reaches_the_proxy() -> None:
    wanted = {"MAX_BODY_BYTES": "600000000", "MAX_UPLOAD_BYTES": "1200000000"}
    pods = pod_specs(render({"proxy": {"env": wanted}}))
    [container] = next(pod for name, pod in pods.items() if name.endswith("-proxy"))["containers"]
    assert wanted.items() <= environment(container).items()
