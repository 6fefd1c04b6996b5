"""Fixtures of several files of integration tests."""

from collections.abc import AsyncIterator

import pytest
from support.proxy import RunningProxy, running_proxy

from pd_proxy.settings import When, Writer


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    """A proxy without engines; files that need other settings have a fixture of the same name.

    Fake engines know no tokens, so it hands over in the order that all connectors have.
    """
    async with running_proxy(first_token=Writer.DECODE, decode_asked=When.AFTER_PREFILL) as proxy:
        yield proxy
