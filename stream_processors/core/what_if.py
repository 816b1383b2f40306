"""Another policy, for a "what if": which of the settings it changes, and how long it bills.

A policy file is TOML. Its keys change the recorded policy; what it doesn't name stays as recorded.
The table `[duration]` says what is billed of a total's evidence:

    settle_grace_s = 60             # as the settings of the same names
    idle_timeout_s = 600
    correction_window_s = 172800
    interim_interval_s = 0

    [duration]
    bridge_gaps_ms = 2000           # 1. gaps between intervals of at most this count as time
    minimum_duration_ms = 60000     # 2. what is less than this is billed as this
    round_up_to_ms = 1000           # 3. and all is rounded up to a multiple of this

The duration rules are applied in this sequence, whatever their sequence in the file. All of it is
whole numbers. A total itself never changes by a duration rule: its intervals are what is proven.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from durabill.schemas.errors import SettingsError
from durabill.schemas.limits import GRACE_FACTOR_MAX, INTERIM_TOTALS_MAX, POLICY_TIME_MAX_S
from durabill.stream_processors.core.order import Policy

_TIMES = {
    "settle_grace_s": "settle_grace_ms",
    "idle_timeout_s": "idle_timeout_ms",
    "correction_window_s": "correction_window_ms",
    "interim_interval_s": "interim_interval_ms",
}
"""A key of the file -> the field of `Policy`."""

_DURATION = "duration"
_RULE_MAX_MS = POLICY_TIME_MAX_S * 1000


@dataclass(frozen=True, slots=True)
class DurationRules:
    """What is billed of the time that is proven. As it is made by default it changes nothing."""

    bridge_gaps_ms: int = 0
    minimum_duration_ms: int = 0
    round_up_to_ms: int = 1

    def __post_init__(self) -> None:
        if min(self.bridge_gaps_ms, self.minimum_duration_ms) < 0 or self.round_up_to_ms < 1:
            raise ValueError(f"these duration rules are impossible: {self}")

    def billed_ms(self, intervals: Iterable[tuple[int, int]]) -> int:
        """Return what is billed of a total's intervals: sorted, disjoint, not touching.

        A gap lies between two intervals; one of exactly `bridge_gaps_ms` is bridged. The minimum
        holds for every total, also for one without any time.
        """
        bridged_ms = bridge(intervals, self.bridge_gaps_ms)
        return round_up(max(bridged_ms, self.minimum_duration_ms), self.round_up_to_ms)


def bridge(intervals: Iterable[tuple[int, int]], gap_max_ms: int) -> int:
    """Return the time in the intervals, and in those gaps between them that are short enough."""
    pieces = list(intervals)
    gaps_ms = (after[0] - before[1] for before, after in pairwise(pieces))
    own_ms = sum(end_ms - start_ms for start_ms, end_ms in pieces)
    return own_ms + sum(gap_ms for gap_ms in gaps_ms if gap_ms <= gap_max_ms)


def round_up(duration_ms: int, step_ms: int) -> int:
    """Return the least multiple of `step_ms` that is at least `duration_ms`."""
    return -(-duration_ms // step_ms) * step_ms


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """The times of a policy that are changed, in milliseconds; None: as recorded."""

    settle_grace_ms: int | None = None
    idle_timeout_ms: int | None = None
    correction_window_ms: int | None = None
    interim_interval_ms: int | None = None

    @property
    def named(self) -> dict[str, Any]:
        """Return the times that are changed, by their names."""
        times = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: time_ms for name, time_ms in times.items() if time_ms is not None}

    def applied_to(self, policy: Policy) -> Policy:
        """Return the policy with the changes.

        Raises SettingsError where the two together could make one order due too many interim
        totals at once, as the settings of a worker would be refused for it.
        """
        changed = replace(policy, **self.named)
        allowed_ms = changed.interim_after_ms * INTERIM_TOTALS_MAX
        waits_ms = {
            "idle_timeout_s": changed.idle_timeout_ms,
            f"settle_grace_s x {GRACE_FACTOR_MAX}": changed.settle_grace_ms * GRACE_FACTOR_MAX,
        }
        interval_s = changed.interim_interval_ms / 1000
        problems = [
            f"the policy file with the recorded policy: {name} is {wait_ms / 1000:g} s, more than"
            f" {INTERIM_TOTALS_MAX:,} times interim_interval_s, {interval_s:g} s. Set"
            f" interim_interval_s to {wait_ms / 1000 / INTERIM_TOTALS_MAX:g} or more, or to 0 for"
            " none"
            for name, wait_ms in waits_ms.items()
            if wait_ms > allowed_ms
        ]
        if problems:
            raise SettingsError(problems)
        return changed


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a policy file says."""

    change: PolicyChange = PolicyChange()
    duration: DurationRules = DurationRules()

    def as_json(self) -> dict[str, Any]:
        """Return what is other than recorded, as plain values."""
        rules, same = self.duration, DurationRules()
        changed = {
            each.name: getattr(rules, each.name)
            for each in fields(rules)
            if getattr(rules, each.name) != getattr(same, each.name)
        }
        return {**self.change.named, **({_DURATION: changed} if changed else {})}


def read_policy_file(text: str) -> WhatIf:
    """Return what a policy file says; raise SettingsError with all that is wrong in it."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError([f"the policy file is no TOML: {error}"]) from error
    problems: list[str] = []
    times = _times(content, problems)
    rules = _rules(content.get(_DURATION, {}), problems)
    if not content:
        problems.append(f"the policy file changes nothing: it knows {', '.join(_known_keys())}")
    if problems:
        raise SettingsError(problems)
    return WhatIf(PolicyChange(**times), DurationRules(**rules))


def _known_keys() -> list[str]:
    return [*_TIMES, *(f"{_DURATION}.{each.name}" for each in fields(DurationRules))]


def _times(content: Mapping[str, Any], problems: list[str]) -> dict[str, int]:
    times: dict[str, int] = {}
    for key, value in content.items():
        if key == _DURATION:
            continue
        if key not in _TIMES:
            problems.append(_unknown(key))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(f"the policy file: {key} must be a number of seconds")
        elif not (math.isfinite(value) and 0 <= value <= POLICY_TIME_MAX_S):
            problems.append(
                f"the policy file: {key} = {value:g} must be from 0 to {POLICY_TIME_MAX_S:,} s"
            )
        elif key == "interim_interval_s" and 0 < value < 1:
            problems.append(
                f"the policy file: {key} = {value:g}: the least is 1, and 0 means never"
            )
        else:
            times[_TIMES[key]] = round(value * 1000)
    return times


def _rules(table: Any, problems: list[str]) -> dict[str, int]:
    if not isinstance(table, dict):
        problems.append(f"the policy file: {_DURATION} must be a table, [{_DURATION}]")
        return {}
    leasts = asdict(DurationRules())
    rules: dict[str, int] = {}
    for key, value in table.items():
        name = f"{_DURATION}.{key}"
        if key not in leasts:
            problems.append(_unknown(name))
        elif isinstance(value, bool) or not isinstance(value, int):
            problems.append(f"the policy file: {name} must be a whole number of milliseconds")
        elif not leasts[key] <= value <= _RULE_MAX_MS:
            problems.append(
                f"the policy file: {name} = {value} must be from {leasts[key]} to"
                f" {_RULE_MAX_MS:,} ms"
            )
        else:
            rules[key] = value
    return rules


def _unknown(key: str) -> str:
    return f"the policy file: {key!r} is no key of it; it knows {', '.join(_known_keys())}"
