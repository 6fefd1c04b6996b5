# ruff: noqa: INP001 - scripts, not a package; the connector is found by its path
"""Benchmarks of what P2pConnector costs.

    python benchmarks/connector price MODEL [--gpus 0,0] [--lengths 512,2048,4096]    one stream, each order, against plain
    python benchmarks/connector load MODEL --gpus 0,1 [--rates 10,20,30]              the same arrivals on two GPUs: plain, and one prefill and one decode
    python benchmarks/connector transports                                            pages from process to process, each way that this machine has
    python benchmarks/connector page docs/results/h200-p2p                            a results page's tables from its data

`price` needs vLLM in the Python that runs it. MODEL may be a shape without weights (`benchmarks/gpu/shape.py`) with `--dummy`.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import load
import page
import price
import transports
from engines import NixlPair, Pair, wait

# The ports of the pair of --against.
AGAINST = (31280, 31290)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/connector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("price")
    engines(one)
    one.add_argument("--lengths", default="512,2048,4096")
    one.add_argument("--orders", help="commas between them; all of them if left out")
    one.add_argument("--repeats", type=int, default=12)
    one.add_argument(
        "--stop-after", type=float, default=float("inf"), help="begin no repetition so many seconds after the start"
    )
    one.add_argument("--tokens", type=int, default=24)
    one.add_argument(
        "--proxy", action="store_true", help="ask through pdstack's proxy, too; needs what the proxy imports"
    )
    one.add_argument(
        "--nixl", action="store_true", help="also two engines with vLLM's NixlConnector; needs its package nixl"
    )
    one.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a second pair on the same GPUs with this instead, or beside, what --setting says",
    )
    one.add_argument("--also-load", action="store_true", help="with the same engines, then do what `load` does")
    three = commands.add_parser("load")
    engines(three)
    for command, orders in ((one, "--load-orders"), (three, "--orders")):
        command.add_argument("--rates", default="10,20,30", help="requests per second, per GPU")
        command.add_argument("--shapes", default="512/64", help="tokens in and out")
        command.add_argument("--seconds", type=float, default=30, help="of each point")
        command.add_argument(orders, dest="load_orders", default="plain,decode-first,announced")
    two = commands.add_parser("transports")
    transports.options(two)
    commands.add_parser("page").add_argument("folder", type=Path)
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end], argparse.Namespace(engine_arguments=arguments[end + 1 :]))
    if options.command == "page":
        for name in page.LANGUAGES:
            (options.folder / name).write_text(page.written(options.folder / name), encoding="utf-8")
    elif options.command == "transports":
        transports.run(options)
    else:
        if options.command == "price":
            options.orders = chosen_orders(parser, options)
        measure(options)


def chosen_orders(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    able = [*price.ORDERS, *(price.PROXIED if options.proxy else ()), *(price.NIXL if options.nixl else ())]
    orders = options.orders.split(",") if options.orders else able
    if unknown := [order for order in orders if order not in able]:
        parser.error(f"--orders {unknown[0]}: not one of {', '.join(able)} (proxied ones need --proxy, NIXL's --nixl)")
    return orders


def engines(parser: argparse.ArgumentParser) -> None:
    """Options of commands that start engines."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--gpus", default="0,0", help="of prefill and decode")
    parser.add_argument("--vocabulary", type=int, default=120_000)
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=JSON", help="of the connector")
    parser.add_argument("--dummy", action="store_true", help="weights of no meaning")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/connector-price"), help="for logs and traces")  # noqa: S108
    parser.add_argument("--out", type=Path, help="folder for what was measured")
    parser.add_argument("--go", type=Path, help="measure when this file exists; the engines start before")
    parser.add_argument("--start-within", type=float, default=900, help="seconds until all engines answer")
    parser.epilog = "What follows -- is passed on to vLLM."


def settings_of(items: list[str]) -> dict[str, Any]:
    return {name: json.loads(value) for name, _, value in (item.partition("=") for item in items)}


def measure(options: argparse.Namespace) -> None:
    """Start the engines, measure, stop them."""
    began = time.monotonic()
    settings = settings_of(options.setting)
    arguments = [*options.engine_arguments, *(["--load-format", "dummy"] if options.dummy else [])]
    gpus = (options.gpus.split(",")[0], options.gpus.split(",")[-1])
    pair = Pair(options.model, options.folder, gpus, arguments, settings, trace=True)
    against, nixl = None, None
    if options.command == "price" and options.against:
        other = settings | settings_of(options.against)
        against = Pair(options.model, options.folder / "against", gpus, arguments, other, ports=AGAINST, trace=True)
        print(f"given: {json.dumps(settings)}; against: {json.dumps(other)}", flush=True)
    if options.command == "price" and options.nixl:
        nixl = NixlPair(options.model, options.folder / "nixl", gpus, arguments)
    pairs = [one for one in (pair, against, nixl) if one is not None]
    for path in (path for one in pairs for path in one.traces()):
        path.unlink(missing_ok=True)
    try:
        for one in pairs:
            one.start()
        print(f"ready after {wait(pairs, options.start_within):.0f} s", flush=True)
        while options.go is not None and not options.go.exists():
            time.sleep(0.1)
        if options.command == "price":
            measure_price(pair, against, nixl, options, began + options.stop_after)
        if options.command == "load" or options.also_load:
            measure_load(pair, options)
    finally:
        for one in pairs:
            one.stop()


def measure_price(pair: Pair, against: Pair | None, nixl: Pair | None, options: argparse.Namespace, end: float) -> None:
    from front import Front, served_version  # noqa: PLC0415  needs pyzmq, which `transports` does without

    lengths = [int(length) for length in options.lengths.split(",")]
    plan = price.Plan(options.orders, lengths, options.repeats, end, options.tokens, options.vocabulary)
    asked = {"given": pair} | ({"against": against} if against is not None else {})
    fronts = {name: Front(one, served_version(one)) for name, one in asked.items()} if options.proxy else {}
    try:
        proxies = {name: front.start() for name, front in fronts.items()}
        sides = {
            name: price.Side(one, proxies.get(name, {}), nixl if one is pair else None) for name, one in asked.items()
        }
        price.run(sides, plan, out=options.out)
    finally:
        for front in fronts.values():
            front.stop()


def measure_load(pair: Pair, options: argparse.Namespace) -> None:
    shapes = [tuple(int(part) for part in shape.split("/")) for shape in options.shapes.split(",")]
    load.run(
        pair,
        options.load_orders.split(","),
        shapes=[(shape[0], shape[1]) for shape in shapes],
        rates=[float(rate) for rate in options.rates.split(",")],
        seconds=options.seconds,
        vocabulary=options.vocabulary,
        out=options.out / "load.json" if options.out else None,
    )


if __name__ == "__main__":
    main()
