# ruff: noqa: INP001 - scripts, not a package
"""Writes the tables of a results page from its data, between `<!-- NAME -->` and `<!-- end -->`, in both languages."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_chinese
from price import p90

# The columns and their names for readers.
ORDERS = {
    "official": "prefill, then decode",
    "decode-first": "both asked at once",
    "hand-off": "hand-off",
    "announced": "hand-off, announced",
    "late": "decode chosen late",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def price(data: dict[str, Any]) -> str:
    """Time to the first token, and how much of it is above plain."""
    rows = []
    for length, orders in data.items():
        plain = orders["plain"]["ttft"]
        cells = [f"{orders[order]['ttft']:.1f} ({orders[order]['ttft'] - plain:+.1f})" for order in ORDERS]
        rows.append([f"{int(length):,}", f"{plain:.1f}", *cells])
    return table(["prompt tokens", "plain", *ORDERS.values()], rows)


def later_tokens(data: dict[str, Any]) -> str:
    """From token 1 to token 2, and the time of a token after that."""
    rows = [
        [
            f"{int(length):,}",
            *(f"{orders[order]['second']:.1f} / {orders[order]['tpot']:.2f}" for order in ("plain", *ORDERS)),
        ]
        for length, orders in data.items()
    ]
    return table(["prompt tokens", "plain", *ORDERS.values()], rows)


def proxied(data: dict[str, Any]) -> str:
    """Through pdstack's proxy, above plain vLLM behind the same proxy; what the proxy itself costs plain vLLM; and decode's first token."""
    rows = []
    for length, orders in data.items():
        direct, plain, pair, both = (orders[order] for order in ("plain", "proxied plain", "proxied", "decode-first"))
        rows.append(
            [
                f"{int(length):,}",
                f"{direct['ttft']:.1f}",
                f"{plain['ttft']:.1f} ({plain['ttft'] - direct['ttft']:+.1f})",
                f"{pair['ttft']:.1f} ({pair['ttft'] - plain['ttft']:+.1f})",
                f"{plain['second']:.1f} / {plain['tpot']:.2f}",
                f"{pair['second']:.1f} / {pair['tpot']:.2f}",
                f"{both['ttft']:.1f} ({both['ttft'] - direct['ttft']:+.1f})",
            ]
        )
    names = ["plain, no proxy", "plain, proxy", "1P1D, proxy", "plain's later tokens", "1P1D's later tokens"]
    return table(["prompt tokens", *names, "both asked at once, no proxy"], rows)


def kv_first(data: dict[str, Any]) -> str:
    """What is gained and lost where KV is copied before the token is sampled: each pair of engines above its own plain ones."""
    middle, rows = statistics.median, []
    for length, ways in data.items():

        def later(way: dict[str, Any], order: str, plain: str) -> str:
            return f"{middle(way[order]['ttfts']) - middle(way[plain]['ttfts']):+.1f}"

        for name, way in ways.items():
            rows.append(
                [
                    f"{int(length):,}, {name}",
                    f"{middle(way['decode-first']['token after KV']):+.1f}",
                    later(way, "decode-first", "plain"),
                    later(way, "proxied", "proxied plain"),
                    f"{middle(way['proxied']['seconds']):.1f}",
                ]
            )
    names = ["token after the KV", "both asked at once", "hand-off, proxy", "its token 2 after token 1"]
    return table(["ms", *names], rows)


def soon(data: dict[str, Any]) -> str:
    """What a step gains that begins before its KV is there: each pair of engines above its own plain ones."""
    middle, rows = statistics.median, []
    for length, ways in data.items():
        for name, way in ways.items():
            plain, both = middle(way["plain"]), middle(way["decode-first"])
            waited = f"{middle(way['waited']):.1f}" if way["waited"] else "–"
            done = f"{middle(way['KV to token']):.1f}"
            rows.append([f"{int(length):,}, {name}", f"{plain:.1f}", f"{both:.1f} ({both - plain:+.1f})", done, waited])
    names = ["plain", "both asked at once", "from complete KV to the token at the client", "the step waits for KV"]
    return table(["ms", *names], rows)


def hand_off(data: list[dict[str, Any]]) -> str:
    """What the same gains where prefill writes the first token; behind the proxy, each pair of engines above its own plain ones."""
    middle, rows = statistics.median, []
    for visit, (length, ways) in ((row["visit"], item) for row in data for item in row["lengths"].items()):
        cells = [
            [
                f"{middle(way['proxied']['ttfts']) - middle(way['proxied plain']['ttfts']):+.1f}",
                f"{middle(way['proxied']['seconds']):.1f} / {p90(way['proxied']['seconds']):.1f}",
                f"{middle(way['announced']['seconds']):.1f}",
            ]
            for way in (ways["after them"], ways["before them"])
        ]
        rows.append([f"{visit}, {int(length):,} tokens", *(cell for both in zip(*cells, strict=True) for cell in both)])
    names = ["token 1 above plain", "token 2 after token 1, p50 / p90", "the same, no proxy"]
    return table(["ms", *(f"{name}: {way}" for name in names for way in ("after", "before"))], rows)


def nixl(data: dict[str, dict[str, Any]]) -> str:
    """Time to the first token beside vLLM's NixlConnector, each above its own engines as plain ones; by what carried NIXL's KV."""
    rows = []
    for length, orders in data["cuda_ipc"].items():
        plain, other, over_tcp = orders["plain"]["ttft"], orders["nixl plain"]["ttft"], data["tcp"][length]
        rows.append(
            [
                f"{int(length):,}",
                f"{plain:.1f}",
                *(f"{orders[o]['ttft']:.1f} ({orders[o]['ttft'] - plain:+.1f})" for o in ("announced", "official")),
                f"{other:.1f}",
                f"{orders['nixl']['ttft']:.1f} ({orders['nixl']['ttft'] - other:+.1f})",
                f"{over_tcp['nixl']['ttft']:,.1f} ({over_tcp['nixl']['ttft'] - over_tcp['nixl plain']['ttft']:+,.1f})",
            ]
        )
    names = ["P2pConnector, hand-off", "P2pConnector, prefill, then decode", "NIXL's engines, plain"]
    return table(["prompt tokens", "plain", *names, "NixlConnector, cuda_ipc", "NixlConnector, TCP"], rows)


def visits(data: list[dict[str, Any]]) -> str:
    """How much later the first token of 1P1D comes than plain vLLM's behind the same proxy, on each visit to a GPU."""
    middle = statistics.median
    rows = [
        [
            f"{row['visit']}, {len(next(iter(row['lengths'].values()))['plain'])} requests each",
            *(f"{middle(both['1P1D']) - middle(both['plain']):+.1f}" for both in row["lengths"].values()),
        ]
        for row in data
    ]
    return table(["ms above plain", *(f"{int(length):,} tokens" for length in data[0]["lengths"])], rows)


def stages(data: dict[str, Any]) -> str:
    """Where the time goes when both are asked at once."""
    names = next(iter(data.values()))["decode-first"]["stages"]
    rows = [[name, *(f"{orders['decode-first']['stages'][name]:.2f}" for orders in data.values())] for name in names]
    return table(["ms", *(f"{int(length):,} tokens" for length in data)], rows)


def load(data: list[dict[str, Any]]) -> str:
    """The same arrivals on two GPUs."""
    names = {"plain": "plain, both GPUs", "decode-first": "1P1D, both asked at once", "announced": "1P1D, announced"}
    rows = [
        [
            f"{row['rate a GPU']:g}/s per GPU, {names[row['order']]}",
            *(" / ".join(f"{value:.1f}" for value in row[what]) for what in ("TTFT ms", "TPOT ms", "longest gap ms")),
            f"{row['requests']}, {row['failed']}",
        ]
        for row in data
    ]
    return table(
        ["512 → 64 tokens", "TTFT p50 / p90 / p99, ms", "TPOT, ms", "longest gap, ms", "requests, failed"], rows
    )


def busy_decode(data: list[dict[str, Any]]) -> str:
    """What transfers without a pause take away from a decode that multiplies matrices without a pause."""
    rows = []
    for row in data:
        if "products/s alone" not in row:
            continue
        alone, beside = row["products/s alone"], row["with transfers"]
        rows.append(
            [
                row["transport"],
                *(f"{row[name]:.1f}" for name in ("ready ms", "loaded ms", "busy ready ms")),
                f"{alone:,.0f} → {beside:,.0f} ({100 * (beside / alone - 1):+.1f}%)",
            ]
        )
    return table(
        ["256 MiB", "there, ms", "in its blocks, ms", "there while decode is busy, ms", "decode's products/s"], rows
    )


def parity(data: list[dict[str, Any]]) -> str:
    """Outcomes of the parity tests, three a pair of engines, in their order."""
    rows = []
    for row in data:
        outcomes, pairs = row["outcomes"], row["pairs"]
        of = {pair: outcomes[3 * index : 3 * index + 3] for index, pair in enumerate(pairs)}
        whole = [pair for pair, found in of.items() if found == "..."]
        failed = [pair for pair, found in of.items() if "F" in found]
        rest = [pair for pair, found in of.items() if len(found) < 3]
        rows.append(
            [f"vLLM {row['vllm']}", f"{outcomes.count('.')} of {row['tests']}", *map(_listed, (whole, failed, rest))]
        )
    return table(["", "tests passed", "pairs that passed", "that failed", "not (wholly) run"], rows)


def moved(data: list[dict[str, Any]]) -> str:
    """Streams of a decode that was killed, beside what rounding does where nothing is killed."""
    names = {"exact": "sums in one order, batch-invariant", "pair": "vLLM's defaults"}
    columns = ("differ", "differ_undisturbed", "differ_when_a_plain_engine_goes_on")
    rows = [
        [
            names[row["kind"]],
            str(row["migrated"]),
            f"{row['whole']} of {row['streams']}",
            *(f"{row[name]['greedy']} + {row[name]['seeded']}" for name in columns),
            f"{row['longest_pause_s']:.2f} ({row['longest_pause_undisturbed_s']:.2f})",
        ]
        for row in data
        if row["what"] == "a decode killed under streams"
    ]
    return table(
        [
            "",
            "moved",
            "whole",
            "differ from the undisturbed run",
            "two undisturbed runs differ",
            "a plain engine that goes on differs",
            "longest pause (undisturbed), s",
        ],
        rows,
    )


def killed(data: list[dict[str, Any]]) -> str:
    """One kill a row; the proxy's counts are sums over all of them."""
    rows, before = [], next(row["migrated"] for row in data if row.get("kind") == "exact" and "migrated" in row)
    tried = 0
    for row in data:
        if row["what"] == "kill -9":
            equal = row["whole"] - len(row["parted"])
            counts = (row["migrations"] - before, row["retries"] - tried)
            before, tried = row["migrations"], row["retries"]
            times = f"{row['slowest_s']:.1f} ({row['slowest_undisturbed_s']:.1f})"
            role = "prefill" if "-p" in row["of"] else "decode"
            rows.append(
                [
                    f"{role} {row['of'][-1]}",
                    f"{row['killed_at']:,}",
                    f"{equal} of {row['answers']}",
                    *map(str, counts),
                    times,
                ]
            )
    return table(
        ["killed", "after so many tokens", "whole and equal", "moved", "tried again", "slowest (undisturbed), s"], rows
    )


def _listed(pairs: list[str]) -> str:
    return ", ".join(pairs) or "none"


TABLES: dict[str, tuple[Callable[[Any], str], str]] = {
    "price": (price, "price"),
    "later tokens": (later_tokens, "price"),
    "stages": (stages, "price"),
    "proxied": (proxied, "proxied"),
    "visits": (visits, "visits"),
    "KV first": (kv_first, "kv_first"),
    "soon": (soon, "soon"),
    "hand-off": (hand_off, "hand_off"),
    "nixl": (nixl, "nixl"),
    "load": (load, "load"),
    "busy decode": (busy_decode, "transports"),
    "parity": (parity, "parity"),
    "moved": (moved, "killed"),
    "killed": (killed, "killed"),
}


LANGUAGES: dict[str, Callable[[str], str]] = {"README.md": str, "README.zh.md": in_chinese.translated}


def written(page: Path) -> str:
    """The page, one of `LANGUAGES`, with its tables as the data beside it has them.

    Raises:
        ValueError: if it has no place, or several, for a table.
    """
    text = page.read_text(encoding="utf-8")
    for name, (make, source) in TABLES.items():
        made = make(json.loads((page.parent / "data" / f"{source}.json").read_text()))
        text = _put(text, name, LANGUAGES[page.name](made))
    return text


def _put(text: str, name: str, made: str) -> str:
    begin = f"<!-- {name} -->\n"
    if text.count(begin) != 1:
        msg = f"the page has {text.count(begin)} places for the table `{name}`"
        raise ValueError(msg)
    before, _, after = text.partition(begin)
    return f"{before}{begin}\n{made}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"
