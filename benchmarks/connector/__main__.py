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

sys.path.insert(0, str(Path(__file__).parent))

import load
import page
import price
import transports
from engines import NixlPair, Pair


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/connector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("price")
    engines(one)
    one.add_argument("--lengths", default="512,2048,4096")
    one.add_argument("--repeats", type=int, default=12)
    one.add_argument("--tokens", type=int, default=24)
    one.add_argument(
        "--proxy", action="store_true", help="ask through pdstack's proxy, too; needs what the proxy imports"
    )
    one.add_argument(
        "--nixl", action="store_true", help="also two engines with vLLM's NixlConnector; needs its package nixl"
    )
    one.add_argument("--also-load", action="store_true", help="with the same engines, then do what `load` does")
    three = commands.add_parser("load")
    engines(three)
    for command in (one, three):
        command.add_argument("--rates", default="10,20,30", help="requests per second, per GPU")
        command.add_argument("--shapes", default="512/64", help="tokens in and out")
        command.add_argument("--seconds", type=float, default=30, help="of each point")
        command.add_argument("--orders", default="plain,decode-first,announced")
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
        measure(options)


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
    parser.epilog = "What follows -- is passed on to vLLM."


def measure(options: argparse.Namespace) -> None:
    """Start a pair, measure, stop it."""
    settings = {name: json.loads(value) for name, _, value in (item.partition("=") for item in options.setting)}
    arguments = [*options.engine_arguments, *(["--load-format", "dummy"] if options.dummy else [])]
    gpus = tuple(options.gpus.split(","))
    pair = Pair(options.model, options.folder, (gpus[0], gpus[-1]), arguments, settings, trace=True)
    nixl = None
    if options.command == "price" and options.nixl:
        nixl = NixlPair(options.model, options.folder / "nixl", (gpus[0], gpus[-1]), arguments)
    for path in pair.traces():
        path.unlink(missing_ok=True)
    try:
        pair.start()
        if nixl is not None:
            nixl.start()
            nixl.wait()
        print(f"ready after {pair.wait():.0f} s", flush=True)
        while options.go is not None and not options.go.exists():
            time.sleep(0.1)
        if options.command == "price":
            measure_price(pair, nixl, options)
        if options.command == "load" or options.also_load:
            measure_load(pair, options)
    finally:
        pair.stop()
        if nixl is not None:
            nixl.stop()


def measure_price(pair: Pair, nixl: Pair | None, options: argparse.Namespace) -> None:
    from front import Front, served_version  # noqa: PLC0415  needs pyzmq, which `transports` does without

    lengths = [int(length) for length in options.lengths.split(",")]
    out = options.out / "price.json" if options.out else None
    front = Front(pair, served_version(pair)) if options.proxy else None
    plan = price.Plan(lengths, options.repeats, options.tokens, options.vocabulary)
    try:
        price.run(pair, plan, out=out, proxies=front.start() if front is not None else None, nixl=nixl)
    finally:
        if front is not None:
            front.stop()


def measure_load(pair: Pair, options: argparse.Namespace) -> None:
    shapes = [tuple(int(part) for part in shape.split("/")) for shape in options.shapes.split(",")]
    load.run(
        pair,
        options.orders.split(","),
        shapes=[(shape[0], shape[1]) for shape in shapes],
        rates=[float(rate) for rate in options.rates.split(",")],
        seconds=options.seconds,
        vocabulary=options.vocabulary,
        out=options.out / "load.json" if options.out else None,
    )


if __name__ == "__main__":
    main()
