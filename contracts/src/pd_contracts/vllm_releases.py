"""Which releases of vLLM have which connector; as (major, minor)."""

from typing import Final

FIRST_WITH_P2P: Final = (0, 23)
LAST_WITH_P2P_NCCL: Final = (0, 23)


def words(release: tuple[int, int]) -> str:
    """0.23."""
    return ".".join(map(str, release))


def full(release: tuple[int, int]) -> str:
    """The first version of a release, as images and wheels are called: 0.23.0."""
    return f"{words(release)}.0"


def image(release: tuple[int, int]) -> str:
    """vllm/vllm-openai:v0.23.0."""
    return f"vllm/vllm-openai:v{full(release)}"
