"""Everything around the engines: network policies, monitoring, autoscaling, published services, jobs."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from support.chart import (
    CHART,
    FULLNAME,
    ROOT,
    Manifest,
    Values,
    engines,
    environment,
    of_kind,
    pod_specs,
    render,
    run_command,
    the,
)

import pd_monitor.metrics
import pd_monitor.pods as monitored
from pd_contracts.names import Connector, Role
from pd_loadgen.workload.options import Options
from pd_monitor.pods import parse_patterns
from pd_proxy.discovery.kubernetes import ENGINE_PODS, ENGINE_SLICES
from pd_proxy.discovery.slices import Pod, Slice, announcements
from pd_proxy.engines.registry import State
from pd_proxy.metrics import Metrics

SEPARATE: Values = {"engine": {"topology": "separate", "kvConnector": "NixlConnector"}}
WATCHED: Values = {
    "monitor": {"enabled": True},
    "combined": {"count": 1},
    "networkPolicy": {"scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    "prometheus": {"serviceMonitors": {"enabled": True, "labels": {"release": "p"}}, "rules": {"enabled": True}},
}


def pod_labels(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    return {
        item["metadata"]["name"].removeprefix(FULLNAME + "-"): item["spec"]["template"]["metadata"]["labels"]
        for item in manifests
        if "template" in item.get("spec", {})
    }


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# --- services ----------------------------------------------------------------------------------------------------------------


def test_every_service_finds_the_pods_that_it_is_for_and_no_others() -> None:
    values = {**WATCHED, "loadgen": {"enabled": True}, "analysis": {"enabled": True}}
    manifests = render(values)
    pods = {
        **pod_labels(manifests),
        **{pod["metadata"]["name"]: pod["metadata"]["labels"] for pod in of_kind(manifests, "Pod")},
    }

    found = {
        service["metadata"]["name"].removeprefix(FULLNAME + "-"): [
            name for name, labels in pods.items() if selects(service["spec"]["selector"], labels)
        ]
        for service in of_kind(manifests, "Service")
    }

    assert found == {
        "proxy": ["proxy"],
        "discovery": ["proxy"],
        "engines": ["engines"],
        "combined": ["combined"],
        "monitor": ["monitor"],
    }


def test_selectors_never_hold_what_changes_with_a_release() -> None:
    for item in render(WATCHED):
        selector = item.get("spec", {}).get("selector", {})
        labels = selector.get("matchLabels", selector)
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_target_ports_are_names_of_container_ports() -> None:
    manifests = render(WATCHED)
    for service in of_kind(manifests, "Service"):
        names = {
            port["name"]
            for item in manifests
            if "template" in item.get("spec", {})
            and selects(service["spec"]["selector"], item["spec"]["template"]["metadata"]["labels"])
            for container in item["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


# --- discovery by Kubernetes' API --------------------------------------------------------------------------------------------


BY_API: Values = {"proxy": {"discovery": "kubernetes"}}


def slices_of(manifests: list[Manifest]) -> list[Slice]:
    """What Kubernetes makes of the services of engines: their labels, the ports, an endpoint a pod."""
    found = []
    for service in of_kind(manifests, "Service"):
        if "pdstack/engine-kind" not in service["metadata"]["labels"]:
            continue
        name = service["metadata"]["name"]
        written = {
            "metadata": {"name": f"{name}-abc", "labels": service["metadata"]["labels"]},
            "endpoints": [{"addresses": ["10.0.0.7"], "targetRef": {"kind": "Pod", "name": f"{name}-0", "uid": name}}],
            "ports": [{"name": port["name"], "port": port["port"]} for port in service["spec"]["ports"]],
        }
        found.append(msgspec.convert(written, Slice))
    return found


def pods_of(manifests: list[Manifest], restarts: int = 0) -> dict[str, Pod]:
    """The first pod of each set, with containers that were started again so often."""
    found = {}
    for item in of_kind(manifests, "StatefulSet"):
        containers = item["spec"]["template"]["spec"]["containers"]
        written = {
            "metadata": {"name": f"{item['metadata']['name']}-0", "uid": item["metadata"]["name"]},
            "status": {
                "containerStatuses": [{"name": container["name"], "restartCount": restarts} for container in containers]
            },
        }
        found[written["metadata"]["name"]] = msgspec.convert(written, Pod)
    return found


@pytest.mark.parametrize(
    "values",
    [{"decode": {"count": 3}}, SEPARATE, {"engine": {"kind": "sim"}}, {"combined": {"count": 1}}],
    ids=["pod", "separate", "sim", "combined"],
)
def test_the_proxy_finds_every_engine_by_the_endpoints_of_its_service(values: Values) -> None:
    manifests = render({**values, **BY_API})
    pings = announcements(slices_of(manifests), pods_of(manifests))

    assert sorted((ping.type.role, int(ping.http_address.split(":")[1])) for ping in pings) == sorted(
        (Role(environment(item)["PD_ROLE"]), item["ports"][0]["containerPort"]) for item in engines(manifests).values()
    )
    kinds = {"pd-simulator"} if values.get("engine", {}).get("kind") == "sim" else {"vllm"}
    assert {ping.engine for ping in pings} == kinds
    connectors = {ping.connector for ping in pings if ping.connector}
    assert connectors == {Connector(environment(item)["KV_CONNECTOR"]) for item in engines(manifests).values()}


@pytest.mark.parametrize("starts", [0, 1, 11, 12, 13])
def test_the_proxy_and_the_engines_count_kv_ports_alike(starts: int, tmp_path: Path) -> None:
    stock = {"kvConnector": "P2pNcclConnector", "tensorParallelSize": 8}
    manifests = render({"engine": stock, "images": {"vllmVersion": "0.23.0"}, "gpu": {"perNode": 16}, **BY_API})
    container = engines(manifests)["engines/prefill-0"]
    (tmp_path / "starts").write_text(str(starts))
    taken = run_command(container, tmp_path, "python3")["PREFILL_KV_PORT"]

    pings = announcements(slices_of(manifests), pods_of(manifests, starts))
    [prefill] = [ping for ping in pings if ping.type.role is Role.PREFILL]
    assert prefill.zmq_address == f"10.0.0.7:{taken}"


def test_the_proxys_selector_finds_this_releases_services_and_pods_alone() -> None:
    manifests = render(BY_API)
    [proxy] = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]
    selector = dict(part.split("=") for part in environment(proxy)["DISCOVERY_SELECTOR"].split(","))

    assert selector == {"app.kubernetes.io/name": "pdstack", "app.kubernetes.io/instance": "demo"}
    assert environment(proxy)["DISCOVERY"] == "kubernetes"
    for item in of_kind(manifests, "StatefulSet"):
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert selects(selector | dict([ENGINE_PODS.split("=")]), labels)
    services = [
        item["metadata"]["labels"]
        for item in of_kind(manifests, "Service")
        if ENGINE_SLICES in item["metadata"]["labels"]
    ]
    assert services
    assert all(selects(selector, labels) for labels in services)


def test_only_the_proxy_may_ask_and_only_look_and_only_where_it_must() -> None:
    manifests = render(BY_API)
    role, binding = the(manifests, "Role", "proxy"), the(manifests, "RoleBinding", "proxy")
    specs = pod_specs(manifests)

    assert {(*rule["apiGroups"], *rule["resources"]) for rule in role["rules"]} == {
        ("discovery.k8s.io", "endpointslices"),
        ("", "pods"),
    }
    assert all(rule["verbs"] == ["list", "watch"] for rule in role["rules"])
    [subject] = binding["subjects"]
    assert subject["name"] == specs[f"{FULLNAME}-proxy"]["serviceAccountName"]
    assert len(of_kind(manifests, "ServiceAccount", "proxy")) == 1
    others = {name: spec for name, spec in specs.items() if name != f"{FULLNAME}-proxy"}
    assert specs[f"{FULLNAME}-proxy"]["automountServiceAccountToken"] is True
    assert all(spec["automountServiceAccountToken"] is False for spec in others.values())
    assert subject["name"] not in {spec["serviceAccountName"] for spec in others.values()}


def test_with_pings_nobody_may_ask_the_api_server() -> None:
    manifests = render()

    assert not {"Role", "RoleBinding"} & {item["kind"] for item in manifests}
    assert the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


# --- network -----------------------------------------------------------------------------------------------------------------


def allowed(policy: Manifest, labels: dict[str, str]) -> list[Any]:
    """Ports that a pod with these labels may reach; "any" for all."""
    ports: list[Any] = []
    for rule in policy["spec"]["ingress"]:
        peers = rule.get("from")
        if peers is None or any(
            selects(peer.get("podSelector", {"matchLabels": {"no": ""}})["matchLabels"], labels) for peer in peers
        ):
            ports += [port["port"] for port in rule["ports"]] if "ports" in rule else ["any"]
    return ports


def test_engines_are_reached_by_the_proxy_the_monitor_and_each_other_only() -> None:
    values = {**WATCHED, "loadgen": {"enabled": True}}
    manifests = render(values)
    pods = pod_labels(manifests)
    policy = the(manifests, "NetworkPolicy", "engines")

    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert {name for name, labels in pods.items() if selects(selector, labels)} == {"engines", "combined"}
    assert allowed(policy, pods["proxy"]) == ["prefill-0", "decode-0", "combined"]
    assert allowed(policy, pods["engines"]) == ["any"]
    [load] = [name for name in pods if name.startswith("loadgen")]
    assert allowed(policy, pods[load]) == []
    assert allowed(policy, {"app": "prometheus"}) == ["prefill-0", "decode-0", "combined"]
    assert allowed(policy, {"app": "something else"}) == []


def test_only_engines_reach_discovery() -> None:
    manifests = render(WATCHED)
    pods = pod_labels(manifests)
    policy = the(manifests, "NetworkPolicy", "proxy")

    assert allowed(policy, pods["engines"]) == ["discovery", "http"]
    assert allowed(policy, pods["monitor"]) == ["http"]
    assert allowed(policy, {"some": "client"}) == ["http"]


def test_clients_can_be_limited() -> None:
    client = {"podSelector": {"matchLabels": {"app": "chat"}}}
    manifests = render({"networkPolicy": {"clients": [client]}})
    policy = the(manifests, "NetworkPolicy", "proxy")

    assert allowed(policy, {"app": "chat"}) == ["http"]
    assert allowed(policy, {"app": "other"}) == []


def test_what_is_published_is_the_clients_api() -> None:
    values = {
        "ingress": {"enabled": True, "host": "llm.example.org"},
        "gateway": {"enabled": True, "parents": [{"name": "gateway"}]},
    }
    manifests = render(values)
    [rule] = the(manifests, "Ingress", "proxy")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    [route] = the(manifests, "HTTPRoute", "proxy")["spec"]["rules"]

    assert (rule["host"], path["path"]) == ("llm.example.org", "/v1")
    assert path["backend"]["service"]["name"] == f"{FULLNAME}-proxy"
    assert route["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    assert route["timeouts"] == {"request": "0s"}, "a stream is not cut"


# --- disruptions -------------------------------------------------------------------------------------------------------------


def test_budgets_let_one_engine_of_a_role_go_and_never_block_a_single_one() -> None:
    manifests = render({**SEPARATE, "decode": {"count": 3}})

    [budget] = of_kind(manifests, "PodDisruptionBudget")
    assert budget["metadata"]["name"] == f"{FULLNAME}-decode"
    assert budget["spec"]["maxUnavailable"] == 1


# --- watching ----------------------------------------------------------------------------------------------------------------


def test_the_monitor_sees_all_gpus_and_takes_none() -> None:
    monitor = the(render({"monitor": {"enabled": True}, "gpu": {"runtimeClassName": "nvidia"}}), "DaemonSet", "monitor")
    spec = monitor["spec"]["template"]["spec"]
    [container] = spec["containers"]

    assert spec["runtimeClassName"] == "nvidia"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
    assert "resources" not in container


def test_the_monitor_learns_from_the_kubelet_whose_gpu_is_whose() -> None:
    values = {
        "monitor": {"enabled": True, "podResources": True, "podResourcesPath": "/var/lib/k0s/kubelet/pod-resources"}
    }
    manifests = render({**values, "combined": {"count": 1}})
    spec = the(manifests, "DaemonSet", "monitor")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "pod-resources"]
    [volume] = [volume for volume in spec["volumes"] if volume["name"] == "pod-resources"]

    assert mount["readOnly"] is True
    assert environment(container)["POD_RESOURCES_SOCKET"] == f"{mount['mountPath']}/kubelet.sock"
    assert volume["hostPath"] == {"path": "/var/lib/k0s/kubelet/pod-resources", "type": "Directory"}
    assert (container["securityContext"]["runAsUser"], container["securityContext"]["runAsNonRoot"]) == (0, False)
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    patterns = parse_patterns(environment(container)["POD_ROLE_PATTERNS"].split(","))
    for name, engine in engines(manifests).items():
        workload, called = name.split("/")
        # whatever the release is called
        pod = monitored.Pod("here", f"prefill-of-decode-pdstack-{workload}-0", called)
        assert monitored.role_of(pod, patterns) == environment(engine)["PD_ROLE"]


def test_without_the_kubelet_the_monitor_is_no_root_and_sees_nothing_of_the_node() -> None:
    spec = the(render({"monitor": {"enabled": True}}), "DaemonSet", "monitor")["spec"]["template"]["spec"]

    assert [volume["name"] for volume in spec["volumes"]] == ["tmp"]
    assert "runAsUser" not in spec["containers"][0]["securityContext"]


def test_prometheus_gives_targets_the_labels_that_it_has_under_compose() -> None:
    compose = yaml.safe_load((ROOT / "monitor/prometheus/prometheus.yml").read_text())
    manifests = render(WATCHED)
    jobs, roles = set(), set()
    for item in of_kind(manifests, "ServiceMonitor"):
        assert item["metadata"]["labels"]["release"] == "p"
        for endpoint in item["spec"]["endpoints"]:
            fixed = {
                rule["targetLabel"]: rule["replacement"] for rule in endpoint["relabelings"] if "replacement" in rule
            }
            jobs.add(fixed["job"])
            roles |= {fixed["role"]} if "role" in fixed else set()

    assert jobs == {scrape["job_name"] for scrape in compose["scrape_configs"]}
    assert roles == {"prefill", "decode", "combined"}


def test_every_service_monitor_finds_one_service_and_its_ports() -> None:
    manifests = render(WATCHED)
    services = of_kind(manifests, "Service")
    for item in of_kind(manifests, "ServiceMonitor"):
        [service] = [
            service
            for service in services
            if selects(item["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in item["spec"]["endpoints"]} == ports


def test_alerts_ask_for_series_and_states_that_exist() -> None:
    [rule] = of_kind(render(WATCHED), "PrometheusRule")
    expressions = [alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]]
    known = re.findall(r"^# TYPE (\w+)", Metrics(lambda: (), kv_bytes=lambda _: 0).render().decode(), re.MULTILINE)

    for expression in expressions:
        for name in re.findall(r"\b(pd_proxy_\w+)", expression):
            assert name in known, expression
        for state in re.findall(r'state="(\w+)"', expression):
            assert state in set(State)
    assert "pd_exporter_backend_up" in " ".join(expressions)
    assert "pd_exporter_backend_up" in inspect.getsource(pd_monitor.metrics)


def test_alerts_about_roles_exist_for_the_roles_that_were_asked_for() -> None:
    values = {**WATCHED, "combined": {"count": 0}}
    [rule] = of_kind(render(values), "PrometheusRule")
    names = {alert["alert"] for group in rule["spec"]["groups"] for alert in group["rules"]}

    assert {"PdstackNoPrefill", "PdstackNoDecode"} <= names
    assert "PdstackNoCombined" not in names


def test_the_dashboard_is_the_monitors_own() -> None:
    original = (ROOT / "monitor/grafana/dashboards/pdstack.json").read_text()
    [dashboard] = of_kind(render({"prometheus": {"dashboard": {"enabled": True}}}), "ConfigMap")

    assert json.loads(dashboard["data"]["pdstack.json"]) == json.loads(original)
    assert (CHART / "files/pdstack.json").read_text() == original
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


# --- scaling -----------------------------------------------------------------------------------------------------------------


def test_prefill_grows_with_its_queue_and_decode_with_kv_and_step_time() -> None:
    values = {**SEPARATE, "decode": {"count": 2}, "autoscaling": {"enabled": True, "prometheus": "http://p:9090"}}
    manifests = render(values)

    def queries(role: str) -> str:
        return " ".join(item["metadata"]["query"] for item in the(manifests, "ScaledObject", role)["spec"]["triggers"])

    assert "request_queue_time" in queries("prefill")
    assert "kv_cache_usage" not in queries("prefill")
    assert "kv_cache_usage_perc" in queries("decode")
    assert "inter_token_latency" in queries("decode")
    decode = the(manifests, "ScaledObject", "decode")["spec"]
    assert (decode["minReplicaCount"], decode["maxReplicaCount"]) == (2, 4)
    # A mean is compared with its limit as it is, not divided by the number of pods.
    assert [trigger["metricType"] for trigger in decode["triggers"]] == ["Value", "Value"]
    assert [trigger["metadata"]["threshold"] for trigger in decode["triggers"]] == ["0.7", "0.05"]
    assert f'service="{FULLNAME}-decode"' in queries("decode")


@pytest.mark.parametrize("scaling", [{"prometheus": "http://p:9090"}, {"by": "hpa"}], ids=["keda", "hpa"])
def test_helm_leaves_the_count_of_scaled_engines_alone(scaling: Values) -> None:
    values = {**SEPARATE, "autoscaling": {"enabled": True, **scaling}}

    assert all("replicas" not in item["spec"] for item in of_kind(render(values), "StatefulSet"))


def test_plain_autoscalers_ask_for_what_the_adapter_makes_and_keda_asks_for_the_same() -> None:
    values = {**SEPARATE, "decode": {"count": 2}, "combined": {"count": 1}}
    plain = render({**values, "autoscaling": {"enabled": True, "by": "hpa", "decode": {"tokenSeconds": 0.0125}}})
    keda = render({**values, "autoscaling": {"enabled": True, "prometheus": "http://p:9090"}})
    rules = {
        rule["name"]["as"]: rule
        for rule in yaml.safe_load((ROOT / "k8s/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    }
    assert of_kind(plain, "ScaledObject") == []

    for role in ("prefill", "decode", "combined"):
        spec = the(plain, "HorizontalPodAutoscaler", role)["spec"]
        triggers = the(keda, "ScaledObject", role)["spec"]["triggers"]
        asked = [metric["pods"]["metric"]["name"] for metric in spec["metrics"]]
        series = {name for metric in asked for name in re.findall(r"vllm:\w+", rules[metric]["metricsQuery"])}
        assert series == {name for item in triggers for name in re.findall(r"vllm:\w+", item["metadata"]["query"])}
        assert spec["scaleTargetRef"]["name"] == f"{FULLNAME}-{role}"
    decode = the(plain, "HorizontalPodAutoscaler", "decode")["spec"]
    assert (decode["minReplicas"], decode["maxReplicas"]) == (2, 4)
    limits = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in decode["metrics"]}
    assert limits == {"pdstack_kv_usage": "700m", "pdstack_token_seconds": "13m"}


# --- jobs --------------------------------------------------------------------------------------------------------------------


def job(manifests: list[Manifest], name: str) -> Manifest:
    [found] = [item for item in of_kind(manifests, "Job") if f"-{name}-" in item["metadata"]["name"]]
    return found


@pytest.mark.parametrize(
    "change",
    [{"loadgen": {"enabled": True, "rate": 9}}, {"decode": {"count": 3}}, {"model": {"name": "other"}}],
    ids=str,
)
def test_another_load_or_deployment_is_another_job(change: Values) -> None:
    before = render({"loadgen": {"enabled": True}})
    after = render({"loadgen": {"enabled": True}, **change})

    assert job(before, "loadgen")["metadata"]["name"] != job(after, "loadgen")["metadata"]["name"]


def test_a_change_of_something_else_keeps_the_job() -> None:
    before = render({"loadgen": {"enabled": True}})
    after = render({"loadgen": {"enabled": True}, "monitor": {"enabled": True}})

    assert job(before, "loadgen") == job(after, "loadgen")


def test_the_load_uses_options_that_the_load_generator_has() -> None:
    manifests = render({"loadgen": {"enabled": True, "recordPower": True, "rate": 0.5}, "monitor": {"enabled": True}})
    [container] = job(manifests, "loadgen")["spec"]["template"]["spec"]["containers"]
    options = [item for item in container["args"] if item.startswith("--")]
    given = dict(zip(container["args"][1::2], container["args"][2::2], strict=False))

    known = {"--" + name.replace("_", "-") for name in Options.__struct_fields__}
    assert set(options) <= known
    assert given["--url"] == f"http://{FULLNAME}-proxy:10001"
    assert given["--monitor"] == f"http://{FULLNAME}-monitor:9835"
    assert given["--rate"] == "0.5"
    assert "--overwrite" not in options, "a job that is made anew must not replace a complete run"
    assert options[-1] == "--rerun-incomplete"


def test_the_page_alone_sends_itself() -> None:
    manifests = render({"loadgen": {"page": {"enabled": True}, "recordPower": True}, "monitor": {"enabled": True}})
    [container] = the(manifests, "Deployment", "loadgen-page")["spec"]["template"]["spec"]["containers"]
    service = the(manifests, "Service", "loadgen")

    assert "--master" not in container["args"]
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
    assert environment(container)["LOADGEN_MONITOR"] == f"http://{FULLNAME}-monitor:9835"
    assert of_kind(manifests, "Deployment", "loadgen-worker") == []
    assert "Ingress" not in {item["kind"] for item in manifests}


def test_workers_find_the_page_before_it_is_ready() -> None:
    manifests = render({"loadgen": {"page": {"enabled": True, "workers": 3}}})
    page = the(manifests, "Deployment", "loadgen-page")["spec"]["template"]
    worker = the(manifests, "Deployment", "loadgen-worker")["spec"]
    service = the(manifests, "Service", "loadgen")
    [sender] = worker["template"]["spec"]["containers"]

    assert "--master" in page["spec"]["containers"][0]["args"]
    assert worker["replicas"] == 3
    assert sender["args"][:3] == ["--worker", "--master-host", service["metadata"]["name"]]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert selects(service["spec"]["selector"], page["metadata"]["labels"])
    assert not selects(service["spec"]["selector"], worker["template"]["metadata"]["labels"])
    assert {port["port"] for port in service["spec"]["ports"]} == {8089, 5557}
    # Locust's own file of the package, wherever the image's Python has it.
    assert "pd_loadgen/locustfile.py" in sender["command"][2]
    assert (ROOT / "loadgen/src/pd_loadgen/locustfile.py").exists()


def test_a_page_beside_it_makes_no_new_job() -> None:
    before = render({"loadgen": {"enabled": True}})
    after = render({"loadgen": {"enabled": True, "page": {"enabled": True, "workers": 2}}})

    assert job(before, "loadgen") == job(after, "loadgen")


def test_load_and_analysis_share_one_volume() -> None:
    manifests = render({"loadgen": {"enabled": True}, "analysis": {"enabled": True}})
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for item in of_kind(manifests, "Job")
        for volume in item["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }

    assert claims == {f"{FULLNAME}-results"}
    assert len(of_kind(manifests, "PersistentVolumeClaim", "results")) == 1
    assert job(manifests, "analysis")["spec"]["template"]["spec"]["containers"][0]["args"][0] == "report"


def test_tests_of_a_release_ask_for_what_the_proxy_promises() -> None:
    manifests = render()
    asked = " ".join(" ".join(pod["spec"]["containers"][0]["command"]) for pod in of_kind(manifests, "Pod"))

    for path in ("/ready", "/v1/models", "/metrics", "/v1/completions"):
        assert f"http://{FULLNAME}-proxy:10001{path}" in asked
    assert all(pod["metadata"]["annotations"]["helm.sh/hook"] == "test" for pod in of_kind(manifests, "Pod"))


def test_the_monitor_reads_the_token_counters_of_every_engine_unless_their_number_may_change() -> None:
    def pages(values: Values) -> str | None:
        manifests = render({"monitor": {"enabled": True}, **values})
        [container] = the(manifests, "DaemonSet", "monitor")["spec"]["template"]["spec"]["containers"]
        return {item["name"]: item.get("value") for item in container["env"]}.get("ENGINE_METRICS")

    assert pages({"decode": {"count": 2}}) == ",".join(
        f"{role}=http://{FULLNAME}-engines-0.{FULLNAME}-engines:{port}/metrics"
        for role, port in (("prefill", 20003), ("decode", 20005), ("decode", 20006))
    )
    assert pages({**SEPARATE, "autoscaling": {"enabled": True, "by": "hpa"}}) is None
