"""Writes docs/kubernetes.zh.md, the Chinese page."""

from collections.abc import Sequence
from typing import Final

from support.chart import ROOT
from support.cluster.load import CLIENTS

PAGE: Final = ROOT / "docs/kubernetes.zh.md"
HEAD: Final = f"""# 部署发生变化时，客户端会看到什么

本页由 `python docs/write_kubernetes.py` 根据一个真实的 Kubernetes 节点（[tests/cluster](../tests/cluster)）上的运行写成。
两个 prefill 引擎和两个 decode 引擎是模拟的，使用 P2pConnector，各在自己的 pod 里；第一列没有写“两个代理”的，只有一个代理。
{CLIENTS} 个客户端不停地发送请求，每个回答最长 3 s。
每个回答都与变化之前模型的回答比较。
写着“两个代理”的行来自同一个 release，设置为 `proxy.replicas: 2`。
区间是多次运行中的最小值和最大值。
`make cluster` 重复这些测试；只要丢失了一个本可以保住的请求，测试就会失败。

- **失败**：正在处理、最后以错误结束的请求：流式回答是错误事件，否则是状态 504，或者在已来不及重试（`proxy.retryBudgetSeconds`）时是 502。
  只有 decode 引擎崩溃或挂起时才会这样。
- **未被接受**：没有代理接受的尝试，因为没有可以连接的代理，或者代理即将停止（503）。
  每个客户端每 50 ms 重试一次，所以这个数字反映持续了多久。
  没有请求因此丢失。
- **断开**：与被杀掉的代理之间的连接，在回答之前或回答中途断开。
- **丢失**：其他所有没有得到正确回答的请求。
- **残留的 KV**：之后引擎仍保留其 KV 的请求数。

| 发生的事 | 回答 | 失败 | 未被接受 | 断开 | 丢失 | 残留的 KV |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL: Final = """
我们学到的：

- **只有一个代理时，服务会停顿。** 旧代理的最后一个请求与新代理的第一个请求之间有一段空档：旧代理排空，新代理启动、收到引擎的 ping 并逐对检查。
  客户端遇到“连接被拒绝”和 503 时必须重试，并给连接设置时限：service 没有端点时，节点每秒只拒绝少数连接，其余的直接丢弃。
- **有两个代理时，服务不会停顿。** 一个代理被删除、替换或移到别的节点时，另一个继续服务；排空节点时会留下其中一个。
  进程崩溃的代理，其连接会断开；在 Kubernetes 把它移出 service 之前，发给它的新连接会被拒绝。
- **删除之后会暂时有两个代理。** 执行 `kubectl delete pod` 或驱逐之后，旧代理还在排空时，新代理就已启动；升级时，新代理在旧代理结束之后才启动。
- **排空节点时遵守 PodDisruptionBudget。** 一个角色有两个引擎时，先移走一个；它在别的节点上就绪之前，另一个留在原处。
  如果没有别的节点，`kubectl drain` 会等到超时。
  其间服务用一半的引擎继续；如果唯一的代理在这个节点上，服务会停顿。
- **缺少镜像时，更新停在第一个引擎上。** 用 `helm rollback` 就能恢复。
  只有一个代理时，旧 pod 在拉取新镜像之前就已被移除，所以服务会停顿。
- **preStop 不会丢请求。** 引擎和代理都在宽限期内结束；超过 `engine.drainSeconds` 的请求以错误事件结束。
- **繁忙的节点上 Python 启动很慢。** 所以代理和监控都有启动探针；没有启动探针时，存活探针杀掉过还在启动的代理。
- **新的 pod 沿用前一个的名字。** 它的地址不同，所以代理像对新引擎一样检查它；在 `/stats` 里，它接过那个失联（lost）引擎的名字（仍是 `prefill-0`）。
  没有后继的引擎，例如缩容时移除的，会以失联状态再列出十分钟。
  在原 pod 里重新启动的容器保留地址和名字。
- **新的代理不认识任何引擎。** 引擎询问自己是否已被接纳时，它在最初几秒回答“未知”。
  引擎沿用上一个代理的答复，否则所有引擎会同时变为未就绪。
"""
NAMES: Final = {
    "`kubectl delete pod`, a prefill": "`kubectl delete pod`，一个 prefill",
    "`kubectl delete pod`, a decode": "`kubectl delete pod`，一个 decode",
    "`kubectl delete pod`, the proxy": "`kubectl delete pod`，代理",
    "`kubectl rollout restart`, both prefills": "`kubectl rollout restart`，两个 prefill",
    "`kubectl rollout restart`, both decodes": "`kubectl rollout restart`，两个 decode",
    "`kubectl rollout restart`, the proxy": "`kubectl rollout restart`，代理",
    "`helm upgrade` that changes every engine, then `helm rollback`": "改变所有引擎的 `helm upgrade`，然后 `helm rollback`",
    "`kubectl drain` of the only node, then `uncordon`": "对唯一的节点 `kubectl drain`，然后 `uncordon`",
    "a decode's process dies": "一个 decode 的进程崩溃",
    "a prefill's process dies": "一个 prefill 的进程崩溃",
    "a decode is killed for its memory": "一个 decode 因内存不足被杀掉",
    "a prefill answers nothing any more": "一个 prefill 不再应答",
    "a decode computes nothing any more, and answers health checks": "一个 decode 不再计算，但仍应答健康检查",
    "two proxies: `kubectl delete pod`, one of them": "两个代理：`kubectl delete pod`，其中一个",
    "two proxies: `kubectl rollout restart` of both": "两个代理：两个都 `kubectl rollout restart`",
    "two proxies: `kubectl drain` of the only node, then `uncordon`": "两个代理：对唯一的节点 `kubectl drain`，然后 `uncordon`",
    "two proxies: one's process dies": "两个代理：其中一个的进程崩溃",
}


def page(rows: Sequence[str]) -> str:
    """The Chinese page, of the rows of the English one.

    Raises:
        KeyError: if what happened has no name here.
    """
    return HEAD + "\n".join(_row(row) for row in rows) + "\n" + TAIL


def _row(row: str) -> str:
    name, *cells = row.strip("| ").split(" | ")
    return f"| {' | '.join([NAMES[name], *cells])} |"
