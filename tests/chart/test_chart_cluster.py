"""What surrounds the engines: who may talk to whom, who watches, who scales, what is published, what runs once."""

import inspect
import json
import re
from typing import Any

import pytest
import yaml
from support.chart import CHART, FULLNAME, ROOT, Manifest, Values, of_kind, render, the

import pd_monitor.metrics
from pd_loadgen.options import Options
from pd_proxy.metrics import Metrics
from pd_proxy.registry import State

SEPARATE: Values = {"engine": {"topology": "separate", "kvConnector": "NixlConnector"}}
WATCHED: Values = {
    "monitor": {"enabled": True},
    "combined": {"count": 1},
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
    values = {**WATCHED, "networkPolicy": {"enabled": True}, "loadgen": {"enabled": True}}
    manifests = render(values)
    pods = pod_labels(manifests)
    policy = the(manifests, "NetworkPolicy", "engines")

    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert {name for name, labels in pods.items() if selects(selector, labels)} == {"engines", "combined"}
    assert allowed(policy, pods["proxy"]) == ["prefill-0", "decode-0", "combined"]
    assert allowed(policy, pods["engines"]) == ["any"]
    [load] = [name for name in pods if name.startswith("loadgen")]
    assert allowed(policy, pods[load]) == []


def test_only_engines_reach_discovery() -> None:
    manifests = render({**WATCHED, "networkPolicy": {"enabled": True}})
    pods = pod_labels(manifests)
    policy = the(manifests, "NetworkPolicy", "proxy")

    assert allowed(policy, pods["engines"]) == ["discovery", "http"]
    assert allowed(policy, pods["monitor"]) == ["http"]
    assert allowed(policy, {"some": "client"}) == ["http"]


def test_clients_can_be_limited() -> None:
    client = {"podSelector": {"matchLabels": {"app": "chat"}}}
    manifests = render({"networkPolicy": {"enabled": True, "clients": [client]}})
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


def test_helm_leaves_the_count_of_scaled_engines_alone() -> None:
    values = {**SEPARATE, "autoscaling": {"enabled": True, "prometheus": "http://p:9090"}}

    assert all("replicas" not in item["spec"] for item in of_kind(render(values), "StatefulSet"))


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
