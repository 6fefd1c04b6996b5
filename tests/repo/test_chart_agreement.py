"""The chart, docker-compose.yml, `.env` and the services' settings agree."""

import re
from typing import Any

import msgspec
import pytest
import yaml
from support.chart import (
    CHART,
    EXAMPLES,
    FULLNAME,
    ROOT,
    Manifest,
    engines,
    environment,
    pod_specs,
    refusal,
    render,
    the,
)
from support.chart import (
    load as load_values,
)
from support.dotenv_file import dotenv

from pd_contracts.names import Connector, Role
from pd_contracts.settings import fields, load
from pd_contracts.vllm_releases import LAST_WITH_P2P_NCCL
from pd_engine import alike
from pd_engine.guards_p2p_nccl import DECODE_MEMORY_LIMIT
from pd_engine.plan import complaints, plan
from pd_engine.settings import CheckSettings, EngineSettings, Host
from pd_monitor.settings import Settings as MonitorSettings
from pd_planner.emit.plan_file import USUAL_MAX_MODEL_LEN
from pd_proxy.engines.policy import Policy
from pd_proxy.settings import Settings as ProxySettings
from pd_simulator.settings import Settings as SimulatorSettings

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
# Read by libraries, by vLLM, by the NVIDIA runtime, or by the shell command of the chart itself.
ELSEWHERE = {
    "HOME",
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "POD_NAME",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
}
OPTIONS = [
    line
    for line in (ROOT / "services/engine/src/pd_engine/vllm_options.txt").read_text().splitlines()
    if not line.startswith("#")
]
HOST = Host(vllm_version=(0, 23), address="10.0.0.1")


def filled(container: Manifest) -> dict[str, str]:
    """The container's variables, with something in place of what the cluster fills in."""
    cluster = {
        "VLLM_HOST_IP": "10.0.0.7",
        "INSTANCE": "3",
        "POD_NAME": "demo-pdstack-prefill-3",
        "HF_TOKEN": "secret",
        "ADMIN_KEY": "secret",
        "PING_KEY": "secret",
    }
    return {name: cluster[name] if value.startswith("{") else value for name, value in environment(container).items()}


def names(container: Manifest) -> set[str]:
    return {item["name"] for item in container["env"]}


def test_ports_are_those_of_dotenv() -> None:
    variables = {
        "proxy": "HTTP_PROXY_PORT",
        "discovery": "PROXY_PORT",
        "prefillHttp": "PREFILL_HTTP_PORT",
        "decodeHttp": "DECODE_HTTP_PORT",
        "combinedHttp": "COMBINED_HTTP_PORT",
        "prefillKv": "PREFILL_KV_PORT",
        "decodeKv": "DECODE_KV_PORT",
        "combinedKv": "COMBINED_KV_PORT",
        "monitor": "MONITOR_PORT",
    }

    assert {key: str(port) for key, port in VALUES["ports"].items()} == {
        key: dotenv()[variable] for key, variable in variables.items()
    }


def test_other_defaults_are_those_of_dotenv() -> None:
    engine, values = VALUES["engine"], dotenv()

    assert VALUES["model"]["name"] == values["MODEL"]
    assert engine["kvConnector"] == values["KV_CONNECTOR"]
    assert str(engine["maxModelLen"]) == values["MAX_MODEL_LEN"]
    assert str(engine["tensorParallelSize"]) == values["TENSOR_PARALLEL_SIZE"]
    assert engine["simProfile"] == values["SIM_PROFILE"]
    assert engine["sharedMemory"].removesuffix("i").lower() == values["SHM_SIZE"]
    assert VALUES["logLevel"] == values["LOG_LEVEL"]
    assert values["VLLM_IMAGE"].endswith(f":v{VALUES['images']['vllmVersion']}")


def proxy_container(values: dict[str, Any]) -> Manifest:
    [container] = the(render(values), "Deployment", "proxy")["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]  # YAML


def test_the_proxys_values_are_its_own_defaults() -> None:
    variables = filled(proxy_container({}))
    # In a cluster engines are elsewhere, and everybody is told who belongs together.
    apart = {"ADMIN_KEY": "", "PING_KEY": "", "DEPLOYMENT": "", "DISCOVERY_HOST": "", "UNSIGNED_PINGS": ""}
    told = load(ProxySettings, {**variables, **apart})

    assert told == ProxySettings()
    assert len(variables) > 15


def test_the_proxys_values_reach_its_settings() -> None:
    values = {
        "proxy": {
            "policy": "least_loaded",
            "canary": False,
            "kvInFlightBytes": 64_000_000_000,
            "maxInFlight": 1_000_000,
            "queueTimeoutSeconds": 1.5,
            "pingNetworks": ["10.0.0.0/8", "fd00::/8"],
            "apiKeysSecret": "clients",
        }
    }
    told = load(ProxySettings, filled(proxy_container(values)))

    assert (told.policy.value, told.canary, told.queue_timeout_s) == ("least_loaded", False, 1.5)
    assert (told.kv_in_flight_bytes, told.max_in_flight) == (64_000_000_000, 1_000_000)
    assert [str(network) for network in told.networks()] == ["10.0.0.0/8", "fd00::/8"]
    assert told.api_keys_file == "/etc/pdstack/keys/api-keys"
    assert told.admin_key == "secret"


def test_the_chart_knows_every_policy() -> None:
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())["properties"]["proxy"]["properties"]

    assert schema["policy"]["enum"] == [policy.value for policy in Policy]


def test_how_engines_are_checked_and_drained_is_by_default_as_they_do_it_themselves() -> None:
    engine, default = VALUES["engine"], CheckSettings()

    assert (engine["stallSeconds"], engine["drainSeconds"]) == (default.engine_stall_s, default.drain_wait_s)


def test_images_are_those_that_compose_builds() -> None:
    built = {
        service["image"].split(":")[0]
        for service in SERVICES.values()
        if service.get("image", "").startswith("pdstack/")
    }
    everything = {
        "monitor": {"enabled": True},
        "loadgen": {"enabled": True},
        "analysis": {"enabled": True},
        "combined": {"count": 1},
    }
    used = {
        container["image"].rsplit(":", 1)[0]
        for values in (everything, {"engine": {"kind": "sim"}})
        for spec in pod_specs(render(values)).values()
        for container in spec["containers"]
    }

    assert used == built


def test_containers_run_as_the_user_of_their_images() -> None:
    users = {
        re.findall(r"^USER (\S+)", path.read_text(), re.MULTILINE)[-1] for path in ROOT.glob("services/**/*Dockerfile")
    }
    [user] = users
    context = pod_specs(render())[f"{FULLNAME}-engines"]["securityContext"]

    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"engine": {"stepTimeoutSeconds": 60}, "model": {"tokenSecret": "hf", "download": True}}, EngineSettings),
        ({"engine": {"kvConnector": "ExampleConnector", "maxNumSeqs": 8}, "combined": {"count": 1}}, EngineSettings),
        ({"engine": {"kind": "sim"}, "combined": {"count": 1}}, SimulatorSettings),
        ({"engine": {"kind": "sim", "topology": "separate"}, "combined": {"count": 1}}, SimulatorSettings),
    ],
    ids=["vllm", "vllm-example", "sim", "sim-separate"],
)
def test_engines_are_told_nothing_that_they_do_not_read_and_accept_all_of_it(
    values: dict[str, Any], settings: type[msgspec.Struct]
) -> None:
    known = {field.variable for kind in (settings, CheckSettings) for field in fields(kind)} | ELSEWHERE
    for name, container in engines(render(values)).items():
        assert names(container) <= known, name
        load(settings, filled(container))
        load(CheckSettings, filled(container))


@pytest.mark.parametrize("topology", ["pod", "separate"])
def test_simulated_engines_listen_on_the_ports_that_their_pods_show(topology: str) -> None:
    values = {"engine": {"kind": "sim", "topology": topology}, "decode": {"count": 2}, "combined": {"count": 1}}
    for name, container in engines(render(values)).items():
        read = load(SimulatorSettings, filled(container))
        listening = [read.listen_http_port, *([] if read.pd_role is Role.COMBINED else [read.listen_kv_port])]
        assert [port["containerPort"] for port in container["ports"]] == listening, name
        checked = load(CheckSettings, filled(container))
        assert (checked.pd_role, checked.listen_http_port) == (read.pd_role, read.listen_http_port), name


def test_proxy_and_monitor_are_told_nothing_that_they_do_not_read() -> None:
    for values in ({}, {"engine": {"kind": "sim"}}):
        manifests = render({"monitor": {"enabled": True, "prefillGpus": [0], "decodeGpus": [1, 2]}, **values})
        kind = "Deployment" if values else "DaemonSet"
        told: list[tuple[Manifest, type[msgspec.Struct]]] = [
            (the(manifests, "Deployment", "proxy"), ProxySettings),
            (the(manifests, kind, "monitor"), MonitorSettings),
        ]
        for manifest, settings in told:
            [container] = manifest["spec"]["template"]["spec"]["containers"]
            assert names(container) <= {field.variable for field in fields(settings)} | ELSEWHERE
            load(settings, filled(container))


REAL = [path for path in EXAMPLES if load_values(path).get("engine", {}).get("kind") != "sim"]


@pytest.mark.parametrize("example", REAL, ids=lambda path: path.stem)
def test_engines_of_every_example_start_rather_than_refuse(example: Any) -> None:
    values = load_values(example)
    for name, container in engines(render(values)).items():
        variables = filled(container)
        connector = Connector(variables["KV_CONNECTOR"])
        version = (0, 23) if connector is Connector.P2P_NCCL else (0, 33)
        launch = plan(load(EngineSettings, variables), msgspec.structs.replace(HOST, vllm_version=version), variables)
        listening = launch.arguments[launch.arguments.index("--port") + 1]
        assert container["ports"][0]["containerPort"] == int(listening), name
        assert load(CheckSettings, variables).listen_http_port == int(listening), name


def test_plans_know_how_long_requests_may_be_without_saying_so() -> None:
    assert int(dotenv()["MAX_MODEL_LEN"]) == VALUES["engine"]["maxModelLen"] == USUAL_MAX_MODEL_LEN


def test_the_chart_and_the_engines_refuse_at_the_same_limits() -> None:
    major, minor = LAST_WITH_P2P_NCCL
    over = DECODE_MEMORY_LIMIT + 0.01

    stock = {"engine": {"kvConnector": "P2pNcclConnector"}, "images": {"vllmVersion": f"{major}.{minor}.9"}}
    assert render(stock)
    later = {**stock, "images": {"vllmVersion": f"{major}.{minor + 1}.0"}}
    assert f"{major}.{minor + 1}" in refusal(later)
    assert render({**stock, "decode": {"gpuMemoryUtilization": DECODE_MEMORY_LIMIT}})
    assert f"set {DECODE_MEMORY_LIMIT} or less" in refusal({**stock, "decode": {"gpuMemoryUtilization": over}})


ENGINES: dict[str, dict[str, str]] = {
    "all": {"PD_ROLE": "combined"},
    "pairs": {"PD_ROLE": "decode", "KV_CONNECTOR": "NixlConnector"},
    "drafts": {"PD_ROLE": "decode"},
    "p2p": {"KV_CONNECTOR": "P2pNcclConnector"},
    "p2p-prefill": {"PD_ROLE": "prefill", "KV_CONNECTOR": "P2pNcclConnector"},
    "p2p-decode": {"PD_ROLE": "decode", "KV_CONNECTOR": "P2pNcclConnector"},
}
WRONG = {
    "--runner": "pooling",
    "--convert": "embed",
    "--compilation-config": "{}",
    "-cc": "{}",
    "--max-model-len": "99999",
}


def refused_arguments() -> list[tuple[str, str]]:
    """Where and what the chart refuses in `args`."""
    text = (CHART / "templates/_arguments.tpl").read_text()
    [body] = re.findall(r'define "pdstack.refusedArguments" -}}(.*?){{- end }}', text, re.DOTALL)
    return [(rule["for"], option) for rule in yaml.safe_load(body) for option in rule["options"]]


def test_the_chart_refuses_for_one_role_what_engines_compare_when_they_meet() -> None:
    """An engine alone cannot refuse it."""
    own = {option for scope, option in refused_arguments() if scope == "own"}
    rows = [row.split() for row in OPTIONS if own & set(row.split()[2:])]
    assert {row[0] for row in rows} == set(alike.OPTIONS)
    assert own <= {spelling for row in rows for spelling in row[2:]}


@pytest.mark.parametrize(("scope", "option"), [rule for rule in refused_arguments() if rule[0] != "own"])
def test_arguments_that_the_chart_refuses_are_refused_by_the_engines(scope: str, option: str) -> None:
    switch = any(option in row.split()[2:] and row.split()[1] == "0" for row in OPTIONS)
    assert any(option in row.split()[2:] for row in OPTIONS), "no option of vLLM"
    told = option if switch else f"{option} {WRONG.get(option, '2')}"
    variables = {"MODEL": "m", "MAX_MODEL_LEN": "8192", "MAX_NUM_BATCHED_TOKENS": "8192", "ENGINE_ARGS": told}

    def refused(role: str) -> bool:
        settings = load(EngineSettings, {**variables, "PD_ROLE": role, **ENGINES[scope]})
        return bool(complaints(settings, HOST, {}))

    assert any(map(refused, ("prefill", "decode")))


def test_the_chart_knows_every_role_and_connector() -> None:
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())["properties"]

    assert set(Role) <= set(schema)
    assert schema["engine"]["properties"]["kvConnector"]["enum"] == [
        connector.value for connector in (Connector.P2P, Connector.NIXL, Connector.P2P_NCCL, Connector.EXAMPLE)
    ]
    assert len(Connector) == 4


def test_variables_that_the_chart_sets_cannot_be_set_beside_it() -> None:
    text = (CHART / "templates/requirements.yaml").read_text()
    everything = {
        "engine": {
            "stepTimeoutSeconds": 1,
            "maxNumSeqs": 1,
            "maxNumBatchedTokens": 8192,
            "kvConnector": "ExampleConnector",
        }
    }
    used: set[str] = set()
    for values in (
        everything,
        {"engine": {"kind": "sim", "topology": "separate"}},
        {"model": {"tokenSecret": "x", "download": True}},
    ):
        for container in engines(render(values)).values():
            used |= names(container)

    assert [name for name in sorted(used) if f'"{name}"' not in text] == []
