"""What clients see of changes and failures: no accepted request is lost, and no stream breaks that could be saved."""

import pytest
from support.cluster.changes import CHANGES, VALUES, run, settled
from support.cluster.load import CLIENTS
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
    seen = run(installed, change)
    tally = seen.result.tally
    print(seen.row(name))  # noqa: T201  how many there were is part of the answer
    assert (tally.stuck, tally.wrong) == ([], [])
    assert len(tally.broken) <= seen.cut
    assert seen.cut <= CLIENTS, "only the connections of the proxy that was killed"
    assert sum(tally.outcomes.values()) > 20, "there was load"
    assert tally.outcomes["answered"] >= CLIENTS, "each client could have been served before or after"
    assert seen.lost == 0, (dict(tally.outcomes), dict(tally.took_s), tally.refusals)
    assert seen.result.kv_left == 0
    if change.planned:
        assert seen.result.told == 0, "preStop lets streams end before an engine or the proxy goes"
    if not (change.outage or change.kills_proxy):
        assert seen.turned_away == 0, ("there were others to take every request", tally.refusals)
