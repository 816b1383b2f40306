"""What audits may come to while everything dies around them, and what they may not."""

from dataclasses import replace

import pytest

from tests.chaos.live_audit import LiveAudit, not_proven, violations

PROVEN = LiveAudit(1.0, 2.0, 0, {"result": "proven", "totals": 3, "proven": 3}, "")
AWAY = LiveAudit(4.0, 2.0, 2, {}, "error: Kafka is away")
ALARM = LiveAudit(
    *(7.0, 2.0, 1),
    {"result": "differs", "findings": [{"kind": "missing_total"}], "findings_by_kind": {}},
    "",
)


def test_what_is_proven_or_could_not_be_carried_out_is_no_violation() -> None:
    assert list(violations([PROVEN, AWAY])) == []
    assert not_proven(PROVEN) == ""


@pytest.mark.parametrize(
    ("audit", "words"),
    [
        (ALARM, "false alarm"),
        (replace(ALARM, result={}), "ended with 1"),
        (replace(AWAY, code=None), "ended with None"),
        (replace(AWAY, code=-11), "ended with -11"),
        (replace(AWAY, last_words="Traceback (most recent call last)"), "a traceback"),
        (replace(PROVEN, result={}), "said None"),
    ],
)
def test_alarms_crashes_and_hangs_are_violations(audit: LiveAudit, words: str) -> None:
    (found,) = violations([PROVEN, audit, AWAY])
    assert words in found


def test_at_rest_everything_must_be_proven() -> None:
    assert not_proven(AWAY)
    assert not_proven(replace(PROVEN, result={"totals": 0, "proven": 0}))
    assert not_proven(replace(PROVEN, result={"totals": 3, "proven": 2}))
