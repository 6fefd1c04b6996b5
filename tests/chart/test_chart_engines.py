"""The engines of a release: their settings, and where they run."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.chart import (
    EXAMPLES,
    FULLNAME,
    ROOT,
    Manifest,
    Values,
    deep,
    engines,
    environment,
    load,
    of_kind,
    pod_specs,
    render,
    run_command,
    the,
)

from pd_contracts.ports import KV_PORT_STEP
from pd_engine.checks import COMMANDS, SLACK_S, TIMEOUT_S

STOCK: Values = {"engine": {"kvConnector": "P2pNcclConnector"}, "images": {"vllmVersion": "0.23.0"}}
SEPARATE: Values = {"engine": {"topology": "separate", "kvConnector": "NixlConnector"}}
SIM: Values = {"engine": {"kind": "sim", "topology": "separate"}}


def simulated_boards(manifests: list[Manifest], tmp_path: Path) -> list[int]:
    """SIM_GPU of every simulated engine of the release."""
    return [
        int(run_command(container, tmp_path, "service", POD_NAME=f"{item['metadata']['name']}-{index}")["SIM_GPU"])
        for item in of_kind(manifests, "StatefulSet")
        for container in item["spec"]["template"]["spec"]["containers"]
        for index in range(item["spec"]["replicas"])
    ]


# --- one pod or many ---------------------------------------------------------------------------------------------------------


def test_engines_that_use_nvlink_are_containers_of_one_pod_with_one_shared_memory() -> None:
    manifests = render({"decode": {"count": 3}})
    [pod] = [item["spec"]["template"]["spec"] for item in of_kind(manifests, "StatefulSet")]

    assert [container["name"] for container in pod["containers"]] == ["prefill-0", "decode-0", "decode-1", "decode-2"]
    [shared] = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shared["emptyDir"]["medium"] == "Memory"
    for container in pod["containers"]:
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108  the container's own


def test_no_pod_asks_for_the_hosts_namespaces_or_privileges() -> None:
    for example in EXAMPLES:
        for name, spec in pod_specs(render(load(example))).items():
            assert not {"hostIPC", "hostPID", "hostNetwork"} & set(spec), name
            for container in spec["containers"]:
                assert "privileged" not in container["securityContext"], name


def test_engines_of_one_pod_have_different_ports_and_separate_ones_the_base_ports() -> None:
    together = engines(render({"decode": {"count": 2}}))
    apart = engines(render(deep(SEPARATE, {"decode": {"count": 2}})))

    assert [environment(item)["INSTANCE"] for item in together.values()] == ["0", "0", "1"]
    ports = [port["containerPort"] for item in together.values() for port in item["ports"]]
    assert ports == [20003, 21001, 20005, 22001, 20006, 22101]
    assert {item["ports"][0]["containerPort"] for item in apart.values()} == {20003, 20005}


def test_combined_engines_have_pods_of_their_own_whatever_the_topology() -> None:
    manifests = render({"combined": {"count": 2}})

    assert the(manifests, "StatefulSet", "combined")["spec"]["replicas"] == 2
    assert len(the(manifests, "StatefulSet", "engines")["spec"]["template"]["spec"]["containers"]) == 2


def test_engines_are_replaced_in_place_and_start_at_once() -> None:
    for item in of_kind(render(deep(SEPARATE, {"prefill": {"count": 2}})), "StatefulSet"):
        assert item["spec"]["podManagementPolicy"] == "Parallel"
        assert item["spec"]["updateStrategy"] == {"type": "RollingUpdate"}


def test_a_new_chart_version_alone_restarts_no_engine() -> None:
    for item in of_kind(render(), "StatefulSet"):
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


# --- GPUs and nodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "connector"),
    [
        ("nvidia.com/gpu", "P2pNcclConnector"),
        ("amd.com/gpu", "NixlConnector"),
        ("gpu.intel.com/xe", "NixlConnector"),
        ("example.org/H100_NVL", "P2pNcclConnector"),
    ],
)
def test_each_engine_gets_as_many_gpus_as_it_has_ranks(resource: str, connector: str) -> None:
    values = {"gpu": {"resource": resource}, "engine": {"tensorParallelSize": 2, "kvConnector": connector}}
    values["images"] = {"vllmVersion": "0.23.0"}

    for container in engines(render(values)).values():
        assert container["resources"]["limits"] == {resource: "2"}
        assert environment(container)["TENSOR_PARALLEL_SIZE"] == "2"


@pytest.mark.parametrize("resource", ["nvidia.com/mig-3g.40gb", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb.me"])
def test_parts_of_gpus_are_asked_for_by_their_names(resource: str) -> None:
    found = engines(render({"gpu": {"resource": resource}, "engine": {"kvConnector": "NixlConnector"}}))

    assert [container["resources"]["limits"] for container in found.values()] == [{resource: "1"}] * 2


def test_resources_that_are_given_do_not_displace_gpus() -> None:
    values = {"prefill": {"resources": {"limits": {"memory": "64Gi"}}}, "gpu": {"extraResources": {"rdma/ib": 2}}}
    container = engines(render(values))["engines/prefill-0"]

    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1", "rdma/ib": "2"}


@pytest.mark.parametrize("engine", [{"kind": "sim"}, {"device": "cpu", "kvConnector": "NixlConnector"}])
def test_engines_without_gpus_ask_for_none(engine: dict[str, str]) -> None:
    manifests = render({"engine": engine, "gpu": {"runtimeClassName": "nvidia"}, "monitor": {"enabled": True}})

    assert all("limits" not in container["resources"] for container in engines(manifests).values())
    assert "runtimeClassName" not in pod_specs(manifests)[f"{FULLNAME}-engines"]


TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
ALL_PODS: Values = {
    "combined": {"count": 1},
    "monitor": {"enabled": True},
    "loadgen": {"enabled": True, "page": {"enabled": True, "workers": 1}},
    "analysis": {"enabled": True},
}
ZONE = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
        }
    }
}


def test_placement_reaches_every_pod() -> None:
    values = {**ALL_PODS, "placement": {"tolerations": [TAINT], "affinity": ZONE, "priorityClassName": "high"}}

    specs = pod_specs(render(values))

    assert len(specs) == 11
    for name, spec in specs.items():
        assert spec["tolerations"] == [TAINT], name
        assert spec["affinity"] == ZONE, name
        assert spec["priorityClassName"] == "high", name


@pytest.mark.parametrize("component", ["engine", "proxy", "monitor", "loadgen", "analysis"])
def test_a_component_may_be_placed_by_itself(component: str) -> None:
    own = {"key": "own", "operator": "Exists"}
    told: dict[str, Any] = {"tolerations": [own], "affinity": ZONE, "priorityClassName": "low"}
    values: dict[str, Any] = {**ALL_PODS, "placement": {"tolerations": [TAINT], "priorityClassName": "high"}}
    values[component] = {**values.get(component, {}), **told}

    placed = {name: spec for name, spec in pod_specs(render(values)).items() if own in spec["tolerations"]}

    expected = {"engine": {"engines", "combined"}, "loadgen": {"loadgen-page", "loadgen-worker", "loadgen"}}
    found = {name.removeprefix(f"{FULLNAME}-") for name in placed}
    assert {re.sub("-[0-9a-f]{8}$", "", name) for name in found} == expected.get(component, {component})
    for spec in placed.values():
        assert (spec["tolerations"], spec["affinity"], spec["priorityClassName"]) == ([TAINT, own], ZONE, "low")


def test_a_job_that_is_placed_elsewhere_is_another_job() -> None:
    def jobs(values: Values) -> set[str]:
        return {job["metadata"]["name"] for job in of_kind(render(values), "Job")}

    moved = {**ALL_PODS, "placement": {"tolerations": [TAINT]}}
    assert len(jobs(ALL_PODS)) == 2
    assert jobs(ALL_PODS).isdisjoint(jobs(moved))


def test_engines_together_keep_the_affinity_that_they_were_given() -> None:
    own = {"topologyKey": "rack", "labelSelector": {"matchLabels": {"a": "b"}}}
    affinity = {**ZONE, "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [own]}}
    values = {"engine": {"topology": "separate", "affinity": affinity}, "placement": {"engines": "together"}}

    for name in ("prefill", "decode"):
        found = pod_specs(render(values))[f"{FULLNAME}-{name}"]["affinity"]
        terms = found["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert found["nodeAffinity"] == ZONE["nodeAffinity"]
        assert [term["topologyKey"] for term in terms] == ["rack", "kubernetes.io/hostname"]


def test_together_puts_all_engines_on_one_node_and_spread_each_role_over_nodes() -> None:
    together = the(render(deep(SEPARATE, {"placement": {"engines": "together"}})), "StatefulSet", "prefill")
    spread = the(render(deep(SEPARATE, {"placement": {"engines": "spread"}})), "StatefulSet", "prefill")

    [term] = together["spec"]["template"]["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["pdstack/engine"] == "true"
    [constraint] = spread["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "prefill"


def test_rdma_gets_the_one_capability_that_it_needs() -> None:
    container = engines(render({"gpu": {"lockMemory": True}}))["engines/prefill-0"]

    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


def test_the_network_that_was_named_is_what_engines_are_told() -> None:
    network = {"interface": "eth1", "ncclHca": "mlx5_0", "ucxNetDevices": "mlx5_0:1", "ucxTls": "rc,tcp"}
    told = environment(engines(render({"network": network}))["engines/decode-0"])

    assert {name: told[name] for name in told if name.startswith(("NCCL_", "GLOO_", "UCX_"))} == {
        "NCCL_SOCKET_IFNAME": "eth1",
        "GLOO_SOCKET_IFNAME": "eth1",
        "NCCL_IB_HCA": "mlx5_0",
        "UCX_NET_DEVICES": "mlx5_0:1",
        "UCX_TLS": "rc,tcp",
    }
    plain = environment(engines(render())["engines/decode-0"])
    assert not [name for name in plain if name.startswith(("NCCL_", "GLOO_", "UCX_"))]


def test_on_the_nodes_network_services_are_still_found_and_only_engines_are_there() -> None:
    on_the_node: Values = {"network": {"hostNetwork": True}, "networkPolicy": {"enabled": False}}
    specs = pod_specs(render(deep(SEPARATE, {**on_the_node, "monitor": {"enabled": True}})))
    on_host = {name: spec for name, spec in specs.items() if spec.get("hostNetwork")}

    assert set(on_host) == {f"{FULLNAME}-prefill", f"{FULLNAME}-decode"}
    assert {spec["dnsPolicy"] for spec in on_host.values()} == {"ClusterFirstWithHostNet"}


# --- identity ----------------------------------------------------------------------------------------------------------------


def test_an_engine_announces_its_pods_address_to_the_service_that_answers_before_the_proxy_is_ready() -> None:
    manifests = render()
    variables = environment(engines(manifests)["engines/decode-0"])

    assert json.loads(variables["VLLM_HOST_IP"]) == {"fieldRef": {"fieldPath": "status.podIP"}}
    discovery = the(manifests, "Service", "discovery")
    assert variables["PROXY_HOST"] == discovery["metadata"]["name"]
    assert discovery["spec"]["publishNotReadyAddresses"] is True
    assert variables["PROXY_PORT"] == str(discovery["spec"]["ports"][0]["port"])
    assert "publishNotReadyAddresses" not in the(manifests, "Service", "proxy")["spec"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_each_start_of_a_p2p_nccl_engine_has_kv_ports_of_its_own(role: str, tmp_path: Path) -> None:
    values = deep(STOCK, {"engine": {"tensorParallelSize": 8}, "decode": {"count": 2}, "gpu": {"perNode": 24}})
    container = engines(render(values))[f"engines/{role}-0"]
    name = f"{role.upper()}_KV_PORT"
    base = int(environment(container)[name])

    ports = [int(run_command(container, tmp_path, "python3")[name]) for _ in range(14)]

    assert ports[:3] == [base, base + 8, base + 16]
    assert max(ports) + 8 <= base + KV_PORT_STEP
    assert ports[12] == base, "the ports of one engine do not run into its neighbour's"


def test_kubernetes_leaves_the_shell_commands_as_they_are() -> None:
    # It puts a variable's value in place of $(NAME), and only of that.
    for values in (STOCK, SIM):
        for container in engines(render(values)).values():
            assert re.search(r"\$\(\w+\)", container["command"][-1]) is None


def test_other_connectors_and_combined_engines_start_as_their_image_says() -> None:
    for values in [{}, SEPARATE, {"prefill": {"count": 0}, "decode": {"count": 0}, "combined": {"count": 1}}]:
        for container in engines(render(values)).values():
            assert "command" not in container


def test_simulated_boards_have_indices_of_their_own_and_the_monitor_asks_each(tmp_path: Path) -> None:
    values = deep(SIM, {"prefill": {"count": 2}, "decode": {"count": 3}, "monitor": {"enabled": True}})
    manifests = render(values)
    boards = simulated_boards(manifests, tmp_path)
    monitor = the(manifests, "Deployment", "monitor")["spec"]["template"]["spec"]["containers"][0]

    assert sorted(boards) == list(range(5))
    urls = environment(monitor)["SIM_BOARDS"].split(",")
    assert urls[:2] == [f"http://{FULLNAME}-prefill-{n}.{FULLNAME}-prefill:20003/sim/board" for n in (0, 1)]
    assert len(set(urls)) == 5


def test_simulated_boards_of_several_shared_pods_have_indices_of_their_own(tmp_path: Path) -> None:
    values = {"engine": {"kind": "sim", "podReplicas": 2}, "decode": {"count": 2}, "combined": {"count": 1}}
    assert sorted(simulated_boards(render(values), tmp_path)) == list(range(7))


# --- probes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, SIM, {**SEPARATE, "combined": {"count": 1}}], ids=["vllm", "sim", "separate"])
def test_ready_is_what_the_proxy_admitted_and_alive_is_what_makes_progress(values: Values) -> None:
    for container in engines(render(values)).values():
        commands = {
            name: container[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        assert commands == {
            "startupProbe": ["python3", "-m", "pd_engine", "probe"],
            "readinessProbe": ["python3", "-m", "pd_engine", "probe", "--admitted"],
            "livenessProbe": ["python3", "-m", "pd_engine", "probe", "--alive"],
        }
        assert all(command[3:] in COMMANDS for command in commands.values())


def test_probes_have_more_time_than_what_they_ask_may_take() -> None:
    [first, *_] = engines(render()).values()

    assert first["readinessProbe"]["timeoutSeconds"] > 2 * TIMEOUT_S
    assert first["livenessProbe"]["timeoutSeconds"] > 4 * TIMEOUT_S, "three questions, and one connection to the proxy"


def test_engines_ask_the_proxy_by_a_service_that_answers_before_it_is_ready() -> None:
    manifests = render()
    variables = environment(engines(manifests)["engines/prefill-0"])
    discovery = the(manifests, "Service", "discovery")

    assert discovery["spec"]["publishNotReadyAddresses"] is True
    assert int(variables["HTTP_PROXY_PORT"]) in [port["port"] for port in discovery["spec"]["ports"]]


def test_an_engine_is_drained_with_the_proxys_own_key_before_it_is_stopped() -> None:
    manifests = render({"engine": {"drainSeconds": 90, "terminationGracePeriodSeconds": 100}})
    [pod] = [item["spec"]["template"]["spec"] for item in of_kind(manifests, "StatefulSet")]
    [proxy] = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]
    secret = the(manifests, "Secret", "admin")

    for container in pod["containers"]:
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["python3", "-m", "pd_engine", "drain"]
        variables = environment(container)
        assert variables["DRAIN_WAIT_S"] == "90"
        assert variables["ADMIN_KEY"] == environment(proxy)["ADMIN_KEY"]
        assert pod["terminationGracePeriodSeconds"] > 90 + TIMEOUT_S + SLACK_S
    key = json.loads(environment(proxy)["ADMIN_KEY"])["secretKeyRef"]
    assert key == {"name": secret["metadata"]["name"], "key": "admin-key"}
    assert len(base64.b64decode(secret["data"]["admin-key"])) >= 32


def test_an_existing_secret_takes_the_place_of_the_one_that_is_made() -> None:
    named = {"adminSecret": "mine", "adminSecretKey": "key", "pingSecret": "ours", "pingSecretKey": "p"}
    manifests = render({"proxy": named})
    [proxy] = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]

    assert of_kind(manifests, "Secret") == []
    for container in [proxy, *engines(manifests).values()]:
        assert json.loads(environment(container)["ADMIN_KEY"]) == {"secretKeyRef": {"name": "mine", "key": "key"}}
        assert json.loads(environment(container)["PING_KEY"]) == {"secretKeyRef": {"name": "ours", "key": "p"}}


@pytest.mark.parametrize("kind", ["vllm", "sim"])
def test_engines_and_proxy_are_told_alike_whose_they_are_and_the_key_with_which_they_say_so(kind: str) -> None:
    manifests = render({"engine": {"kind": kind}})
    [proxy] = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]
    told = environment(proxy)

    assert (told["DEPLOYMENT"], told["DISCOVERY_HOST"], told["UNSIGNED_PINGS"]) == ("here/demo", "0.0.0.0", "off")
    assert len(base64.b64decode(the(manifests, "Secret", "ping")["data"]["ping-key"])) >= 32
    for container in engines(manifests).values():
        variables = environment(container)
        assert (variables["DEPLOYMENT"], variables["PING_KEY"]) == (told["DEPLOYMENT"], told["PING_KEY"])


def test_engines_and_proxy_have_the_key_that_engines_demand() -> None:
    manifests = render({"engine": {"apiKeySecret": "ours"}})
    [proxy] = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]

    for container in [proxy, *engines(manifests).values()]:
        assert json.loads(environment(container)["ENGINE_API_KEY"]) == {
            "secretKeyRef": {"name": "ours", "key": "api-key"}
        }
    assert "ENGINE_API_KEY" not in environment(engines(render())["engines/decode-0"])


def test_without_time_to_drain_engines_have_no_key_and_are_stopped_at_once() -> None:
    for container in engines(render({"engine": {"drainSeconds": 0, "terminationGracePeriodSeconds": 5}})).values():
        assert "lifecycle" not in container
        assert "ADMIN_KEY" not in environment(container)


def test_client_keys_are_a_file_from_a_secret_and_those_of_the_release_know_one() -> None:
    values = {"proxy": {"apiKeysSecret": "clients"}, "loadgen": {"enabled": True}}
    manifests = render(values)
    pod = the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]
    [proxy] = pod["containers"]
    [mount] = [mount for mount in proxy["volumeMounts"] if mount["name"] == "keys"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]

    assert environment(proxy)["API_KEYS_FILE"] == f"{mount['mountPath']}/api-keys"
    assert volume["secret"]["secretName"] == "clients"
    assert volume["secret"]["items"] == [{"key": "api-keys", "path": "api-keys"}]
    one = {"secretKeyRef": {"name": "clients", "key": "client-key"}}
    [job] = of_kind(manifests, "Job")
    assert json.loads(environment(job["spec"]["template"]["spec"]["containers"][0])["LOADGEN_API_KEY"]) == one
    test = pod_specs(manifests)[f"{FULLNAME}-test-first-token"]["containers"][0]
    assert json.loads(environment(test)["API_KEY"]) == one
    # Engines never see a client's key.
    assert not any("clients" in json.dumps(container) for container in engines(manifests).values())


def test_loading_may_take_as_long_as_the_value_says() -> None:
    container = engines(render({"engine": {"startupSeconds": 3601}}))["engines/prefill-0"]

    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] >= 3601


def test_a_step_time_out_ends_an_engine_that_has_stalled() -> None:
    variables = environment(engines(render({"engine": {"stepTimeoutSeconds": 90}}))["engines/decode-0"])

    assert variables["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == "90"
    assert "--distributed-executor-backend mp" in variables["ENGINE_ARGS"]


def test_the_proxy_is_ready_with_engines_and_alive_without() -> None:
    [container] = the(render(), "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]

    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"


@pytest.mark.parametrize("name", ["proxy", "monitor"])
def test_what_starts_slowly_on_a_busy_node_is_not_ended_for_it(name: str) -> None:
    [container] = the(
        render({"engine": {"kind": "sim", "topology": "separate"}, "monitor": {"enabled": True}}), "Deployment", name
    )["spec"]["template"]["spec"]["containers"]
    startup = container["startupProbe"]

    assert startup["failureThreshold"] * startup["periodSeconds"] >= 120
    assert startup["httpGet"] == container["livenessProbe"]["httpGet"]


def test_a_single_proxy_is_replaced_and_has_time_to_drain() -> None:
    proxy = the(render({"proxy": {"drainSeconds": 120}}), "Deployment", "proxy")["spec"]

    assert proxy["replicas"] == 1
    assert proxy["strategy"] == {"type": "Recreate"}
    assert proxy["template"]["spec"]["terminationGracePeriodSeconds"] >= 5 + 120 + 2


def test_several_proxies_are_updated_one_after_another_and_engines_find_all_of_them() -> None:
    manifests = render({"proxy": {"replicas": 2}, "engine": {"kind": "sim", "topology": "separate"}})
    proxy, discovery = the(manifests, "Deployment", "proxy")["spec"], the(manifests, "Service", "proxies")
    [container] = proxy["template"]["spec"]["containers"]
    [budget] = of_kind(manifests, "PodDisruptionBudget")

    assert proxy["replicas"] == 2
    assert proxy["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert budget["metadata"]["name"] == f"{FULLNAME}-proxy"
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "proxy"
    assert {"name": "PROXY_REPLICAS", "value": "2"} in container["env"]
    assert discovery["spec"]["clusterIP"] == "None"
    assert discovery["spec"]["publishNotReadyAddresses"] is True
    for name in ("prefill", "decode"):
        [engine] = the(manifests, "StatefulSet", name)["spec"]["template"]["spec"]["containers"]
        assert {"name": "PROXY_HOST", "value": discovery["metadata"]["name"]} in engine["env"]


# --- security ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_container_runs_as_a_user_on_a_read_only_root(example: Path) -> None:
    for name, spec in pod_specs(render(load(example))).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 10001, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"]["drop"] == ["ALL"], name


def test_no_pod_has_an_api_token_or_variables_made_of_service_names() -> None:
    # A service called "proxy" would set PROXY_PORT=tcp://…, which is the name of a setting.
    for name, spec in pod_specs(render({"monitor": {"enabled": True}, "loadgen": {"enabled": True}})).items():
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name


def test_the_token_comes_from_a_secret_and_is_in_no_object() -> None:
    values = {"model": {"tokenSecret": "hf", "tokenKey": "key", "download": True}}
    [spec] = [spec for name, spec in pod_specs(render(values)).items() if name.endswith("-engines")]

    for container in [*spec["initContainers"], *spec["containers"]]:
        [token] = [item for item in container["env"] if item["name"] == "HF_TOKEN"]
        assert token["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "key"}}


# --- models and KV -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "source"),
    [
        ({"type": "emptyDir", "size": "50Gi"}, {"emptyDir": {"sizeLimit": "50Gi"}}),
        ({"type": "hostPath", "path": "/data"}, {"hostPath": {"path": "/data", "type": "Directory"}}),
        ({"type": "claim", "claim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}),
        ({"type": "newClaim"}, {"persistentVolumeClaim": {"claimName": f"{FULLNAME}-models"}}),
    ],
)
def test_models_lie_on_the_volume_that_was_asked_for(volume: dict[str, Any], source: dict[str, Any]) -> None:
    manifests = render({"model": {"volume": volume}})
    volumes = pod_specs(manifests)[f"{FULLNAME}-engines"]["volumes"]

    assert {"name": "models", **source} in volumes
    assert len(of_kind(manifests, "PersistentVolumeClaim", "models")) == (volume["type"] == "newClaim")


def test_claims_outlive_the_release() -> None:
    manifests = render({"model": {"volume": {"type": "newClaim"}}, "loadgen": {"enabled": True}})

    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_a_tiny_model_is_made_before_the_engines_start_offline() -> None:
    [pod] = [
        item["spec"]["template"]["spec"]
        for item in of_kind(render({"model": {"name": "/models/tiny", "tiny": True}}), "StatefulSet")
    ]
    [made] = pod["initContainers"]

    assert {"name": "MODEL", "value": "/models/tiny"} in made["env"]
    assert "pd_engine.tiny_model" in made["command"][-1]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in pod["containers"][0]["env"]


def test_a_downloaded_model_is_fetched_once_before_the_engines_start_offline() -> None:
    manifests = render({"model": {"name": "org/model", "download": True}})
    spec = pod_specs(manifests)[f"{FULLNAME}-engines"]

    [download] = spec["initContainers"]
    assert {"name": "MODEL", "value": "org/model"} in download["env"]
    assert all(environment(container)["HF_HUB_OFFLINE"] == "1" for container in spec["containers"])


def test_example_connector_shares_a_folder_in_memory_or_on_a_claim() -> None:
    together = pod_specs(render({"engine": {"kvConnector": "ExampleConnector"}}))[f"{FULLNAME}-engines"]
    values = {"engine": {"kvConnector": "ExampleConnector", "topology": "separate", "kvClaim": "kv"}}
    apart = pod_specs(render(values))[f"{FULLNAME}-decode"]

    assert {"name": "kv", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in together["volumes"]
    assert {"name": "kv", "persistentVolumeClaim": {"claimName": "kv"}} in apart["volumes"]


def test_p2p_connector_has_a_folder_for_its_sockets_in_one_pod_and_on_the_node_where_a_value_says_so() -> None:
    folder = {"name": "KV_SOCKET_FOLDER", "value": "/run/pd-kv"}
    apart = {"engine": {"topology": "separate"}, "combined": {"count": 1}}
    on_node = deep(apart, {"engine": {"kvSocketFolder": "/var/run/pd-kv"}})

    together = pod_specs(render())[f"{FULLNAME}-engines"]
    assert all(folder in container["env"] for container in together["containers"])
    assert {"name": "kv-sockets", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}} in together["volumes"]
    assert not any(folder in container["env"] for container in engines(render(apart)).values())
    for name, spec in pod_specs(render(on_node)).items():
        host = {"name": "kv-sockets", "hostPath": {"path": "/var/run/pd-kv", "type": "Directory"}}
        assert (host in spec.get("volumes", [])) == name.endswith(("-prefill", "-decode")), name


def test_the_readmes_values_show_both_gpus_to_both_engines_of_a_pod_and_tell_each_where_to_compute() -> None:
    text = (ROOT / "k8s/README.md").read_text()
    [block] = re.findall(r"^```\n(gpu: .*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = engines(render(deep(load(ROOT / "k8s/examples/1p1d.yaml"), yaml.safe_load(block))))

    for name, gpu in (("engines/prefill-0", "0"), ("engines/decode-0", "1")):
        variables = environment(found[name])
        assert (variables["NVIDIA_VISIBLE_DEVICES"], variables["CUDA_VISIBLE_DEVICES"]) == ("all", gpu)
        assert found[name]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_combined_engines_may_do_both() -> None:
    values: dict[str, Any] = {
        "prefill": {"count": 0},
        "decode": {"count": 0},
        "combined": {"count": 2, "kvBoth": True},
        "engine": {"kvSocketFolder": "/run/pd-kv"},
        "proxy": {"discovery": "kubernetes"},
    }
    manifests = render(values)
    container = engines(manifests)["combined/combined"]
    variables = environment(container)
    (service,) = [
        one for one in manifests if one["kind"] == "Service" and one["metadata"]["name"] == f"{FULLNAME}-combined"
    ]

    assert (variables["KV_BOTH"], variables["COMBINED_KV_PORT"], variables["KV_CONNECTOR"]) == (
        "on",
        "23001",
        "P2pConnector",
    )
    assert {"name": "kv-combined", "containerPort": 23001} in container["ports"]
    assert {"name": "kv-combined", "port": 23001, "targetPort": "kv-combined"} in service["spec"]["ports"]
    assert {"name": "KV_SOCKET_FOLDER", "value": "/run/pd-kv"} in container["env"]
    plain = engines(render(deep(values, {"combined": {"kvBoth": False}})))["combined/combined"]
    assert [port["name"] for port in plain["ports"]] == ["combined"]
    assert "KV_BOTH" not in environment(plain)


def test_arguments_and_variables_of_a_role_come_after_those_of_all_engines() -> None:
    values = {
        "engine": {"args": "--seed 1", "env": {"A": "all", "B": "all"}},
        "decode": {"args": "--swap-space 0", "env": {"B": "decode"}},
    }
    variables = environment(engines(render(values))["engines/decode-0"])

    assert variables["ENGINE_ARGS"] == "--seed 1 --swap-space 0"
    assert (variables["A"], variables["B"]) == ("all", "decode")
