"""Whether the client keeps up while the run goes on. As in the verdict, more than one in a hundred late means a late p99."""

from typing import Final

from pd_contracts.records import ClientHealth
from pd_loadgen.live.processes.messages import Tally
from pd_loadgen.verdict.client_health import MOST_MERGED

GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
_MOST_LATE: Final = 0.01


def light(tally: Tally, limit_ms: float, client: ClientHealth | None) -> tuple[str, str]:
    """Colour and sentence; of the verdict, once there is one."""
    if client is not None:
        sent, looked = client.dispatch_lag_ms.get("p99", 0.0), client.receive_lag_ms.get("p99", 0.0)
        in_time = f"client in time: p99 {sent:.2f} ms late in sending, {looked:.2f} ms in reading"
        return (GREEN, in_time) if client.valid else (RED, f"INVALID: {client.remedy}")
    if not tally.started:
        return GREY, "nothing sent yet"
    if tally.late > tally.started * _MOST_LATE:
        return (
            RED,
            f"{tally.late} of {tally.started} requests left more than {limit_ms:g} ms late: this run will be INVALID",
        )
    stamped = tally.kernel and tally.merged <= tally.chunks * MOST_MERGED
    late_reads = tally.kernel and tally.late_reads > tally.reads * _MOST_LATE
    late_looks = not stamped and tally.late_looks > tally.looks * _MOST_LATE
    if not late_reads and not late_looks:
        return GREEN, "client in time"
    if stamped:
        return AMBER, f"reads are more than {limit_ms:g} ms late; times are the kernel's and stay right"
    return RED, f"reads are more than {limit_ms:g} ms late: this run will be INVALID"
