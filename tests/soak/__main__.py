"""`make soak`: the proxy under random faults and misbehaving clients for ten minutes; ARGS="--seconds 60" for less."""

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.soak import Plan, soak

from pd_contracts.names import Connector


def main() -> int:
    """Soak and print a table; exit status 1 with the reasons if something that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Plan()
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--clients", type=int, default=default.clients, help="requests at once")
    parser.add_argument("--prefills", type=int, default=default.prefills)
    parser.add_argument("--decodes", type=int, default=default.decodes)
    parser.add_argument("--seed", type=int, default=default.seed, help="of faults, requests and clients' manners")
    parser.add_argument("--connector", type=Connector, default=default.connector, choices=list(Connector))
    parser.add_argument(
        "--combined", type=int, default=default.combined, help="that do both, under ROUTING=adaptive, instead of those"
    )
    parser.add_argument("--migrate", choices=["on", "off"], default=default.migrate)
    parser.add_argument(
        "--healthy-s", type=float, default=default.healthy_s, help="mean time of an engine between faults"
    )
    parser.add_argument("--faulty-s", type=float, default=default.faulty_s, help="mean time of a fault")
    parser.add_argument("--pause-s", type=float, default=default.pause_s, help="mean time between a client's requests")
    outcome = asyncio.run(soak(Plan(**vars(parser.parse_args()))))
    for name, value in outcome.table():
        print(f"{name:<40}{value:>24}")
    complaints = outcome.complaints()
    for complaint in complaints:
        print(f"FAILED: {complaint}")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
