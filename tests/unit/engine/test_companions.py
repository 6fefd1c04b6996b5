"""The announcer and the cleaner, which run beside an engine."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import zmq
from support.control import alive
from support.waiting import until

from pd_contracts.names import Connector
from pd_contracts.ping import MAX_PING_BYTES, PingType, decode_ping, encode_ping
from pd_contracts.settings import load
from pd_engine import alike
from pd_engine.announcer import identity_of, ping_of
from pd_engine.cleaner import clean
from pd_engine.commandline import CommandLine, parse
from pd_engine.gpus import Gpus
from pd_engine.plan import plan
from pd_engine.settings import EngineSettings, Host

HOST = Host(vllm_version=(0, 32), address="127.0.0.1")


# Starts the announcer as the entry point does, says which process it is, and lives until its input ends.
ENGINE = """
import os, subprocess, sys
started = subprocess.Popen([sys.executable, "-m", "pd_engine.announcer", str(os.getpid()), *sys.argv[1:]])
print(started.pid, flush=True)
sys.stdin.read()
"""


def test_an_announcer_pings_all_proxies_until_its_parent_ends() -> None:
    settings = load(EngineSettings, {"PD_ROLE": "decode", "MODEL": "m", "KV_CONNECTOR": "ExampleConnector"})
    ping = ping_of(settings, HOST, "boot", {})
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.ROUTER) as second:
        port, another = (one.bind_to_random_port("tcp://127.0.0.1") for one in (router, second))
        hosts = f"127.0.0.1,localhost:{another},no-such-proxy.invalid"
        command = [sys.executable, "-c", ENGINE, hosts, str(port), msgspec.json.encode(ping).decode()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
            assert engine.stdout is not None
            announcer = int(engine.stdout.readline())
            assert router.poll(30_000), "no ping came"
            identity, payload = router.recv_multipart()
            assert identity == b"127.0.0.1:22001"
            assert decode_ping(payload) == ping
            assert (ping.type, ping.connector, ping.boot_id) == (PingType.DECODE, Connector.EXAMPLE, "boot")
            assert second.poll(30_000), "no ping came to the second proxy"
            assert decode_ping(second.recv_multipart()[1]) == ping
            assert alive(announcer)
            engine.communicate()  # the engine ends

        until(lambda: not alive(announcer))


def test_a_combined_engine_announces_no_connector() -> None:
    settings = load(EngineSettings, {"PD_ROLE": "combined", "MODEL": "m", "SERVED_MODEL_NAME": "short"})

    ping = ping_of(settings, HOST, "boot", {})

    assert (ping.type, ping.connector, ping.model) == (PingType.COMBINED, None, "short")
    assert ping.http_address == ping.zmq_address == "127.0.0.1:8000"


def entry(folder: Path, name: str, age_s: float) -> Path:
    path = folder / name
    path.mkdir()
    (path / "kv.safetensors").write_bytes(b"kv")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_the_cleaner_deletes_what_is_old_and_nothing_else(tmp_path: Path) -> None:
    old, young = entry(tmp_path, "old", 100), entry(tmp_path, "young", 1)

    assert clean(tmp_path, max_age_s=50) == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_the_cleaner_makes_room_from_the_oldest_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(tmp_path, f"{age}", age) for age in (40, 30, 20)]

    def usage(_: Path) -> SimpleNamespace:
        # 90% full with three entries, 60% with two
        return SimpleNamespace(total=100, used=30 * len(list(tmp_path.iterdir())))

    monkeypatch.setattr("shutil.disk_usage", usage)

    assert clean(tmp_path, max_age_s=1000) == 1
    assert [path.exists() for path in entries] == [False, True, True]


def test_the_cleaner_never_takes_what_decode_may_be_about_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = entry(tmp_path, "young", 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=100, used=99))

    assert clean(tmp_path, max_age_s=1000) == 0
    assert young.exists()


def test_what_an_engine_announces_says_where_it_runs_and_whose_it_is() -> None:
    told = {
        "PD_ROLE": "prefill",
        "MODEL": "m",
        "KV_CONNECTOR": "NixlConnector",
        "UCX_TLS": "tcp",
        "DEPLOYMENT": "d",
        "ENGINE_IMAGE": "i",
    }
    host = msgspec.structs.replace(
        HOST, gpus=Gpus(uuids=("GPU-1",), model="NVIDIA H200"), versions={"vllm": "0.32.1", "torch": "2.11"}
    )

    ping = ping_of(load(EngineSettings, told), host, "boot", {"dtype": "auto"})

    assert (ping.gpus, ping.gpu_model, ping.deployment, ping.image) == (("GPU-1",), "NVIDIA H200", "d", "i")
    assert (ping.version, ping.versions, ping.transport) == ("0.32.1", {"torch": "2.11"}, "ucx:tcp")
    named = ping_of(load(EngineSettings, {**told, "ENGINE_GPUS": "A,B", "ENGINE_GPU_MODEL": "M"}), host, "boot", {})
    assert (named.gpus, named.gpu_model) == (("A", "B"), "M")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", {"dtype": "auto", "kv_cache_dtype": "auto"}),
        ("--tokenizer x", {"dtype": "auto", "kv_cache_dtype": "auto", "tokenizer": "x"}),
        ("--hf_overrides.a 1", {"dtype": "auto", "kv_cache_dtype": "auto", "hf_overrides": '{"a": 1}'}),
        (
            "--attention-backend FLASHINFER -cc.mode=3",
            {"dtype": "auto", "kv_cache_dtype": "auto", "attention_backend": "FLASHINFER"},
        ),
    ],
)
def test_an_engine_says_what_others_need_alike(arguments: str, told: dict[str, str]) -> None:
    settings = load(
        EngineSettings, {"PD_ROLE": "decode", "MODEL": "m", "KV_CONNECTOR": "NixlConnector", "ENGINE_ARGS": arguments}
    )
    found = alike.told(parse(plan(settings, HOST, {}).arguments))
    assert found == told
    assert ping_of(settings, HOST, "boot", found).alike == told


def test_a_ping_stays_short_whatever_an_engine_was_started_with() -> None:
    names = (*alike.OF_SETTINGS, *alike.OPTIONS)
    line = CommandLine({name: name + "é" * 4000 for name in names})
    settings = load(EngineSettings, {"PD_ROLE": "decode", "MODEL": "m", "KV_CONNECTOR": "NixlConnector"})
    ping = ping_of(settings, HOST, "boot", alike.told(line))
    assert len(encode_ping(ping)) < MAX_PING_BYTES
    assert alike.told(line) != alike.told(CommandLine({name: f"{value}x" for name, value in line.given.items()}))


P2P_NCCL = {"KV_CONNECTOR": "P2pNcclConnector"}


@pytest.mark.parametrize(
    ("variables", "announces", "identity"),
    [
        (P2P_NCCL, False, "127.0.0.1:22001/announcer"),
        ({**P2P_NCCL, "PING_KEY": "secret"}, True, "127.0.0.1:22001/announcer"),
        ({**P2P_NCCL, "PING_KEY_FILE": "/run/key"}, True, "127.0.0.1:22001/announcer"),
        ({"KV_CONNECTOR": "P2pConnector"}, True, "127.0.0.1:22001"),
        ({"KV_CONNECTOR": "NixlConnector"}, True, "127.0.0.1:22001"),
    ],
)
def test_vllms_own_pings_are_not_enough_where_pings_are_signed(
    variables: dict[str, str], announces: bool, identity: str
) -> None:
    settings = load(EngineSettings, {"PD_ROLE": "decode", "MODEL": "m", **variables})
    host = msgspec.structs.replace(HOST, vllm_version=(0, 23))

    assert plan(settings, host, {}).announce is announces
    assert identity_of(settings, host) == identity
