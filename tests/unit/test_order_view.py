"""What `durabill order` shows: bars, few of many, singular and plural."""

import pytest

from durabill.deploy.commands.order_log import Totals, compare_letters
from durabill.deploy.commands.order_view import draw, show_story, show_totals
from durabill.deploy.terminal import counted, human_doubts
from durabill.schemas import OWN_SCHEMA_ONLY, SegmentEvent, encode_segment
from durabill.stream_processors.audit.story import Basis, Story
from durabill.stream_processors.audit.words import policy_lines
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.explain import explain
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.policies import PolicyRecord, Terms

POLICY = Policy(30, 300, 1_000, 0)
BASIS = Basis((PolicyRecord(0, Terms(POLICY)),))
NOW = 1_700_000_000_000


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are as long as they are."""
    monkeypatch.setenv("COLUMNS", "200")


def story_of(*records: tuple[int, int, int, int]) -> Story:
    """Return the story of records (append time, number, start, end), counted from NOW."""
    log = [
        Record(
            offset,
            NOW + at_ms,
            b"SO1",
            encode_segment(SegmentEvent("SO1", number, NOW + start_ms, NOW + end_ms, True)),
            (),
        )
        for offset, (at_ms, number, start_ms, end_ms) in enumerate(records)
    ]
    story = Story("SO1", 0, BASIS)
    story.add(0, explain("SO1", log, Place(0, 1), lambda _: POLICY, OWN_SCHEMA_ONLY.read))
    return story


@pytest.mark.parametrize(
    ("pieces", "bar"),
    [
        ([(0, 40)], "████"),
        ([(0, 10), (30, 40)], "█··█"),
        ([(0, 15), (39, 40)], "█▒·▒"),
    ],
)
def test_a_bar(pieces: list[tuple[int, int]], bar: str) -> None:
    assert bar == draw(IntervalSet(pieces), 0, 40, 4)
    assert draw(IntervalSet([(5, 6)]), 5, 6, 2, "#+.") == "##"


def test_one_and_many() -> None:
    assert [counted(each, "total") for each in range(3)] == ["0 totals", "1 total", "2 totals"]
    assert human_doubts(5, 1) == ", gaps of 0.005 s, 1 number after the end"
    assert human_doubts(0, 2) == ", 2 numbers after the end"


def test_one_record(capsys: pytest.CaptureFixture[str]) -> None:
    show_story(story_of((10, 1, 0, 5)), 24)
    out = capsys.readouterr().out
    assert "1 record in the log" in out
    assert "counted, completes it" in out
    assert "By the log: SETTLED, 0.005 s, 1 segment, 0 repeats, revision 1, forgotten" in out


def test_many_gaps_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    story = story_of(*((10, at, 10 * at, 10 * at + 5) for at in range(2, 14)))
    show_story(story, 4)
    out = capsys.readouterr().out
    assert "12 records in the log" in out
    assert "8 more, --rows 0 shows all" in out
    assert out.count("  gap ") == 10
    assert "  and 1 more gap\n" in out


def test_many_lives_and_revisions(capsys: pytest.CaptureFixture[str]) -> None:
    story = story_of(*((70_000 * at, 1, 70_000 * at - 5, 70_000 * at) for at in range(5)))
    assert [each.life for each in story.lives] == [1, 2, 3, 4, 5]
    show_story(story, 2)
    show_totals(story, Totals([], 0, "topic t"), 2)
    out = capsys.readouterr().out
    assert "3 lives before, --rows 0 shows all" in out
    assert "Life 3" not in out
    assert "Life 4: forgotten after" in out
    assert "1 record taken in" in out
    assert "Life 5: SETTLED" in out
    assert "0 totals in topic t\n" in out
    assert out.count("by the log, not found there") == 2
    assert "life 5: record 0/4 completed it" in out


def test_policies() -> None:
    later = PolicyRecord(40, Terms(Policy(1_000, 2_000, 3_000, 4_000)))
    lines = policy_lines(Basis((*BASIS.history, later), "nobody knows"))
    assert lines == [
        "Policy: settle_grace 0.030 s, idle_timeout 0.300 s, correction_window 1.000 s,"
        " interim_interval never",
        "From offset 40 on: settle_grace 1.000 s, idle_timeout 2.000 s, correction_window 3.000 s,"
        " interim_interval 4.000 s",
        "note: this policy is assumed from the settings: nobody knows",
    ]


def test_no_letters_no_notes() -> None:
    assert compare_letters(story_of((10, 1, 0, 5)).rows, [], "segments", 0) == []
