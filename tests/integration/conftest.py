"""What several files of integration tests start from."""

from collections.abc import AsyncIterator

import pytest
from support.proxy import RunningProxy, running_proxy


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    """A proxy without engines; files that need other settings have a fixture of the same name."""
    async with running_proxy() as proxy:
        yield proxy
