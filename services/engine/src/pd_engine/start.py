"""Starts vLLM: gather facts, refuse or plan, start the helper processes, and exec the engine."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.address import own_address
from pd_contracts.proxies import addresses, first_host
from pd_contracts.settings import load
from pd_engine import alike
from pd_engine.announcer import identity_of, ping_of
from pd_engine.commandline import config_path, parse
from pd_engine.gpus import listing, of_engine, visible_devices
from pd_engine.plan import Launch, RefusedError, plan
from pd_engine.settings import EngineSettings, Host

SECRET: Final = ("VLLM_API_KEY",)
PACKAGES: Final = ("vllm", "torch", "nixl")


def look_around(settings: EngineSettings) -> Host:
    """Find out what the plan needs to know of this machine.

    Raises:
        importlib.metadata.PackageNotFoundError: if vLLM is not installed here.
    """
    major, minor = importlib.metadata.version("vllm").split(".")[:2]
    path = Path(settings.model)
    config, problem = _config(settings)
    on_gpu = settings.engine_device == "gpu"
    gpus = of_engine(listing() if on_gpu else "", visible_devices(os.environ), settings.tensor_parallel_size)
    return Host(
        vllm_version=(int(major), int(minor)),
        address=own_address(*first_host(settings.proxy_host, settings.proxy_port)),
        proxies=max(1, len(addresses(settings.proxy_host, settings.proxy_port))),
        model_exists=path.exists() or not settings.model.startswith(("/", ".", "~")),
        kv_path_writable=os.access(settings.kv_shared_path, os.W_OK) and Path(settings.kv_shared_path).is_dir(),
        has_flashinfer=importlib.util.find_spec("flashinfer") is not None,
        has_nixl=importlib.util.find_spec("nixl") is not None,
        has_pd_connector=importlib.util.find_spec("pd_connector") is not None,
        versions={**_versions(), **({"driver": gpus.driver} if gpus.driver else {})},
        gpus=gpus,
        config=config,
        config_problem=problem,
    )


def _versions() -> dict[str, str]:
    """Of the packages that decide what is measured; those that are not here are left out."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _config(settings: EngineSettings) -> tuple[dict[str, Any], str]:
    """What the file says that ENGINE_ARGS name by --config, and why it cannot be read."""
    try:
        path = config_path(shlex.split(settings.engine_args))
    except ValueError:
        return {}, ""  # refused for its quotes
    if path is None:
        return {}, ""
    import yaml  # noqa: PLC0415  vLLM brings it; nothing else here needs it

    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, str(error)
    return (found, "") if isinstance(found, dict) else ({}, "it holds no mapping of options to values")


def command(launch: Launch) -> list[str]:
    """`vllm serve …`, through the module where the script is not installed."""
    script = shutil.which("vllm")
    program = [script] if script else [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    return [*program, "serve", *launch.arguments]


def companions(settings: EngineSettings, host: Host, launch: Launch) -> list[list[str]]:
    """Modules to run beside the engine, with their arguments; exec keeps our process id, so the engine becomes their parent."""
    parent = str(os.getpid())
    commands = []
    if launch.announce:
        needed = alike.told(parse(launch.arguments, host.config))
        ping = msgspec.json.encode(ping_of(settings, host, uuid.uuid4().hex, needed)).decode()
        proxies = [settings.proxy_host, str(settings.proxy_port)]
        commands.append(["pd_engine.announcer", parent, *proxies, ping, identity_of(settings, host)])
    if launch.clean_shared_path:
        commands.append(["pd_engine.cleaner", parent, settings.kv_shared_path, str(settings.kv_shared_max_age_s)])
    return commands


def start(*, print_only: bool) -> int:
    """Refuse with what to change (status 2), or become vLLM and never return.

    Raises:
        SettingsError: for an invalid setting.
    """
    settings = load(EngineSettings)
    try:
        settings.key()
        host = look_around(settings)
        launch = plan(settings, host, os.environ)
    except importlib.metadata.PackageNotFoundError:
        sys.stderr.write("pd-engine: vLLM is not installed here; this program belongs in a vLLM image\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"pd-engine: {error}\n")
        return 2
    except RefusedError as error:
        sys.stderr.write("".join(f"pd-engine: {line}\n" for line in str(error).splitlines()))
        return 2
    arguments = command(launch)
    shown = {name: "***" if name in SECRET else value for name, value in launch.environment.items()}
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in shown.items())
    sys.stderr.write(f"pd-engine: {variables} {shlex.join(arguments)}\n")
    if print_only:
        return 0
    for companion in companions(settings, host, launch):
        subprocess.Popen([sys.executable, "-m", *companion], stdin=subprocess.DEVNULL)
    for name in launch.unset:
        del os.environ[name]
    os.environ.update(launch.environment)
    return os.execvp(arguments[0], arguments)  # noqa: S606  the engine replaces us and gets our signals; never returns
