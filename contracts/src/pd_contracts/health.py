"""A health probe for images without curl: `python -m pd_contracts.health http://127.0.0.1:10001/ready`.

Exit status 0 if the address answers 200 within the time (5 s unless a second argument says otherwise), else 1 with the reason on stderr.
"""

import sys

from pd_contracts.http_call import CallError, call


def probe(url: str, timeout: float = 5.0) -> str | None:
    """GET `url`; None if it answers 200, else the reason it does not."""
    try:
        status = call(url, timeout_s=timeout).status
    except CallError as error:
        return str(error)
    return None if status == 200 else f"status {status}"


def main() -> int:
    """Run the probe on the command line's address."""
    if len(sys.argv) not in (2, 3):
        sys.stderr.write("usage: python -m pd_contracts.health URL [TIMEOUT_S]\n")
        return 2
    reason = probe(sys.argv[1], *map(float, sys.argv[2:3]))
    if reason is not None:
        sys.stderr.write(f"{sys.argv[1]}: {reason}\n")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
