# ruff: noqa: INP001 - scripts, not a package
"""Plain vLLM against prefill and decode on separate GPUs, on one machine without containers: `python benchmarks/gpu start|run|stop`.

Every engine of the plan is started once; topologies then differ only in which engines a proxy admits, so that minutes on a rented
machine go into measuring rather than into loading weights. `run` skips what already lies in the output folder and ends before its
time is up, so that it can be called again. `--simulated` rehearses all of it without a GPU.
"""

import argparse
import sys
import time
from pathlib import Path

from engines import Engines
from plan import read
from runs import DISCOVERY, Runs

HERE = Path(__file__).parent


def main() -> int:
    """Exit status 0 if everything asked for was done, 1 if an engine died, 3 if the time was up before."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu", description=__doc__)
    parser.add_argument("verb", choices=["start", "run", "stop"])
    parser.add_argument("--plan", type=Path, default=HERE / "h200-x4.toml", metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("compare-work"), help="logs, model and process ids")
    parser.add_argument("--out", type=Path, default=Path("compare-results"), help="run folders")
    parser.add_argument("--simulated", action="store_true", help="simulated engines in place of vLLM")
    parser.add_argument("--sim-profile", default="h200-llama3-8b", help="of simulated engines")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run that would end later than this")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TOPOLOGY", help="run these alone, in the plan's order"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="in place of the plan's")
    parser.add_argument("--faster", type=float, default=1.0, help="divide all durations by this, to rehearse")
    parser.add_argument("--clients", type=int, default=1, help="processes of the load generator")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = read(options.plan)
    engines = Engines(
        plan=plan,
        work=options.work,
        discovery=DISCOVERY,
        simulated=options.simulated,
        sim_profile=options.sim_profile,
    )
    if options.verb == "start":
        return 0 if engines.start() else 1
    if options.verb == "stop":
        engines.stop()
        return 0
    ends = time.monotonic() + options.seconds
    runs = Runs(
        plan=plan.part(options.only, options.seeds),
        work=options.work,
        out=options.out,
        ends=ends,
        simulated=options.simulated,
        faster=options.faster,
        clients=options.clients,
    )
    return 0 if runs.all() else 3


if __name__ == "__main__":
    sys.exit(main())
