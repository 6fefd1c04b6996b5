"""`python tests/cluster COMMAND…`: a Kubernetes node for as long as the command runs, e.g. `bash`; KUBECONFIG and PATH are set for it."""

import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.cluster.cluster import cluster
from support.cluster.programs import CannotRunError


def main() -> int:
    """Start, run the command, tear down; the command's exit status."""
    command = sys.argv[1:] or ["bash"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is torn down
    try:
        with cluster() as made:
            print(f"A node is ready: KUBECONFIG={made.plane.kubeconfig}, logs in {made.plane.folder}", file=sys.stderr)
            return subprocess.run(command, env=made.environment, check=False).returncode
    except CannotRunError as reason:
        print(f"no Kubernetes here: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
