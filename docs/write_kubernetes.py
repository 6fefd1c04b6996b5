"""Writes docs/kubernetes.md, in both languages, from changes and accidents on a real node (`tests/support/cluster`).

It takes a quarter of an hour. python docs/write_kubernetes.py LOG… takes them from whole runs instead, whose output is in the logs:
`make cluster ARGS=-rP >LOG`. With docs/kubernetes.md among the logs, its ranges are kept and widened.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.cluster import images, page_zh
from support.cluster.changes import CHANGES, VALUES, run
from support.cluster.cluster import cluster, running
from support.cluster.page import PAGE, combined, page, rows
from support.cluster.release import Release


def main() -> None:
    logs = [Path(name).read_text() for name in sys.argv[1:]]
    found = combined([rows(log, CHANGES) for log in logs] or [_measured()])
    PAGE.write_text(page(found))
    page_zh.PAGE.write_text(page_zh.page(found))


def _measured() -> list[str]:
    """Do everything to one release, one after the other."""
    for name in images.SERVICES:
        images.service(name)
    with contextlib.ExitStack() as stack:
        node = running() or stack.enter_context(cluster())
        release = Release(node, "changes")
        node.kubectl("create", "namespace", release.namespace)
        release.install(VALUES)
        release.ready()
        measured = []
        for name, change in CHANGES.items():
            measured.append(run(release, change).row(name))
            sys.stderr.write(measured[-1] + "\n")
        release.close()
    images.remove()
    return measured


if __name__ == "__main__":
    main()
