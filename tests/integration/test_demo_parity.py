"""Disaggregated or not, the same tokens: decode's are a function of the KV it received, so a lost transfer would show."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.answers import plain, prompt, streamed
from support.control import environment, pdctl

from pd_control.client import served_models

LENGTHS = (1, 15, 16, 17, 200, 700)
OUTPUT = 12


@contextmanager
def deployed(folder: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """The address of a deployment's proxy."""
    env = environment(folder / "state", **variables)
    up = pdctl("up", *arguments, "--engine", "sim", env=env, cwd=folder)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        yield f"http://127.0.0.1:{env['HTTP_PROXY_PORT']}"
    finally:
        pdctl("down", env=env, cwd=folder)


def answers(url: str) -> dict[tuple[int, str], list[int]]:
    """Tokens by length of the prompt and way of asking."""
    model = served_models(url)[0]
    found = {}
    for length in LENGTHS:
        found[length, "plain"] = plain(url, model, prompt(length), OUTPUT)
        found[length, "streamed"] = streamed(url, model, prompt(length), OUTPUT)
    return found


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[int]]:
    with deployed(tmp_path_factory.mktemp("combined"), "combined", "--combined", "1") as url:
        return answers(url)


def test_the_reference_tells_prompts_apart(reference: dict[tuple[int, str], list[int]]) -> None:
    assert all(len(tokens) == OUTPUT for tokens in reference.values())
    assert len({tuple(tokens) for tokens in reference.values()}) == len(LENGTHS)


@pytest.mark.parametrize("connector", ["P2pNcclConnector", "NixlConnector", "ExampleConnector"])
def test_disaggregated_tokens_equal_plain_ones(
    tmp_path: Path, reference: dict[tuple[int, str], list[int]], connector: str
) -> None:
    with deployed(tmp_path, KV_CONNECTOR=connector, KV_SHARED_PATH=str(tmp_path)) as url:
        assert answers(url) == reference


# An engine computes a prompt's last token itself: decode that of the prompt, or prefill's token if it goes on behind that. So in the first case an
# answer to one token rests on no KV from elsewhere.
@pytest.mark.parametrize(("first_token", "unharmed"), [("decode", {1}), ("prefill", set())])
def test_a_corrupted_transfer_changes_the_tokens(
    tmp_path: Path, reference: dict[tuple[int, str], list[int]], first_token: str, unharmed: set[int]
) -> None:
    with deployed(tmp_path, SIM_CORRUPT_KV="on", CANARY="off", FIRST_TOKEN=first_token) as url:
        found = answers(url)

    same = {length for (length, _), tokens in found.items() if tokens == reference[length, "plain"]}
    assert same == unharmed
