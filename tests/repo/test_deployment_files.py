"""`.env`, docker-compose.yml, the Dockerfiles and the services' settings agree."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.dotenv_file import dotenv

from pd_contracts.ports import Ports
from pd_contracts.settings import fields, load
from pd_engine.settings import EngineSettings
from pd_monitor.settings import Settings as MonitorSettings
from pd_proxy.settings import Settings as ProxySettings
from pd_simulator.settings import Settings as SimulatorSettings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
PROFILES = [
    "disagg",
    "disagg-fabric",
    "combined",
    "cpu",
    "cpu-combined",
    "sim",
    "sim-combined",
    "load",
    "monitoring",
    "analysis",
]
SETTINGS: list[type[Any]] = [EngineSettings, ProxySettings, SimulatorSettings, MonitorSettings]
# Read by compose or pdctl themselves rather than by a service.
FOR_COMPOSE_ALONE = {"LOADGEN_MONITOR", "COMPOSE_PROJECT_NAME"}


def services() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE)
    found: dict[str, Any] = document["services"]
    return found


def compose_config(*profiles: str, files: Sequence[str] = ()) -> str:
    if shutil.which("docker") is None:
        pytest.skip("no docker command")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no compose plugin")
    options = [part for file in files for part in ("-f", file)]
    options += [part for profile in profiles for part in ("--profile", profile)]
    result = subprocess.run(
        ["docker", "compose", *options, "config"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "level=warning" not in result.stderr, result.stderr
    return result.stdout


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid(profile: str) -> None:
    document = yaml.safe_load(compose_config(profile))

    assert document["services"]


def test_the_example_with_two_proxies_is_valid_and_publishes_the_balancer_alone() -> None:
    example = "services/proxy/examples/two-proxies.yml"
    found = yaml.safe_load(compose_config("sim", files=["docker-compose.yml", example]))["services"]

    assert found["proxy"]["deploy"]["replicas"] == 2
    assert not found["proxy"].get("ports")
    assert [port["published"] for port in found["balancer"]["ports"]] == [dotenv()["HTTP_PROXY_PORT"]]
    template = Path(found["balancer"]["volumes"][0]["source"])
    assert template.read_text() == (ROOT / example).with_suffix(".conf.template").read_text()


def test_no_profile_is_untested() -> None:
    used = {profile for service in services().values() for profile in service["profiles"]}

    assert used == set(PROFILES)


def test_every_variable_of_compose_has_its_default_in_dotenv() -> None:
    used = set(re.findall(r"\$\{([A-Z_0-9]+)", COMPOSE))

    assert used - FOR_COMPOSE_ALONE <= set(dotenv())


def test_every_variable_in_dotenv_is_used() -> None:
    in_settings = {field.variable for settings in SETTINGS for field in fields(settings)}
    in_compose = set(re.findall(r"\$\{([A-Z_0-9]+)", COMPOSE))

    assert set(dotenv()) <= in_settings | in_compose


@pytest.mark.parametrize("settings", SETTINGS)
def test_defaults_in_dotenv_are_the_services_own(settings: type[Any]) -> None:
    # RESULTS_DIR, MODEL and the like are the deployment's choice; ports and connectors must not differ by accident.
    values = dotenv()
    shared = {"KV_CONNECTOR", "HTTP_PROXY_PORT", "PROXY_PORT", "MONITOR_PORT", "LOG_LEVEL", "TENSOR_PARALLEL_SIZE"}
    shared |= {field.variable for field in fields(Ports)}

    for field in fields(settings):
        if field.variable in shared:
            default = getattr(field.default, "value", field.default)
            assert str(default) == values[field.variable], field.variable


@pytest.mark.parametrize("role", ["prefill", "decode", "combined"])
def test_engines_accept_dotenv_as_it_is(role: str) -> None:
    settings = load(EngineSettings, {**dotenv(), "PD_ROLE": role})

    assert settings.http_port == int(dotenv()[f"{role.upper()}_HTTP_PORT"])


def test_gpu_engines_are_pinned_to_the_gpus_of_dotenv() -> None:
    document = yaml.safe_load(compose_config("disagg", "disagg-fabric", "combined"))["services"]

    def device(service: str) -> list[str]:
        ids: list[str] = document[service]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        return ids

    values = dotenv()
    assert device("prefill-fabric") == [values["PREFILL_GPU"]]
    assert device("decode-fabric") == [values["DECODE_GPU"]]
    # P2pConnector maps memory of the other's GPU, whose device node must be there: CUDA is told which to compute on.
    pinned = {"prefill": "PREFILL_GPU", "decode": "DECODE_GPU", "combined": "PREFILL_GPU", "combined-1": "DECODE_GPU"}
    for service, variable in pinned.items():
        [devices] = document[service]["deploy"]["resources"]["reservations"]["devices"]
        assert devices["count"] in (-1, "all")
        environment = document[service]["environment"]
        assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == (
            values[variable],
            "PCI_BUS_ID",
        )
    assert values["PREFILL_GPU"] != values["DECODE_GPU"]


def test_engines_ping_the_port_on_which_the_proxy_listens() -> None:
    document = yaml.safe_load(compose_config("disagg", "cpu", "sim"))["services"]

    port = document["proxy"]["environment"]["PROXY_PORT"]
    for name in ("prefill", "decode", "prefill-cpu", "decode-cpu", "prefill-sim", "decode-sim"):
        assert document[name]["environment"]["PROXY_PORT"] == port
        assert document[name]["environment"]["PROXY_HOST"] == "proxy"


def test_every_environment_name_in_compose_is_a_setting_of_its_service() -> None:
    document = yaml.safe_load(compose_config(*PROFILES))["services"]
    known: dict[str, type[Any]] = {
        "proxy": ProxySettings,
        "monitor": MonitorSettings,
        "monitor-combined": MonitorSettings,
        "monitor-sim": MonitorSettings,
        "prefill-sim": SimulatorSettings,
        "decode-sim": SimulatorSettings,
        "combined-sim": SimulatorSettings,
        "prefill": EngineSettings,
        "decode": EngineSettings,
        "combined": EngineSettings,
        "prefill-cpu": EngineSettings,
        "decode-cpu": EngineSettings,
        "combined-cpu": EngineSettings,
    }
    # For the Hugging Face library, the NVIDIA runtime, and knobs that only one kind of engine has.
    elsewhere = {
        "HOME",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "NVIDIA_DRIVER_CAPABILITIES",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
    }
    engine_only = {field.variable for field in fields(EngineSettings)}

    for name, settings in known.items():
        accepted = {field.variable for field in fields(settings)} | elsewhere
        accepted |= engine_only if name.endswith("-sim") else set()
        assert set(document[name]["environment"]) <= accepted, name


def test_images_are_pinned() -> None:
    values = dotenv()
    for name in ("VLLM_IMAGE", "VLLM_CPU_IMAGE", "PYTHON_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE"):
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", values[name]), name


@pytest.mark.parametrize("dockerfile", sorted(ROOT.glob("services/**/*Dockerfile")), ids=lambda path: path.parent.name)
def test_dockerfiles_start_from_the_pinned_images_and_end_as_a_user(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    defaults = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))

    assert defaults
    assert all(dotenv()[name] == image for name, image in defaults.items())
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE)[-1] == "${" + next(iter(defaults)) + "}"
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"


def test_only_the_proxy_the_monitor_and_the_pages_are_published() -> None:
    published = {name for name, service in services().items() if "ports" in service}

    pages = {"loadgen", "loadgen-cpu"}
    assert published == {"proxy", "monitor", "monitor-combined", "monitor-sim", *pages, "prometheus", "grafana"}


def test_every_serving_container_has_a_health_probe() -> None:
    without = {
        name
        for name, service in services().items()
        if "healthcheck" not in service and service.get("image", "").startswith("pdstack/")
    }

    # Engines bring theirs in the image; analysis runs once.
    engines = {"prefill", "decode", "combined", "combined-1"}
    on_cpu = {f"{name.removesuffix('-1')}-cpu{'-1' if '-1' in name else ''}" for name in engines}
    assert without == engines | on_cpu | {"prefill-fabric", "decode-fabric", "analysis"}


def test_no_container_writes_to_its_image_nor_takes_the_whole_machine() -> None:
    for name, service in yaml.safe_load(compose_config(*PROFILES))["services"].items():
        assert service["read_only"], name
        assert service["tmpfs"][0].startswith("/tmp:"), name  # noqa: S108  a mount point
        assert int(service["pids_limit"]) > 0, name
        assert int(service["mem_limit"]) > 0, name


def test_what_engines_compile_below_tmp_may_be_run() -> None:
    for name, service in yaml.safe_load(compose_config("disagg", "combined", "cpu", "cpu-combined"))[
        "services"
    ].items():
        real = (
            service["build"]["dockerfile"].split("/")[1] in ("prefill", "decode", "combined")
            if "build" in service
            else False
        )
        assert (",exec," in service["tmpfs"][0]) is real, name


def test_from_the_sources_pdctl_finds_every_member() -> None:
    members = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"])
    listed = re.search(r"for member in (.+); do", (ROOT / "pdctl").read_text())

    assert listed
    assert set(listed[1].split()) == members
