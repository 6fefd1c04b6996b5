"""Writes docs/configuration.md and its Chinese page from the services' own settings; `--check` only says whether they are up to date."""

import sys
from pathlib import Path
from typing import Any

import msgspec
from settings_zh import MEANINGS

from pd_contracts.settings import Field, fields, metavar, shown
from pd_control.settings import ControlSettings
from pd_engine.settings import CheckSettings, EngineSettings
from pd_monitor.clocks.settings import ClockSettings
from pd_monitor.settings import Settings as MonitorSettings
from pd_proxy.settings import Settings as ProxySettings
from pd_simulator.settings import Settings as SimulatorSettings

HEAD = """# Configuration

Every service reads its settings from the environment; a command-line option of the same name (`HTTP_PROXY_PORT` is `--http-proxy-port`) overrides it.
An empty variable counts as unset.
`.env` holds what a deployment usually changes.
This page is written from the code by `python docs/write_configuration.py`.

## Settings that most deployments change

| variable | meaning | example |
| --- | --- | --- |
| `MODEL` | the model: a Hugging Face name, or a folder | `Qwen/Qwen3-4B` |
| `PREFILL_GPUS`, `DECODE_GPUS` | GPUs of the prefill and of the decode engines; one engine per GPU, or per `TENSOR_PARALLEL_SIZE` GPUs | `0,1,2` and `3` |
| `COMBINED_GPUS` | GPUs of plain engines | `0,1` |
| `KV_CONNECTOR` | how KV gets from prefill to decode ([Engines](engines.md#which-connector)) | `P2pConnector` |
| `MAX_MODEL_LEN` | longest prompt plus answer, tokens | `8192` |
| `GPU_MEMORY_UTILIZATION` | share of a GPU's memory for weights and KV cache | `0.9` |
| `ENGINE_ARGS` | more arguments for `vllm serve` | `--dtype bfloat16` |
| `HTTP_PROXY_PORT` | port that clients use | `10001` |
| `API_KEYS_FILE` | file with the clients' keys, one per line; without it anybody may ask | `/run/keys` |
| `PING_KEY`, `UNSIGNED_PINGS` | a secret with which engines sign their pings, and whether unsigned pings are accepted | `openssl rand -hex 32`, `off` |
| `FIRST_TOKEN` | who sends the first token with P2pConnector | `prefill` |

All settings follow, service by service.
"""
CHINESE_HEAD = """# 配置

每个服务都从环境变量读取设置；同名的命令行选项优先（`HTTP_PROXY_PORT` 对应 `--http-proxy-port`）。
空的变量等于没有设置。
`.env` 里是部署时通常要改的设置。
本页由 `python docs/write_configuration.py` 根据代码写成。

## 多数部署会改的设置

| 变量 | 含义 | 例子 |
| --- | --- | --- |
| `MODEL` | 模型：Hugging Face 上的名字，或一个目录 | `Qwen/Qwen3-4B` |
| `PREFILL_GPUS`、`DECODE_GPUS` | prefill 引擎和 decode 引擎使用的 GPU；每块 GPU 一个引擎，或每 `TENSOR_PARALLEL_SIZE` 块一个 | `0,1,2` 和 `3` |
| `COMBINED_GPUS` | 普通引擎使用的 GPU | `0,1` |
| `KV_CONNECTOR` | KV 怎样从 prefill 到 decode（[引擎](engines.md#选哪个-connector)） | `P2pConnector` |
| `MAX_MODEL_LEN` | 提示词加回答的最大长度，token 数 | `8192` |
| `GPU_MEMORY_UTILIZATION` | 显存中用于权重和 KV cache 的比例 | `0.9` |
| `ENGINE_ARGS` | `vllm serve` 的其他参数 | `--dtype bfloat16` |
| `HTTP_PROXY_PORT` | 客户端使用的端口 | `10001` |
| `API_KEYS_FILE` | 存放客户端密钥的文件，每行一个；没有它，任何人都可以请求 | `/run/keys` |
| `PING_KEY`、`UNSIGNED_PINGS` | 引擎给 ping 签名用的密钥，以及是否接受没有签名的 ping | `openssl rand -hex 32`、`off` |
| `FIRST_TOKEN` | 使用 P2pConnector 时由谁发出首 token | `prefill` |

下面按服务列出全部设置。
"""
SERVICES: list[tuple[str, str, type[msgspec.Struct]]] = [
    ("Engines: prefill, decode, combined", "引擎：prefill、decode、combined", EngineSettings),
    ("Probes and draining of engines", "引擎的探测与排空", CheckSettings),
    ("Proxy", "代理", ProxySettings),
    ("Simulator", "模拟器", SimulatorSettings),
    ("Monitor", "监控", MonitorSettings),
    ("Clock control: pd-monitor clocks", "频率控制：pd-monitor clocks", ClockSettings),
    ("pdctl", "pdctl", ControlSettings),
]


def cell(default: Any) -> str:
    """A default in the table: nothing for what is unset, large numbers short."""
    if default is None or default in ((), ""):
        return ""
    return shown(default)


def meaning(field: Field, language: int) -> str:
    """What a setting means, with the values that it accepts if they can be listed.

    Raises:
        KeyError: if it has no Chinese meaning.
    """
    names = metavar(field.type).split("|")
    listed = len(names) > 1 and names != ["on", "off"]
    if language:
        return f"{MEANINGS[field.description]}" + f"（可选 {'、'.join(names)}）" * listed
    return field.description + f" (one of {', '.join(names)})" * listed


def tables(language: int, header: str) -> str:
    """Every service's settings; `language` chooses the words."""
    parts = []
    for english, chinese, settings in SERVICES:
        rows = [
            f"| `{field.variable}` | {cell(field.default)} | {meaning(field, language)} |" for field in fields(settings)
        ]
        title = (english, chinese)[language]
        parts.append("\n".join([f"## {title}\n", header, "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def pages() -> dict[Path, str]:
    """What the pages ought to say, by file."""
    return {
        Path(__file__).with_name("configuration.md"): f"{HEAD}\n{tables(0, '| variable | default | meaning |')}\n",
        Path(__file__).with_name("configuration.zh.md"): f"{CHINESE_HEAD}\n{tables(1, '| 变量 | 默认值 | 含义 |')}\n",
    }


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return 0 if all(path.read_text(encoding="utf-8") == text for path, text in pages().items()) else 1
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
