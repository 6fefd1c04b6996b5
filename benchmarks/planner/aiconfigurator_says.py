# ruff: noqa: INP001  a script
"""aiconfigurator's predictions for the published deployments, as JSON. Run it with aiconfigurator's own Python, which needs nothing of pdstack.

For each deployment the highest rate per GPU over batch sizes at which its TTFT and TPOT are within the limits. It knows no connector and no queue.
"""

import json
import logging
import sys
from typing import Any

from aiconfigurator.cli.api import cli_estimate

MODEL, SYSTEM = "meta-llama/Meta-Llama-3.1-8B", "h200_sxm"
# Prompt and answer tokens; TTFT and TPOT in milliseconds.
LOADS = (((512, 64), (200.0, 15.0)), ((2048, 128), (500.0, 15.0)))
BATCHES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
SHAPES = ((0, 1), (1, 1), (1, 3), (2, 2), (3, 1))


def carried(shape: tuple[int, int], lengths: tuple[int, int], limits: tuple[float, float]) -> float:
    """Requests per second per GPU."""
    prefills, others = shape
    best = 0.0
    for batch in BATCHES:
        common: dict[str, Any] = {"backend_name": "vllm", "isl": lengths[0], "osl": lengths[1], "tp_size": 1}
        if prefills:
            common |= {
                "mode": "disagg",
                "prefill_batch_size": 1,
                "prefill_num_workers": prefills,
                "decode_batch_size": batch,
                "decode_num_workers": others,
            }
        else:
            common |= {"mode": "agg", "batch_size": batch}
        said = cli_estimate(MODEL, SYSTEM, **common)
        if said.ttft <= limits[0] and said.tpot <= limits[1]:
            best = max(best, said.raw["seq/s"] / (prefills + others))
    return best


def main() -> None:
    logging.disable(logging.WARNING)
    found = {}
    for shape in SHAPES:
        for lengths, limits in LOADS:
            name = f"{shape[0]}P{shape[1]}D" if shape[0] else "plain"
            found[f"{name} {lengths[0]:,} → {lengths[1]:,}"] = round(carried(shape, lengths, limits), 2)
    json.dump(found, sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
