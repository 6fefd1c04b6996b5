"""docs/kubernetes.md: the table of what clients saw, and what it taught."""

from collections.abc import Iterable, Sequence
from typing import Final

from support.chart import ROOT
from support.cluster.load import CLIENTS

PAGE: Final = ROOT / "docs/kubernetes.md"
HEAD: Final = f"""# What clients see when something happens to a release

Written by `python docs/write_kubernetes.py` on one real Kubernetes node ([tests/cluster](../tests/cluster)): two simulated prefill and two simulated decode engines in pods of their own, P2pConnector, one proxy unless the first column says two, {CLIENTS} clients that ask without pause for answers of up to 3 s.
Every answer is compared with what the model says when all is well.
The rows with two proxies come from the same release with `proxy.replicas: 2`.
A range gives the least and the most of several runs.
`make cluster` repeats it and fails if a request is lost that could be saved.

- **Failed**: requests in progress that ended in an error: an event in a stream, 504 for an answer in one piece.
  Only a decode that ends, or stands still, without a word takes them with it.
- **Turned away**: attempts that no proxy accepted, because there was none to connect to, or it was about to stop (503).
  Each client tries again every 50 ms, so their number tells how long this lasted; no request was lost by it.
- **Cut**: connections to a proxy that was killed: they ended before the answer, or in the middle of it.
- **Lost**: all other requests without a correct answer.

| what happens | answered | failed | turned away | cut | lost | KV left |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL: Final = """
What we learned:

- **One proxy is one pause.** Between the old proxy's last request and the new one's first there is a gap: the old one drains, the new one starts, hears its engines and tries each pair.
  Clients must try again on "connection refused" and 503, with a time limit for connecting: a node refuses only a few connections a second while a service has no endpoint, and drops the others.
- **Two proxies have no pause.** One serves while the other is deleted, replaced or moved to another node, and a node's drain leaves one of them.
  Of a proxy whose process dies, the connections are cut; new ones are refused there until Kubernetes takes it out of the service.
- **Upgrades replace the proxy, deletions double it.** After `kubectl delete pod` or an eviction its successor starts while the old one drains.
- **A node's drain respects the budgets.** With two engines of a role, one is moved and the other stays until the first is back; on the only node that is never, and `kubectl drain` waits until its time-out, while the service goes on with half its engines, or pauses if the proxy was on that node.
- **An image that is missing stops an update at its first engine**; `helm rollback` mends it without a further command.
  The proxy's pod is taken away before its new image is known to be there.
- **preStop costs time, not requests.** Engines and proxy end within their grace; what cannot end in `engine.drainSeconds` ends with an error event.
- **Busy nodes start Python slowly.** Proxy and monitor have start-up probes for that; before, liveness ended a proxy that was still starting.
- **A new pod is a new engine to the proxy.** It has another address, so another name in `/stats` (`prefill-2` after `prefill-0` was deleted); the one before is listed as lost for ten minutes.
  A container that starts again in its pod keeps address and name.
- **A new proxy knows no engines.** For some seconds it answers "unknown" to engines that ask whether they are admitted.
  They keep the previous proxy's answer; otherwise every engine would be unready at once.
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
    """One row for each name, of the rows of several runs: ranges where they differ."""
    return [_combined([_cells(row) for row in same]) for same in zip(*runs, strict=True)]


def _combined(rows: Sequence[list[str]]) -> str:
    names, *columns = zip(*rows, strict=True)
    return f"| {' | '.join([names[0], *map(_range, columns)])} |"


def _cells(row: str) -> list[str]:
    return row.strip("| ").split(" | ")


def _range(numbers: Sequence[str]) -> str:
    least, most = min(map(int, numbers)), max(map(int, numbers))
    return str(least) if least == most else f"{least}–{most}"


def page(rows: Sequence[str]) -> str:
    """docs/kubernetes.md."""
    return HEAD + "\n".join(rows) + "\n" + TAIL
