"""How an order was opened: what its story tells of it, in text, as a page, as JSON."""

import json
from typing import Any

from durabill.schemas import (
    OWN_SCHEMA_ONLY,
    OrderOpened,
    SegmentEvent,
    encode_opening,
    encode_segment,
)
from durabill.stream_processors.audit.explain_html import html_of
from durabill.stream_processors.audit.explain_svg import svg_of
from durabill.stream_processors.audit.explain_text import lines_of
from durabill.stream_processors.audit.story import Basis, Story
from durabill.stream_processors.audit.story_json import explained
from durabill.stream_processors.audit.words import opening_lines
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.explain import explain
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.policies import PolicyRecord, Terms
from tests.unit.story_kit import HOSTILE, NOW_MS, POLICY


def opening(at_ms: int, tenant: str = "acme", **more: Any) -> tuple[int, bytes]:
    opened = OrderOpened(
        *("SO1", tenant, "meter 7", "gpu", (("a", "b"), ("hostile", HOSTILE[:40]))),
        *(NOW_MS, 10_000, NOW_MS + 60_000),
    )
    return at_ms, encode_opening(opened._replace(**more))


def segment(at_ms: int) -> tuple[int, bytes]:
    return at_ms, encode_segment(SegmentEvent("SO1", 1, NOW_MS, NOW_MS + 1_000, True))


def story_of(*records: tuple[int, bytes], **more: Any) -> Story:
    log = [
        Record(at, NOW_MS + at_ms, b"SO1", value, ()) for at, (at_ms, value) in enumerate(records)
    ]
    log.append(Record(len(log), NOW_MS + 200_000, b"other", b"garbage", ()))
    story = Story("SO1", 0, Basis((PolicyRecord(0, Terms(POLICY)),)))
    happened = explain("SO1", log, Place(0, 2), lambda _: POLICY, OWN_SCHEMA_ONLY.read, **more)
    story.add(0, happened)
    return story


REPORTED = story_of(
    opening(0), opening(10), opening(20, "thief", client=""), segment(2_000), opening(30)
)


def test_the_opening_is_told_once_and_refusals_each() -> None:
    assert opening_lines(REPORTED) == [
        "Opened 2026-01-01 10:00:00.000 at record 0/0 by tenant acme, client meter 7, service gpu;"
        " a report every 10.000 s, accepted until 2026-01-01 10:01:00.000",
        r'  attributes: a=b, hostile="</script><script>alert(1)</script>&\"\'\u202e"'.replace(
            r"\'", "'"
        ),
        "  opened again by the same client 2 times: no matter",
        "Opening refused at record 0/2: by tenant thief: ALREADY_OPENED",
    ]
    (life,) = REPORTED.lives
    assert life.accepted == 1
    text = "\n".join(lines_of(REPORTED, 0, None))
    assert "an opening\n      dead letter: ALREADY_OPENED (its order was opened by another" in text
    assert "not legible" not in text


def test_what_a_renewed_lease_has_extended_is_told() -> None:
    longer = (opening(20, accept_until_ms=NOW_MS + at_ms) for at_ms in (90_000, 120_000))
    story = story_of(opening(0), *longer, segment(2_000))
    assert opening_lines(story)[2:] == [
        "  extended 2 times by renewed leases: accepted until 2026-01-01 10:02:00.000"
    ]
    assert "extends its opening until 2026-01-01 10:01:30.000" in "\n".join(
        lines_of(story, 0, None)
    )
    (told,) = explained(story, "billing.segments", None)["openings"]
    assert (told["extensions"], told["repeats"]) == (2, 0)
    assert told["accept_until_ms"] == NOW_MS + 120_000


def test_by_the_rules_of_before_it_only_came_again() -> None:
    story = story_of(
        opening(0), opening(20, accept_until_ms=NOW_MS + 90_000), extends_at=lambda _: False
    )
    (told,) = explained(story, "billing.segments", None)["openings"]
    assert (told["extensions"], told["repeats"]) == (0, 1)


def test_one_that_nobody_reported_has_lapsed() -> None:
    story = story_of(opening(0))
    assert opening_lines(story)[-1] == (
        "  no record of it counted in time: forgotten after 2026-01-01 10:02:00.000"
    )
    page = html_of(story, "billing.segments", 0, None)
    assert "No record with this number came; nothing is billed." in page
    assert "<svg" in svg_of(story)


def test_the_page_and_json_have_it() -> None:
    page = html_of(REPORTED, "billing.segments", 0, None)
    assert "by tenant acme, client meter 7, service gpu" in page
    assert "<script>" not in page
    told = json.loads(json.dumps(explained(REPORTED, "billing.segments", None)))
    first, refused = told["openings"]
    assert (first["tenant"], first["attributes"]["a"], first["repeats"]) == ("acme", "b", 2)
    assert (first["offset"], first["reason"], first["lapsed_at_ms"]) == (0, None, None)
    assert (refused["tenant"], refused["reason"]) == ("thief", "ALREADY_OPENED")
