"""Every fault that the simulator knows, against the proxy's promises and docs/reliability.md."""

import asyncio

import pytest
from support.faults import HEAD, PAGE, SCENARIOS, TAIL, Report, Scenario, run_all

pytestmark = pytest.mark.timed


@pytest.fixture(name="reports", scope="module")
def _reports(request: pytest.FixtureRequest) -> dict[str, Report | BaseException]:
    """What came of each scenario that a test here asks for, by title."""
    here = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    asked = [scenario for item in here if isinstance(scenario := _parameters(item).get("scenario"), Scenario)]
    return {scenario.title: report for scenario, report in zip(asked, asyncio.run(run_all(asked)), strict=True)}


def _parameters(item: pytest.Function) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.mark.timeout(900)  # the first test waits for all scenarios
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.title)
def test_a_fault_does_no_more_than_the_page_says(
    scenario: Scenario, reports: dict[str, Report | BaseException]
) -> None:
    report = reports.pop(scenario.title, None)
    if report is None:  # the test is run again
        (report,) = asyncio.run(run_all([scenario]))
    if isinstance(report, BaseException):
        raise report

    assert report.keeps(scenario), report
    assert report.row(scenario) in PAGE.read_text().splitlines(), "run python docs/write_reliability.py"


def test_the_page_says_nothing_that_no_scenario_does() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    table, tail, _ = text.removeprefix(HEAD).partition(TAIL)
    assert tail
    rows = table.strip().splitlines()
    assert len(rows) == len(SCENARIOS)
