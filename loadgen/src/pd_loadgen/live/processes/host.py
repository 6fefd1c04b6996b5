"""Whether the parent process still lives."""

import os


def orphaned(parent: int) -> bool:
    """True once the process that started this one is gone."""
    return os.getppid() != parent
