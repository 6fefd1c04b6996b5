"""Writes docs/reliability.zh.md from docs/reliability.md, sentence by sentence and cell by cell; `--check` only says whether it is up to date."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chinese import UntranslatedError, by_lines, write

ENGLISH: Final = Path(__file__).with_name("reliability.md")

CELLS: Final = {
    "engines": "引擎",
    "KV by": "KV 经由",
    "at": "故障在",
    "the engine": "引擎的故障",
    "clients get": "客户端得到",
    "tried again": "重试",
    "the engine is meanwhile": "期间引擎的状态",
    "---": "---",
    "setting": "设置",
    "ends the wait if": "在什么情况下结束等待",
    "prefill does not answer": "prefill 没有回答",
    "none of an engine's answers makes progress (comments and events without output are no progress)": "一个引擎的所有回答都不再前进（注释和没有输出的事件不算前进）",
    "an answer makes no progress, although others of the same engine do": "一个回答不再前进，而同一引擎的其他回答仍在前进",
    "no engine can continue a stream": "没有引擎能接续一个流",
    "an answer that is not streamed has no end": "非流式回答没有尽头",
    "nothing": "不传输",
    "2 combined": "2 个普通引擎",
    "3 combined, ROUTING=adaptive": "3 个 combined 引擎，ROUTING=adaptive",
    "2P2D, PROXY_WORKERS=2": "2P2D，PROXY_WORKERS=2",
    "2P2D, MIGRATE=on": "2P2D，MIGRATE=on",
    "resets connections": "重置连接",
    "answers 500": "返回 500",
    "stalls before the first token": "在首 token 前停滞",
    "stalls after the first token": "在首 token 后停滞",
    "dies mid-stream": "在流中途崩溃",
    "stops pinging, but serves": "不再 ping，但仍在服务",
    "pings, but hangs": "仍在 ping，但挂起",
    "takes requests, runs none": "接受请求，但不运行",
    "is killed and restarts at its address": "被杀掉，并在原地址重启",
    "loses KV that it acknowledged": "丢失已确认收到的 KV",
    "takes KV slowly": "接收 KV 很慢",
    "has no memory for KV": "没有显存放 KV",
    "sends damaged KV": "发送损坏的 KV",
    "answered": "回答",
    "an error event": "错误事件",
    "an error status": "错误状态码",
    "answered or an error event": "回答或错误事件",
    "answered or a wrong answer": "回答或错误的回答",
    "an error status or an error event": "错误状态码或错误事件",
    "yes": "是",
    "no": "否",
    "if it was asked": "如果已经发给它",
    "what restarts": "重启什么",
    "ended by an error event": "以错误事件结束",
    "turned away": "未被接受",
    "lost": "丢失",
    "KV left": "残留的 KV",
    "both prefills, drained before": "两个 prefill，先排空",
    "both decodes, drained before": "两个 decode，先排空",
    "both prefills, by SIGTERM and the proxy not told": "两个 prefill，用 SIGTERM，不通知代理",
    "both decodes, by SIGTERM and the proxy not told": "两个 decode，用 SIGTERM，不通知代理",
    "the proxy, by SIGTERM": "代理，用 SIGTERM",
}
# A column whose words mean something else elsewhere.
STATES: Final = {
    "joining": "加入中（joining）",
    "ready": "就绪（ready）",
    "suspect": "可疑（suspect）",
    "lost": "失联（lost）",
}
STATE_COLUMN: Final = 6
SENTENCES: Final = {
    "# What the proxy promises when engines fail": "# 引擎出故障时，代理保证什么",
    "No client waits forever.": "没有客户端会永远等待。",
    "No client gets an answer that is cut off without an error, or a 200 with an empty body.": "没有客户端会得到被截断却没有报错的回答，也不会得到正文为空的 200。",
    "This holds whatever an engine sends, in any pieces and with any pauses (`tests/integration/test_proxy_endless.py` draws such answers at random).": "无论引擎发送什么、怎样切分、怎样停顿，都是如此（`tests/integration/test_proxy_endless.py` 随机生成这样的回答）。",
    "## Each fault": "## 每种故障",
    "The engines are simulated; they move real KV bytes and keep account of them.": "引擎是模拟的；它们传输真实的 KV 字节，并逐笔记账。",
    "One engine becomes faulty, then eight requests arrive at once (24 with `PROXY_WORKERS=2`), streamed and not streamed.": "先让一个引擎出故障，然后八个请求同时到达（`PROXY_WORKERS=2` 时为 24 个），流式和非流式都有。",
    '- *clients get*: "answered" is the whole and right answer.': "- *客户端得到*：“回答”指完整且正确的回答。",
    "  An error status comes before the first byte, an error event within a stream.": "  错误状态码出现在首字节之前，错误事件出现在流中。",
    "- *tried again*: whether the proxy sent requests that had failed to another engine.": "- *重试*：代理是否把失败的请求改发给另一个引擎。",
    "- *the engine is meanwhile*: its state in `/stats`.": "- *期间引擎的状态*：`/stats` 中显示的状态。",
    "In every row, the engine serves again without help, as soon as the fault ends or it has restarted.": "在每一行中，故障一结束或者引擎一重启，它就恢复服务，不需要人工处理。",
    "In every row, no KV is left behind in an engine's memory.": "在每一行中，引擎内存里都没有残留的 KV。",
    "`python docs/write_reliability.py` writes this page from such runs.": "`python docs/write_reliability.py` 根据这样的运行写出本页。",
    "`tests/integration/test_proxy_matrix.py` repeats them, and fails if a promise or this page is no longer true.": "`tests/integration/test_proxy_matrix.py` 重复这些运行；只要某项保证或本页不再成立，测试就会失败。",
    "## What the table does not show": "## 表里没有的",
    "With every connector:": "使用任何 connector 时：",
    "- An error event comes only after the first byte: a second attempt could repeat what the client has already read.": "- 只有在首字节之后才会出现错误事件：那时重试可能重复客户端已经读到的内容。",
    "- An event of a stream that begins like a JSON object and is none ends the stream with an error event, and the request counts as failed.": "- 如果流中的事件开头像 JSON 对象，实际却不是，这个流就以错误事件结束，请求计为失败。",
    "  If eight events in a row differ from their predecessor in more than their text, as with log probabilities or with usage in each event, the following ones are only checked for how they begin and end: to read them whole would cost about a quarter of all the work for an event.": "  如果连续八个事件与前一个事件的差别不只在文本（例如带 log probabilities，或每个事件都带 usage），之后的事件只检查开头和结尾：完整读取会让每个事件的开销增加约四分之一。",
    "  On `/v1/responses` and `/v1/messages`, whose events are numbered or named, only the first 32 events of a stream are read whole, for the same reason.": "  出于同样的原因，在 `/v1/responses` 和 `/v1/messages` 上（事件带编号或名称），只有流的前 32 个事件被完整读取。",
    "- If an engine closes an idle connection just as a request arrives on it, that is no fault of the engine: the request is tried again, by the same engine if there is no other.": "- 如果请求到达时引擎恰好关闭这条空闲连接，这不算引擎的故障：请求会重试；没有别的引擎时，仍由同一个引擎重试。",
    "- With MIGRATE=on, a greedy stream continues elsewhere with the tokens that its first engine would have written, apart from rounding.": "- MIGRATE=on 时，贪心采样（temperature 为 0）的流在别处接续，除舍入误差外，token 与原来的引擎会写出的相同。",
    "  A stream with a `seed` does so only where each token is drawn by seed and position alone.": "  带 `seed` 的流只有在每个 token 仅由种子和位置抽取时才会接续。",
    "  vLLM's V2 model runner draws like this (0.23 to 0.33, without speculative decoding); an engine with P2pConnector then has `pd_seeded_draws` in its metrics.": "  vLLM 的 V2 model runner 就是这样抽取的（0.23 到 0.33，不用推测解码）；这时使用 P2pConnector 的引擎在指标里有 `pd_seeded_draws`。",
    "  The engine that continues must have the same runner, version and precision.": "  接续的引擎必须有相同的 runner、版本和精度。",
    "  The V1 model runner, which vLLM has on CPUs, gives each request a generator whose state depends on the number of draws.": "  V1 model runner（vLLM 在 CPU 上用的就是它）给每个请求一个生成器，其状态取决于抽取的次数。",
    "  An engine that continues would start it anew and write another text, so such a stream ends with an error event.": "  接续的引擎会从头开始计数，写出另一段文本，所以这样的流以错误事件结束。",
    "  For the same reason, prefill writes the first token of an answer with a `seed` only if it draws as decode does.": "  出于同样的原因，只有当 prefill 的抽取方式与 decode 相同时，带 `seed` 的回答的首 token 才由 prefill 写出。",
    "  On an H200 with vLLM 0.33, streams with a seed continued token for token after `kill -9` of their engine, where rounding did not depend on the batch ([measured](results/h200-p2p/README.md#behind-the-proxy-with-engines-killed)).": "  在一块 H200 上用 vLLM 0.33，引擎被 `kill -9` 后，带种子的流逐 token 地接续，前提是舍入不取决于批次（[实测](results/h200-p2p/README.md#在代理后面引擎被杀)）。",
    "  That prefill writes the first token of such an answer has not been tried on GPUs.": "  由 prefill 写出这种回答的首 token，在 GPU 上还没有试过。",
    "- Damaged KV leads to wrong answers without an error, and so does a decode engine without memory for KV (with vLLM's own connectors).": "- 损坏的 KV 会带来错误的回答而不报错；使用 vLLM 自带的 connector 时，没有显存放 KV 的 decode 引擎也一样。",
    "  No proxy can see that in a single answer.": "  任何代理都无法从单个回答看出这一点。",
    "  If the fault is there from the start, the canary at admission finds it; later, `POST /admin/canary` finds it.": "  如果一开始就有这个故障，准入时的 canary 会发现它；之后可以用 `POST /admin/canary` 发现。",
    "  The pair then gets no more requests.": "  这一对引擎随后不再收到请求。",
    "- If a worker is killed (`PROXY_WORKERS` above 1), only its own clients lose their connections.": "- `PROXY_WORKERS` 大于 1 时，如果一个工作进程被杀掉，只有它自己的客户端会断开。",
    "  The KV that it had sent out is listed in memory that outlives it.": "  它发出的 KV 记录在共享内存里，进程结束后记录仍在。",
    "  The parent has this KV consumed, like any other KV that may still be at an engine.": "  父进程会让引擎消耗掉这些 KV，就像处理其他可能仍留在引擎上的 KV 一样。",
    "  For a moment more KV than `KV_IN_FLIGHT_BYTES` may be on its way, because this KV is not counted.": "  因为上限不计入这些 KV，短时间内在途的 KV 可能超过 `KV_IN_FLIGHT_BYTES`。",
    "  KV that does not fit into the list stays at the decode engine: that of more than 4,096 simultaneous hand-overs of one worker, or of a request with more than about thirty prompts.": "  记录里放不下的 KV 会留在 decode 引擎上：一个工作进程同时有超过 4096 次交接，或者一个请求含有大约三十个以上的提示词。",
    "  If the parent is killed, its workers end too, and the same KV is left behind as by a proxy with one process.": "  父进程被杀掉时，工作进程也随之结束，残留的 KV 与单进程代理相同。",
    "With P2pConnector nothing is left behind:": "使用 P2pConnector 时，什么都不会残留：",
    "- KV that decode lost, refused or never received is computed again there.": "- decode 丢失、拒绝或没有收到的 KV，由它自己重新计算。",
    "- Prefill is ended if its client has left.": "- 客户端离开后，对应的 prefill 会被终止。",
    "- A prefill that answers too late is ended three seconds after `PREFILL_TIMEOUT_S`.": "- 回答太迟的 prefill 在 `PREFILL_TIMEOUT_S` 之后三秒被终止。",
    "  Until then it shows the proxy whether the engine has stalled.": "  在那之前，代理靠它判断引擎是否已经停滞。",
    "With vLLM's own connectors:": "使用 vLLM 自带的 connector 时：",
    "- If decode breaks off or stalls before its first byte, it is unknown whether it has used the KV of the request.": "- 如果 decode 在首字节之前中断或停滞，就无法知道它是否已经用掉这个请求的 KV。",
    "  A P2pNccl decode engine that is asked for KV that is gone hangs forever.": "  向 P2pNccl 的 decode 引擎索取已经不在的 KV，会使它永远挂起。",
    "  So the proxy asks for nothing until the engine serves again.": "  所以在引擎恢复服务之前，代理什么都不索取。",
    "  Then it sends the KV of a short prompt under the same id, which replaces the old KV, and one token consumes it.": "  之后它用同一个 id 发送一个短提示词的 KV，取代旧的 KV，再生成一个 token 把它消耗掉。",
    "  (The simulators follow the source of vLLM 0.23's connector here; this has not been tried on GPUs.)": "  （模拟器在这一点上按 vLLM 0.23 的 connector 源码行事；在 GPU 上没有试过。）",
    "- A decode engine that loses acknowledged KV hangs as a whole, while its health checks and pings still succeed.": "- 丢失了已确认 KV 的 decode 引擎会整个挂起，而健康检查和 ping 仍然正常。",
    "  The proxy notices that none of its streams makes progress, and sends it no more requests.": "  代理发现它没有一个流在前进，就不再向它发送请求。",
    "  Clients get an error, or their requests are tried elsewhere.": "  客户端会得到错误，或者请求被换到别处重试。",
    "  The proxy then sends the KV that the engine may lack once more.": "  然后代理再次发送这个引擎可能缺少的 KV。",
    "- A prefill engine that stalls is not cancelled before `GIVE_UP_S`, because the KV that it sends later must be consumed.": "- 停滞的 prefill 引擎上的请求在 `GIVE_UP_S` 之前不会被取消，因为它之后发送的 KV 必须被消耗掉。",
    "  Another engine serves its clients.": "  它的客户端由另一个引擎服务。",
    "- Some KV at a P2pNccl decode engine goes only when its process ends: that of an engine that never serves again, and what was not consumed yet when the proxy itself was killed, because only the proxy knew the ids.": "- P2pNccl 的 decode 引擎上，有些 KV 只会随进程结束而消失：引擎再也不恢复服务时它的 KV，以及代理自己被杀掉时尚未消耗的 KV，因为只有代理知道那些 id。",
    "  No proxy can avoid this.": "  任何代理都无法避免这一点。",
    "  A decode engine whose KV listener has died accepts no KV any more.": "  KV 监听线程已经退出的 decode 引擎不再接收任何 KV。",
    "- KV for NixlConnector has a lease at prefill; when it ends, KV that nobody fetched is freed.": "- NixlConnector 的 KV 在 prefill 上有租约；到期时，没有被取走的 KV 会被释放。",
    "- ExampleConnector's KV is in files; the engine images delete old ones.": "- ExampleConnector 的 KV 在文件里；引擎镜像会删除旧文件。",
    "## Rolling restarts": "## 滚动重启",
    "8 clients send requests without pause to two prefill and two decode engines (P2pConnector), which are replaced one after the other.": "8 个客户端不停地向两个 prefill 引擎和两个 decode 引擎发送请求（P2pConnector），引擎一个接一个地被替换。",
    "*Turned away* counts attempts while the only proxy restarted: no proxy could be reached, so no request was lost.": "*未被接受*统计唯一的代理重启期间的尝试：那时没有可以连接的代理，所以没有请求丢失。",
}


def translated(english: str) -> str:
    """The page in Chinese.

    Raises:
        UntranslatedError: if something on it has no translation.
    """
    page: str = by_lines(english, _line, _cells)
    return page


def _line(line: str) -> str:
    if line and line not in SENTENCES:
        raise UntranslatedError(line)
    return SENTENCES.get(line, "")


def _cells(row: str) -> Iterator[str]:
    for column, cell in enumerate(row.strip("|").split("|")):
        text = cell.strip()
        words = STATES if column == STATE_COLUMN and text in STATES else CELLS
        if text not in words and " " in text:
            raise UntranslatedError(text)
        yield words.get(text, text)


if __name__ == "__main__":
    sys.exit(write(ENGLISH, translated))
