"""Writes docs/reliability.zh.md from docs/reliability.md, sentence by sentence and cell by cell; `--check` only says whether it is up to date."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ENGLISH: Final = Path(__file__).with_name("reliability.md")
CHINESE: Final = Path(__file__).with_name("reliability.zh.md")

CELLS: Final = {
    "engines": "引擎",
    "KV by": "KV 经由",
    "at": "故障在",
    "the engine": "引擎的故障",
    "clients get": "客户端得到",
    "tried again": "重试",
    "the engine is meanwhile": "期间引擎的状态",
    "KV left forever": "永久残留的 KV",
    "what brings it back": "恢复方式",
    "---": "---",
    "nothing": "不传输",
    "2 combined": "2 个普通引擎",
    "3 combined, ROUTING=adaptive": "3 个普通引擎，ROUTING=adaptive",
    "2P2D, PROXY_WORKERS=2": "2P2D，PROXY_WORKERS=2",
    "2P2D, MIGRATE=on": "2P2D，MIGRATE=on",
    "resets connections": "重置连接",
    "answers 500": "返回 500",
    "stalls before the first token": "在首 token 前停住",
    "stalls after the first token": "在首 token 后停住",
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
    "none": "无",
    "the end of the fault": "故障结束",
    "its restart": "它的重启",
    "what restarts": "重启什么",
    "told by an error event": "收到错误事件",
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
    "Written by `python docs/write_reliability.py` from runs of the fault matrix: simulated engines (real KV bytes, kept in books), one of which is faulty while eight requests come at once, streamed and not streamed.": "本页由 `python docs/write_reliability.py` 根据故障矩阵的运行写成：模拟引擎（真实的 KV 字节，逐笔记账），其中一个有故障，同时到来八个请求，流式和非流式都有。",
    "`tests/integration/test_proxy_matrix.py` runs the same and fails if a promise or this page is no longer true.": "`tests/integration/test_proxy_matrix.py` 运行同样的内容；只要某项保证或本页不再成立，测试就会失败。",
    "No client waits forever, gets an answer that is cut off without an error, or a 200 with an empty body.": "没有客户端会永远等待，会得到被截断却没有错误的回答，或者得到正文为空的 200。",
    "This holds for whatever an engine sends, in any pieces and with any pauses; `tests/integration/test_proxy_endless.py` draws such answers at random.": "无论引擎发送什么、怎样切分、怎样停顿，都是如此；`tests/integration/test_proxy_endless.py` 随机生成这样的回答。",
    "These settings end the wait: PREFILL_TIMEOUT_S; DECODE_STALL_TIMEOUT_S if none of an engine's answers moves (comments do not count); GIVE_UP_S if others of its answers move; QUEUE_TIMEOUT_S if no engine can continue a stream; MAX_ANSWER_BYTES.": "这些设置使等待结束：PREFILL_TIMEOUT_S；某个引擎的所有回答都不再前进时（注释不算）为 DECODE_STALL_TIMEOUT_S；它的其他回答仍在前进时为 GIVE_UP_S；没有引擎能接续一个流时为 QUEUE_TIMEOUT_S；以及 MAX_ANSWER_BYTES。",
    "- An error event comes only after the first byte, when a second attempt could repeat what the client has already read.": "- 只有在首字节之后才会出现错误事件，因为那时重试可能重复客户端已经读到的内容。",
    "- P2pConnector leaves nothing behind: what decode lost, refused or never got is computed again there, and a prefill whose client has left is ended.": "- P2pConnector 什么都不残留：decode 丢失、拒绝或没有收到的 KV 由它自己重新计算，客户端已离开的 prefill 会被终止。",
    "  A prefill that answers too late is ended three seconds after PREFILL_TIMEOUT_S; until then it is how the watchdog notices that the engine stands still.": "  答复太迟的 prefill 在 PREFILL_TIMEOUT_S 之后三秒被终止；在那之前，看门狗靠它发现引擎停住了。",
    "  The next three points are about vLLM's own connectors.": "  下面三点讲的是 vLLM 自带的 connector。",
    "- Decode that breaks off or stands still before its first byte may still have the KV of the request, or may have used it up, and asking a P2pNccl decode for KV that is gone makes it stand still forever.": "- 在首字节之前中断或停住的 decode，可能还留着这个请求的 KV，也可能已经用掉；而向 P2pNccl 的 decode 索取已经不在的 KV，会使它永远停住。",
    "  So nothing is asked until it serves again; then a short prompt's KV is pushed under the same id, which takes the old one's place, and one token uses it up.": "  所以在它恢复服务之前什么都不问；之后用同一个 id 推送一个短提示词的 KV，取代旧的 KV，再生成一个 token 把它用掉。",
    "  (The simulators behave here as vLLM 0.23's connector does by its source; on GPUs this has not been tried.)": "  （模拟器在这一点上按 vLLM 0.23 的 connector 源码行事；在 GPU 上没有试过。）",
    "- Decode that loses acknowledged KV stands still as a whole, while its health checks and pings still succeed.": "- 丢失了已确认 KV 的 decode 会整个停住，而健康检查和 ping 仍然正常。",
    "  The proxy sees that no stream moves, tells the clients or tries again elsewhere, sends that engine no more requests, and pushes once more the KV that it may lack.": "  代理发现没有一个流在前进，就告知客户端或换别处重试，不再向这个引擎发送请求，并再次推送它可能缺少的 KV。",
    "- What no proxy can avoid: KV at a P2pNccl decode that never serves again goes only with its process, and so does what was owed when the proxy itself was killed, because only the proxy knew the ids.": "- 任何代理都无法避免的是：再也不恢复服务的 P2pNccl decode 上的 KV 只会随进程消失；代理自己被杀掉时尚未清理的 KV 也一样，因为只有代理知道那些 id。",
    "  A decode whose KV listener has died accepts no KV any more.": "  KV 监听线程已经退出的 decode 不再接收任何 KV。",
    "- With PROXY_WORKERS above 1, a worker that is killed cuts its own clients off, and no others.": "- PROXY_WORKERS 大于 1 时，被杀掉的工作进程只会断开它自己的客户端。",
    "  The KV that it had sent out is listed in memory that outlives it.": "  它发出的 KV 记录在比它活得更久的内存里。",
    "  The parent has this KV consumed, like any other KV that may still be at an engine.": "  父进程会让引擎消耗掉这些 KV，就像处理其他可能仍留在引擎上的 KV 一样。",
    "  For a moment more than KV_IN_FLIGHT_BYTES may be on its way, because the bound does not count this KV.": "  因为上限不计入这些 KV，短时间内在途的 KV 可能超过 KV_IN_FLIGHT_BYTES。",
    "  KV that does not fit into the list stays at the decode: more than 4,096 hand-overs of one worker at once, or a request of more than some thirty prompts.": "  记录里放不下的 KV 会留在 decode 上：一个工作进程同时有 4096 次以上的交接，或者一个请求含有三十个以上的提示词。",
    "  If the parent is killed, its workers end with it, and it leaves the same KV behind as a proxy of one process.": "  父进程被杀掉时，工作进程随之结束，残留的 KV 与单进程代理相同。",
    "- KV for NixlConnector has a lease at prefill, whose end frees what nobody fetched.": "- NixlConnector 的 KV 在 prefill 上有租约，到期时释放没有被取走的部分。",
    "  ExampleConnector's is in files; the engines' images delete the old ones.": "  ExampleConnector 的 KV 在文件里；引擎镜像会删除旧文件。",
    "- An engine without memory for KV, or one that sends damaged KV, gives wrong answers without an error.": "- 没有显存放 KV 的引擎，或者发送损坏 KV 的引擎，会给出错误的回答而不报错。",
    "  No proxy can see that in one answer.": "  任何代理都无法从单个回答看出这一点。",
    "  The canary at admission finds it if it is so from the start, and `POST /admin/canary` finds it later; the pair then gets no more requests.": "  如果一开始就是这样，准入时的 canary 会发现；之后可以用 `POST /admin/canary` 检查；这一对引擎随后不再收到请求。",
    "- A prefill that stands still is not cancelled before GIVE_UP_S, because what it pushes later must be consumed.": "- 停住的 prefill 在 GIVE_UP_S 之前不会被取消，因为它之后推送的 KV 必须被消耗掉。",
    "  Its clients are served by another one.": "  它的客户端由另一个引擎服务。",
    "## Rolling restarts": "## 滚动重启",
    "Two prefills and two decodes under 8 clients that ask without pause (P2pConnector), replaced one after the other.": "两个 prefill 和两个 decode，8 个客户端不停地请求（P2pConnector），引擎一个接一个地被替换。",
    "Turned away are clients that found no proxy to talk to while there was only one and it restarted: no request of theirs was taken.": "“未被接受”指只有一个代理、它正在重启时找不到代理的客户端：它们的请求没有被接受过。",
}


class UntranslatedError(Exception):
    """A line or cell of the English page that has no translation here."""


def translated(english: str) -> str:
    """The page in Chinese.

    Raises:
        UntranslatedError: if something on it has no translation.
    """
    return "\n".join(_line(line) for line in english.split("\n"))


def _line(line: str) -> str:
    if line.startswith("|"):
        return f"| {' | '.join(_cells(line))} |"
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


def main() -> int:
    text = translated(ENGLISH.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--check"]:
        return 0 if CHINESE.read_text(encoding="utf-8") == text else 1
    CHINESE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
