"""Stories of orders for tests of what shows them, made by the rules from records."""

from collections.abc import Sequence

from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from durabill.schemas.wire import Headers
from durabill.stream_processors.audit.story import Basis, Story
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.explain import explain
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.policies import PolicyRecord, Terms

POLICY = Policy(30_000, 300_000, 86_400_000, 86_400_000)
NOW_MS = 1_767_261_600_000
"""2026-01-01 10:00:00 UTC."""

Report = tuple[int, int, int, int, bool]
"""Arrival, number, start, end, in milliseconds from NOW_MS on; whether it is the end."""

HOSTILE = "</script><script>alert(1)</script>&\"'\u202e"


def story_of(
    reports: Sequence[Report],
    number: str = "SO1",
    *,
    headers: Headers = (),
    after_ms: int = 400_000,
    policy: Policy = POLICY,
) -> Story:
    """Return the story of an order whose records came so, and of a silence of `after_ms`."""
    key = number.encode()
    log = [
        Record(
            offset,
            NOW_MS + at_ms,
            key,
            encode_segment(SegmentEvent(number, each, NOW_MS + start_ms, NOW_MS + end_ms, is_end)),
            headers,
        )
        for offset, (at_ms, each, start_ms, end_ms, is_end) in enumerate(sorted(reports))
    ]
    log.append(Record(len(log), log[-1].append_ms + after_ms, b"other", b"garbage", ()))
    story = Story(number, 0, Basis((PolicyRecord(0, Terms(policy)),)))
    story.add(0, explain(number, log, Place(0, 2), lambda _: policy, OWN_SCHEMA_ONLY.read))
    return story


FIVE: Sequence[Report] = (
    (10_200, 1, 0, 10_000, False),
    (20_100, 2, 10_000, 20_000, False),
    (20_900, 2, 10_000, 20_000, False),
    (30_300, 3, 18_000, 30_000, False),
    (52_000, 5, 40_000, 47_500, True),
    (200_000, 4, 30_000, 36_000, False),
    (210_000, 9, 500_000, 900_000, False),
)
"""Repeats, an overlap, a gap, a late record that makes it complete, and one from the future."""


def five(number: str = "SO1", headers: Headers = ()) -> Story:
    """Return the story of FIVE."""
    return story_of(FIVE, number, headers=headers)


def one_after_the_other(count: int) -> Story:
    """Return the story of many records in a row; every 50th comes twice, some are missing."""
    reports: list[Report] = []
    for at in range(count):
        if not 300 < at < 320:
            start_ms = at * 10_000
            report = (start_ms + 10_500, at + 1, start_ms, start_ms + 10_000, at == count - 1)
            reports += [report] * (2 if at % 50 == 0 else 1)
    return story_of(reports)


def over_each_other(count: int) -> Story:
    """Return the story of many records over each other: hundreds of lanes."""
    reports: list[Report] = []
    for at in range(count):
        start_ms = at * 7_919 % 3_000_000
        reports.append((3_600_000 + at, at + 1, start_ms, start_ms + 60_000, at == 0))
    return story_of(reports)


def in_pieces(count: int) -> Story:
    """Return the story of many records with a gap after each."""
    return story_of(
        [(at * 1_000 + 900, at + 1, at * 1_000, at * 1_000 + 400, False) for at in range(count)]
    )
