# ruff: noqa: INP001  a script
"""`python benchmarks/planner`: accuracy and speed of pd-plan.

python benchmarks/planner accuracy                               the tables of docs/planning.md, from the condensed runs
python benchmarks/planner condense                               the condensed runs and two profiles, from the published records
python benchmarks/planner profile                                the shipped profile and docs/results/h200/calibration.md, from the records
python benchmarks/planner speed                                  CPU seconds, beside the oracle
python benchmarks/planner aiconfigurator --python other/bin/python
    where other/bin/pip install aiconfigurator==0.12.0 has run: what it says, kept for the tables
"""

import argparse
import subprocess
from pathlib import Path

import accuracy
import records
import speed

from pd_planner.des.compiled import COMPILED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "condense", "profile", "speed", "aiconfigurator"))
    parser.add_argument("--python", type=Path, help="the interpreter that has aiconfigurator")
    options = parser.parse_args()
    if options.what == "accuracy":
        print("\n".join(accuracy.tables()))
    elif options.what == "condense":
        records.condense()
    elif options.what == "profile":
        records.write_profile()
    elif options.what == "speed":
        print(f"one core, {'numba' if COMPILED else 'plain Python'}")
        for row in speed.rows():
            print(" | ".join(row))
    elif options.python is None:
        parser.error("aiconfigurator needs --python")
    else:
        script = Path(__file__).with_name("aiconfigurator_says.py")
        done = subprocess.run([options.python, script], stdout=subprocess.PIPE, check=True)
        accuracy.OTHER.write_bytes(done.stdout)


if __name__ == "__main__":
    main()
