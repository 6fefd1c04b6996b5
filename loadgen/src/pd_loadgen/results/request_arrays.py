"""The arrays of `vllm bench serve --save-detailed`: one entry per request, in the order of the schedule, in seconds. Pure.

vLLM counts from the actual send. A failed request has zeros, an empty ITL list and its message, as there; the generated texts are
not kept, so they are empty.
"""

from collections.abc import Sequence
from typing import Any

from pd_contracts import latency
from pd_contracts.records import RequestRecord


def arrays(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The arrays of the window's requests."""
    ordered = sorted(records, key=lambda record: record.index)
    served = [latency.succeeded(record) for record in ordered]
    return {
        "input_lens": [record.prompt_tokens or 0 for record in ordered],
        "output_lens": [
            (record.output_tokens or 0) if good else 0 for record, good in zip(ordered, served, strict=True)
        ],
        "ttfts": [
            (latency.ttft_from_send(record) or 0.0) if good else 0.0
            for record, good in zip(ordered, served, strict=True)
        ],
        "itls": [latency.itl(record) if good else [] for record, good in zip(ordered, served, strict=True)],
        "start_times": [record.scheduled if record.sent is None else record.sent for record in ordered],
        "generated_texts": ["" for _ in ordered],
        "errors": [f"{record.error.kind}: {record.error.message}" if record.error else "" for record in ordered],
    }
