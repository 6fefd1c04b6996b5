"""Every fault that the simulator knows, against the proxy's promises and docs/reliability.md."""

import pytest
from support.faults import HEAD, PAGE, SCENARIOS, TAIL, Scenario, run


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.role.value} {s.name}")
async def test_a_fault_does_no_more_than_the_page_says(scenario: Scenario) -> None:
    report = await run(scenario)

    assert report.clients <= set(scenario.clients)
    assert "answered" in report.clients
    assert (report.retried, report.state) == (scenario.retried, scenario.state)
    assert (report.leaks, report.restarts) == (scenario.leaks, scenario.restarts)
    assert report.wrong_later == 0, "everything is as before"
    assert report.row(scenario) in PAGE.read_text().splitlines(), "run python docs/write_reliability.py"


def test_the_page_says_nothing_that_no_scenario_does() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert text.endswith(TAIL)
    rows = text.removeprefix(HEAD).removesuffix(TAIL).strip().splitlines()
    assert len(rows) == len(SCENARIOS)
