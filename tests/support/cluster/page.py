"""Writes docs/kubernetes.md: the table of what clients saw, and its conclusions."""

from collections.abc import Iterable, Sequence
from typing import Final

from support.chart import ROOT
from support.cluster.load import CLIENTS

PAGE: Final = ROOT / "docs/kubernetes.md"
HEAD: Final = f"""# What clients see when something happens to a release

`python docs/write_kubernetes.py` wrote this page from runs on one real Kubernetes node ([tests/cluster](../tests/cluster)).
Two prefill and two decode engines, simulated and with P2pConnector, run in separate pods, with one proxy unless the first column says two.
{CLIENTS} clients send requests without pause; an answer takes up to 3 s.
Every answer is compared with the model's answer before the change.
The rows with two proxies come from the same release with `proxy.replicas: 2`.
A range gives the lowest and the highest number of several runs.
`make cluster` repeats these changes and fails if a request is lost that could have been saved.

- **Failed**: requests in progress that ended in an error: an event in a stream, otherwise status 504, or 502 if it was too late for another attempt (`proxy.retryBudgetSeconds`).
  This happens only if a decode engine dies or hangs.
- **Turned away**: attempts that no proxy accepted, because none could be reached, or it was stopping (503).
  Each client tries again every 50 ms, so the number shows how long this lasted.
  No request was lost.
- **Cut**: connections to a proxy that was killed, which ended before or during the answer.
- **Lost**: all other requests without a correct answer.
- **KV left**: requests whose KV the engines still hold afterwards.

| what happens | answered | failed | turned away | cut | lost | KV left |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL: Final = """
What we learned:

- **With one proxy, the service pauses.** Between the old proxy's last request and the new one's first there is a gap: the old one drains; the new one starts, receives the engines' pings and checks each pair.
  Clients must retry after "connection refused" and 503, and need a connect timeout: while a service has no endpoint, a node refuses only a few connections per second and drops the others.
- **With two proxies, it does not.** One serves while the other is deleted, replaced or moved to another node, and draining a node leaves one of them.
  If a proxy's process dies, its connections are cut; it refuses new ones until Kubernetes takes it out of the service.
- **After a deletion, two proxies run for a while.** After `kubectl delete pod` or an eviction, the new proxy starts while the old one drains; an upgrade starts the new one only after the old one has ended.
- **Draining a node respects the PodDisruptionBudgets.** With two engines of a role, one is moved, and the other stays until the first is ready elsewhere.
  If there is no other node, `kubectl drain` waits until its timeout.
  Meanwhile the service continues with half of its engines; a single proxy on that node makes it pause.
- **A missing image stops an update at the first engine.** `helm rollback` is enough to repair it.
  A single proxy's old pod is removed before Kubernetes pulls the new image, so the service pauses.
- **preStop loses no request.** Engines and proxy stop within their grace period; requests that take longer than `engine.drainSeconds` end with an error event.
- **Busy nodes start Python slowly.** Proxy and monitor therefore have start-up probes: without them, the liveness probe killed a proxy that was still starting.
- **A new pod has its predecessor's name.** Its address is another one, so the proxy checks it like a new engine; in `/stats` it takes the name of the one that is lost (`prefill-0` again).
  An engine that nobody follows, such as one that was scaled away, is listed as lost for ten minutes.
  A container that restarts in its pod keeps its address and name.
- **A new proxy knows no engines.** For some seconds it answers "unknown" to engines that ask whether they are admitted.
  They keep the previous proxy's answer; otherwise all engines would become unready at once.
"""


def rows(printed: str, names: Iterable[str]) -> list[str]:
    """The table's rows among what `make cluster ARGS=-rP` printed, the last of each name.

    Raises:
        ValueError: if a name has none.
    """
    lines = printed.splitlines()
    found = {name: [line for line in lines if line.startswith(f"| {name} | ")] for name in names}
    if missing := [name for name, its in found.items() if not its]:
        msg = f"no row of: {'; '.join(missing)}"
        raise ValueError(msg)
    return [its[-1] for its in found.values()]


def combined(runs: Sequence[Sequence[str]]) -> list[str]:
    """One row for each name, of the rows of several runs, or of a page with ranges: ranges where they differ."""
    return [_combined([_cells(row) for row in same]) for same in zip(*runs, strict=True)]


def _combined(rows: Sequence[list[str]]) -> str:
    names, *columns = zip(*rows, strict=True)
    return f"| {' | '.join([names[0], *map(_range, columns)])} |"


def _cells(row: str) -> list[str]:
    return row.strip("| ").split(" | ")


def _range(numbers: Sequence[str]) -> str:
    known = [int(part) for number in numbers for part in number.split("–")]
    least, most = min(known), max(known)
    return str(least) if least == most else f"{least}–{most}"


def page(rows: Sequence[str]) -> str:
    """docs/kubernetes.md."""
    return HEAD + "\n".join(rows) + "\n" + TAIL
