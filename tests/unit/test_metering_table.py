"""The simulated clients of docs/time.md: each is billed within the bound that it states."""

import pytest

from tests.sim.metering import SCENARIOS, Meter, Outcome, Scenario, row_of, table
from tests.unit.documents import text_of


@pytest.fixture(scope="module")
def outcomes() -> dict[Scenario, Outcome]:
    return {scenario: Meter(scenario, 1).run() for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_error_is_within_the_stated_bound(
    scenario: Scenario, outcomes: dict[Scenario, Outcome]
) -> None:
    outcome = outcomes[scenario]
    assert outcome.error_ms <= outcome.bound_ms
    assert outcome.before_the_opening == 0
    is_set = any(gateway.steps for gateway in scenario.gateways)
    assert outcome.clock_wrong_us <= 0 or is_set
    assert outcome.in_the_future == 0 or is_set


def test_a_month_with_a_bad_crystal_is_billed_whole(outcomes: dict[Scenario, Outcome]) -> None:
    """At 50 ppm 46 % of it lay in the broker's future once, at 500 ppm 95 %."""
    months = {each.drift_ppm: outcomes[each] for each in SCENARIOS if "ppm" in each.name}
    for outcome in months.values():
        assert outcome.in_the_future == 0
    assert {-500, -50, 50, 500} <= set(months)


def test_the_table_of_the_docs_is_what_the_command_prints(
    outcomes: dict[Scenario, Outcome],
) -> None:
    assert table(outcomes) in text_of("docs/time.md")
    assert "python -m tests.sim.metering" in text_of("docs/time.md")
    assert len(row_of(SCENARIOS[0], outcomes[SCENARIOS[0]]).split("|")) == 6
