"""What clients see of changes and accidents: nothing that was taken is lost, and no stream breaks that could be saved."""

import pytest
from support.cluster.changes import CHANGES, VALUES, run, settled
from support.cluster.release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release) -> Release:
    release.install(VALUES)
    release.ready()
    settled(release)
    return release


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_loses_no_request_that_could_be_saved(installed: Release, name: str) -> None:
    change = CHANGES[name]
    result = run(installed, change)
    tally = result.tally
    print(result.row(name))  # noqa: T201  how many there were is part of the answer
    assert (tally.stuck, tally.broken, tally.wrong) == ([], [], [])
    assert tally.outcomes["answered"] > 20, "there was load"
    assert result.lost == 0, dict(tally.outcomes)
    assert result.kv_left == 0
    if change.planned:
        assert result.told == 0, "preStop lets streams end before an engine or the proxy goes"
    if not change.outage:
        assert result.turned_away == 0, "there were others to take every request"
