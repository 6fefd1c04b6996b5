"""Every fault that the simulator knows, against the proxy's promises and docs/reliability.md."""

import pytest
from support.faults import HEAD, PAGE, SCENARIOS, TAIL, Scenario, run


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.title)
async def test_a_fault_does_no_more_than_the_page_says(scenario: Scenario) -> None:
    report = await run(scenario)

    assert report.clients <= set(scenario.clients)
    assert "answered" in report.clients
    assert scenario.retried in (report.retried, None)
    assert report.state == scenario.state
    assert not report.leaks
    assert report.wrong_later == 0, "everything is as before"
    assert report.row(scenario) in PAGE.read_text().splitlines(), "run python docs/write_reliability.py"


def test_the_page_says_nothing_that_no_scenario_does() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    table, tail, _ = text.removeprefix(HEAD).partition(TAIL)
    assert tail
    rows = table.strip().splitlines()
    assert len(rows) == len(SCENARIOS)
