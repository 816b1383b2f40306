"""Policy files: what they may say, what is refused, and the sequence of the duration rules."""

import pytest

from durabill.schemas.errors import SettingsError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.core.what_if import (
    DurationRules,
    PolicyChange,
    WhatIf,
    read_policy_file,
)
from durabill.stream_processors.settings import Settings
from tests.unit.documents import blocks

WHOLE = """
settle_grace_s = 60
idle_timeout_s = 0.5
correction_window_s = 172800
interim_interval_s = 0

[duration]
bridge_gaps_ms = 2000
minimum_duration_ms = 60000
round_up_to_ms = 1000
"""


def test_a_whole_file() -> None:
    assert read_policy_file(WHOLE) == WhatIf(
        PolicyChange(60_000, 500, 172_800_000, 0), DurationRules(2_000, 60_000, 1_000)
    )


def test_the_file_in_the_document_is_one() -> None:
    example = next(text for _, text in blocks("docs/audit.md", "") if "[duration]" in text)
    assert read_policy_file(example) == WhatIf(
        PolicyChange(60_000, 600_000, 172_800_000, 0), DurationRules(2_000, 60_000, 1_000)
    )


def test_what_is_not_named_stays_as_recorded() -> None:
    what_if = read_policy_file("settle_grace_s = 5")
    assert what_if.change.applied_to(Policy(1, 2, 3, 0)) == Policy(5_000, 2, 3, 0)
    assert what_if.duration == DurationRules()
    assert what_if.as_json() == {"settle_grace_ms": 5_000}


def test_what_is_other_is_told() -> None:
    told = read_policy_file("interim_interval_s = 0\n[duration]\nround_up_to_ms = 60000").as_json()
    assert told == {"interim_interval_ms": 0, "duration": {"round_up_to_ms": 60_000}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settle_grace = 5", "'settle_grace' is no key of it; it knows settle_grace_s"),
        ("[duration]\nround_ms = 5", "'duration.round_ms' is no key of it"),
        ("[other]", "'other' is no key of it"),
        ("settle_grace_s = '5'", "settle_grace_s must be a number of seconds"),
        ("settle_grace_s = true", "settle_grace_s must be a number of seconds"),
        ("idle_timeout_s = nan", "idle_timeout_s = nan must be from 0 to"),
        ("idle_timeout_s = -1", "idle_timeout_s = -1 must be from 0 to"),
        ("idle_timeout_s = 400_000_000", "must be from 0 to 315,360,000 s"),
        ("interim_interval_s = 0.5", "the least is 1, and 0 means never"),
        ("[duration]\nminimum_duration_ms = 1.5", "must be a whole number of milliseconds"),
        ("[duration]\nminimum_duration_ms = true", "must be a whole number of milliseconds"),
        ("[duration]\nbridge_gaps_ms = -1", "duration.bridge_gaps_ms = -1 must be from 0"),
        ("[duration]\nround_up_to_ms = 0", "duration.round_up_to_ms = 0 must be from 1"),
        ("duration = 5", "duration must be a table"),
        ("", "the policy file changes nothing: it knows settle_grace_s"),
        ("settle_grace_s 5", "the policy file is no TOML"),
        ("settle_grace_s = 5\nsettle_grace_s = 6", "the policy file is no TOML"),
    ],
)
def test_what_is_wrong_is_told(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_policy_file(text)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_policy_file("grace = 5\nidle_timeout_s = -1\n[duration]\nround_up_to_ms = 0")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "settings",
    [
        Settings(idle_timeout_s=10_001, interim_interval_s=1),
        Settings(settle_grace_s=79, interim_interval_s=1, idle_timeout_s=1),
        Settings(idle_timeout_s=10_000, settle_grace_s=78, interim_interval_s=1),
        Settings(idle_timeout_s=10_001, interim_interval_s=0),
    ],
)
def test_a_policy_that_a_worker_would_refuse_is_refused(settings: Settings) -> None:
    wanted = settings.policy
    change = PolicyChange(wanted.settle_grace_ms, wanted.idle_timeout_ms)
    recorded = Policy(1, 1, 1, wanted.interim_interval_ms)
    if settings.interim_problems():
        with pytest.raises(SettingsError, match=r"10,000 times interim_interval_s, 1 s"):
            change.applied_to(recorded)
    else:
        assert change.applied_to(recorded).idle_timeout_ms == wanted.idle_timeout_ms


@pytest.mark.parametrize(
    ("intervals", "rules", "billed_ms"),
    [
        ([(0, 10), (15, 20)], DurationRules(bridge_gaps_ms=4), 15),
        ([(0, 10), (15, 20)], DurationRules(bridge_gaps_ms=5), 20),
        ([(0, 10), (15, 20)], DurationRules(5, 20, 1), 20),  # bridged first: the minimum is met
        ([(0, 10), (15, 20)], DurationRules(5, 21, 20), 40),  # the minimum first, then the step
        ([(0, 10)], DurationRules(0, 15, 10), 20),
        ([(0, 10)], DurationRules(0, 0, 10), 10),
        ([], DurationRules(5, 0, 10), 0),
        ([], DurationRules(5, 7, 10), 10),  # the minimum holds without any time as well
    ],
)
def test_bridging_then_the_minimum_then_rounding(
    intervals: list[tuple[int, int]], rules: DurationRules, billed_ms: int
) -> None:
    assert rules.billed_ms(intervals) == billed_ms


@pytest.mark.parametrize("values", [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_impossible_rules_can_not_be_made(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        DurationRules(*values)
