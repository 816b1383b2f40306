"""An order explained: in text, as a picture, as a page, as JSON."""

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from durabill.schemas.headers import RESENT_FROM
from durabill.stream_processors.audit.explain_html import html_of
from durabill.stream_processors.audit.explain_svg import svg_of
from durabill.stream_processors.audit.explain_text import lines_of
from durabill.stream_processors.audit.story import Story
from durabill.stream_processors.audit.story_json import explained
from durabill.stream_processors.audit.words import Published, published_of
from tests.unit.story_kit import (
    HOSTILE,
    NOW_MS,
    five,
    in_pieces,
    one_after_the_other,
    over_each_other,
    story_of,
)
from tests.unit.test_markup import Names

SVG = "{http://www.w3.org/2000/svg}"
LIVES = [(70_000, 1, 0, 5_000, True), (90_000_000, 1, 90_000_000, 90_005_000, True)]


def shapes(picture: ElementTree.Element, look: str) -> list[ElementTree.Element]:
    return [each for each in picture.iter() if look in (each.get("class") or "").split()]


def words(picture: ElementTree.Element) -> str:
    return "\n".join(each.text or "" for each in picture.iter(f"{SVG}text"))


# -- the story --------------------------------------------------------------------------------


def test_what_each_record_added_and_what_was_counted_already() -> None:
    story = five()
    told = [
        [
            [tuple(at - NOW_MS for at in each) for each in pieces]
            for pieces in (row.gained, row.counted_before)
        ]
        for row in story.rows
    ]
    assert told == [
        [[(0, 10_000)], []],
        [[(10_000, 20_000)], []],
        [[], [(10_000, 20_000)]],
        [[(20_000, 30_000)], [(18_000, 20_000)]],
        [[(40_000, 47_500)], []],
        [[(30_000, 36_000)], []],
        [[], []],
    ]
    (life,) = story.lives
    assert (life.length_sum_ms, life.union.measure, life.end_number) == (55_500, 43_500, 5)
    assert life.gaps == [(NOW_MS + 36_000, NOW_MS + 40_000)]
    assert life.missing_numbers == []


def test_each_state_and_what_brought_it_about() -> None:
    states = [
        (each.phase, each.at_ms - NOW_MS, each.deadline, each.offset) for each in five().states
    ]
    assert states == [
        ("OPEN", 10_200, None, 0),
        ("ENDED", 52_000, None, 4),
        ("SETTLED", 82_000, "settle_grace", 4),
        ("REOPENED", 200_000, None, 5),
        ("SETTLED", 230_000, "correction_grace", 5),
    ]
    twice = story_of(LIVES).states
    assert [(each.life, each.phase) for each in twice] == [
        (1, "SETTLED"),
        (1, "FORGOTTEN"),
        (2, "SETTLED"),
    ]


def test_headers_tell_where_a_record_came_from() -> None:
    story = five(
        headers=((RESENT_FROM, b"letters/0/7"), ("other", b"x"), (RESENT_FROM, b"\xff\x1b"))
    )
    assert {each.resent_from for each in story.rows} == {"\ufffd\x1b"}
    text = "\n".join(lines_of(story, 0, None))
    assert 'sent back from dead letter "\ufffd\\u001b"' in text


def test_of_a_strangers_header_no_more_is_kept_than_a_place_has() -> None:
    longest = "t" * 249 + "/123456789/123456789012345678"
    assert five(headers=((RESENT_FROM, longest.encode()),)).rows[0].resent_from == longest
    huge = five(headers=((RESENT_FROM, b"x" * 1_000_000),)).rows[0].resent_from
    assert huge == "x" * 300 + "…"


# -- text -------------------------------------------------------------------------------------


def test_the_text_tells_the_whole_story() -> None:
    story = five()
    first, _ = story.given.values()
    key = next(iter(story.given))
    stranger = SimpleNamespace(**{**key._asdict(), "revision": 9}, duration_ms=1_000)
    found = [SimpleNamespace(**key._asdict(), duration_ms=1), stranger]
    published = published_of("topic t", found, story)
    assert published.has(first)
    text = "\n".join(lines_of(story, 0, published))
    for line in (
        "7 records received",
        "  0/3  appended 2026-01-01 10:00:30.300  number 3, 2026-01-01 10:00:18.000 + 12,000 ms",
        "      adds 10.000 s: 10:00:20.000 to 10:00:30.000;"
        " counted already 2.000 s: 10:00:18.000 to 10:00:20.000",
        "      dead letter: IN_THE_FUTURE (ends 690000 ms after its arrival)",
        "By the log: 43.500 s proven; SETTLED; correction_window passes at 2026-01-02 10:04:50.000",
        "  ! 4.000 s between start and end are in no record, in 1 gap.",
        "    2026-01-01 10:03:20.000  REOPENED   by record 0/5",
        "    1  INCOMPLETE  37.500 s (upper bound 47.500 s)  2026-01-01 10:01:22.000, published",
        "    2  COMPLETE    43.500 s (upper bound 43.500 s)  2026-01-01 10:03:50.000,"
        " not found there",
        "note: revision 9 in topic t, 1.000 s INCOMPLETE, is none that the log gives by these"
        " policies",
    ):
        assert line in text.split("\n"), text
    few = "\n".join(lines_of(story, 2, None))
    assert "5 more, --rows 0 shows all" in few
    assert "  0/0  appended" in few
    assert "  0/6  appended" in few
    assert "  0/3  appended" not in few


def test_json_has_all_of_it() -> None:
    found = json.loads(json.dumps(explained(five(), "segments", Published("t", frozenset()))))
    (life,) = found["lives"]
    assert [each["state"] for each in life["states"]] == [
        *("OPEN", "ENDED", "SETTLED", "REOPENED", "SETTLED")
    ]
    assert found["records"][3]["gained"] == [[NOW_MS + 20_000, NOW_MS + 30_000]]
    assert found["records"][3]["counted_before"] == [[NOW_MS + 18_000, NOW_MS + 20_000]]
    assert life["gaps"] == [[NOW_MS + 36_000, NOW_MS + 40_000]]
    assert [(each["caused_by"], each["published"]) for each in found["revisions"]] == [
        ("settle_grace", False),
        ("correction_grace", False),
    ]


# -- the picture ------------------------------------------------------------------------------


def test_a_picture_of_few_records() -> None:
    picture = ElementTree.fromstring(svg_of(five()))
    titles = [each.text or "" for each in picture.iter(f"{SVG}title")]
    assert sum("record 0/" in each and ": 2026" in each for each in titles) >= 6
    assert len([each for each in shapes(picture, "s-gap") if list(each)]) == 1
    assert len([each for each in shapes(picture, "s-union") if list(each)]) == 2
    assert len(shapes(picture, "s-dot")) == 2 + 1  # and the legend's
    text = words(picture)
    for each in ("43.500 s proven · COMPLETE, revision 2", "1: INCOMPLETE 37.5 s", "REOPENED"):
        assert each in text
    assert "1 outside the time drawn here, or with no legible time" in text


@pytest.mark.parametrize(
    ("make", "count", "bytes_max"),
    [
        (one_after_the_other, 20_000, 150_000),
        (over_each_other, 20_000, 200_000),
        (in_pieces, 9_000, 300_000),
    ],
)
def test_a_picture_of_many_records_has_a_bound(
    make: Callable[[int], Story], count: int, bytes_max: int
) -> None:
    small, large = svg_of(make(count // 10)), svg_of(make(count))
    assert len(large) < bytes_max
    assert len(large) < 3 * len(small) + 50_000
    picture = ElementTree.fromstring(large)
    assert sum(1 for _ in picture.iter()) < 2_000
    assert "gathered by pixel" in words(picture)
    for each in shapes(picture, "s-union"):
        if path := each.get("d"):
            heights = [float(found) for found in re.findall(r"v([0-9.]+)", path)]
            assert all(0 < height <= 26 for height in heights)


def test_pictures_of_strange_orders() -> None:
    single = ElementTree.fromstring(svg_of(story_of([(10, 1, 5, 5, True)])))
    assert "0.000 s proven" in words(single)
    twice = ElementTree.fromstring(svg_of(story_of(LIVES)))
    assert "Life 2 of this number" in words(twice)
    assert "forgotten after" in words(twice)
    none = ElementTree.fromstring(svg_of(story_of([(10, 1, 900_000, 900_010, False)])))
    assert "No record of this order counts." in words(none)
    many = story_of(
        [(100_000_000 * at, 1, 100_000_000 * at, 100_000_000 * at + 9, True) for at in range(9)]
    )
    assert "5 lives before these are not drawn" in words(ElementTree.fromstring(svg_of(many)))


# -- hostile texts, the page ------------------------------------------------------------------


def test_a_hostile_order_number_and_header_do_nothing() -> None:
    story = five(HOSTILE, headers=((RESENT_FROM, HOSTILE.encode()),))
    harmless = five("SO1", headers=((RESENT_FROM, b"letters/0/7"),))
    story.notes.append(HOSTILE)
    harmless.notes.append("a note")
    plain, page = Names(html_of(harmless, "t", 0, None)), html_of(story, HOSTILE, 0, None)
    hostile = Names(page)
    assert hostile.tags == plain.tags
    assert "script" not in hostile.tags
    assert {name for name, _ in hostile.attributes} == {name for name, _ in plain.attributes}
    assert "\u202e" not in page
    picture = ElementTree.fromstring(svg_of(story))
    assert picture.find(f".//{SVG}script") is None
    assert "alert(1)" in words(picture)


def test_the_page_tells_all_and_loads_nothing() -> None:
    story = five()
    page = html_of(story, "billing.segments", 0, Published("topic t", frozenset(story.given)))
    assert re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) is None
    assert re.search(r"(?:src|href)=|@import|url\((?!#)", page) is None
    for text in (
        "43.500 s are proven",
        "6 records of 55.500 s together, less 12.000 s that several of them report.",
        "4.000 s between start and end are in no record, in 1 gap.",
        "settle_grace passed, counted from record 0/4",
        "10.000 s: 10:00:20.000 to 10:00:30.000",
        "dead letter: IN_THE_FUTURE (ends 690000 ms after its arrival)",
        "Looked up in topic t.",
        "What the words mean",
        next(iter(story.given)).digest,
    ):
        assert text in page
    assert page == html_of(
        five(), "billing.segments", 0, Published("topic t", frozenset(story.given))
    )
    few = html_of(story, "billing.segments", 2, None)
    assert "5 records in between are left out here (--rows)." in few


def test_pages_of_strange_orders() -> None:
    none = html_of(story_of([(10, 1, 900_000, 900_010, False)]), "t", 0, None)
    assert "1 record with this number came, and none of them counts" in none
    twice = html_of(story_of(LIVES), "t", 0, None)
    assert "The number was used 2 times." in twice
    assert "What it comes to, life 1 of this number" in twice
    assert "Nothing is missing" in twice
