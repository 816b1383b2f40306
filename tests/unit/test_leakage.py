"""Where time may be lost: numbers that were made up, bounds of memory, how it is told."""

import csv
import io
import json

import pytest

from durabill.schemas import Interval, NumberRange, OrderTotal, Status
from durabill.stream_processors.audit import leakage as leakage_module
from durabill.stream_processors.audit.leakage import Leakage
from durabill.stream_processors.audit.leakage_cases import HOUR_MS, MISSING_NUMBERS_MAX
from durabill.stream_processors.audit.leakage_report import as_csv, as_json, lines_of

START_MS = 1_767_261_600_000


def total_of(
    number: str,
    status: Status,
    pieces: list[tuple[int, int]],
    missing: list[tuple[int, int]],
    *,
    segments: int = 3,
    bound_ms: int | None = None,
    partition: int = 0,
) -> OrderTotal:
    """Return a total whose pieces are seconds from START_MS on."""
    intervals = tuple(Interval(START_MS + 1_000 * a, START_MS + 1_000 * b) for a, b in pieces)
    started_ms, ended_ms = intervals[0].start_ms, intervals[-1].end_ms
    duration_ms = sum(b - a for a, b in intervals)
    ended = status in (Status.COMPLETE, Status.INCOMPLETE)
    return OrderTotal(
        number, 1, status, duration_ms, duration_ms if status is Status.COMPLETE else bound_ms,
        started_ms, ended_ms, intervals, 9 if ended else None,
        tuple(NumberRange(*each) for each in missing), segments, 1, 1_000,
        ended_ms - started_ms - duration_ms, 0, "digest", "", partition, 1, ended_ms,
    )  # fmt: skip


def example() -> Leakage:
    """Return four orders with totals, and one that was rejected as a whole."""
    found = Leakage(3)
    found.add_letter("TOO_LATE", "lost", 7_200_000)
    found.add_letter("NOT_AVRO", None, 0)
    found.add_total(total_of("=fine", Status.COMPLETE, [(0, 60)], []))
    bounded = total_of("short", Status.INCOMPLETE, [(0, 30), (50, 60)], [(4, 5)], bound_ms=60_000)
    found.add_total(bounded)
    found.add_total(total_of("=late,", Status.ABANDONED, [(0, 59)], [(1, 2)], partition=1))
    found.add_total(total_of("gap\u202e", Status.COMPLETE, [(0, 10), (20, 30)], []))
    found.finish()
    return found


def test_the_text_names_each_kind_of_loss() -> None:
    text = "\n".join(lines_of(example()))
    for line in (
        "              orders          proven  may be missing  no bound  of these in doubt"
        "  numbers missing",
        "  ABANDONED        1        59.000 s         0.000 s         1  30.000 s at least"
        "                2",
        "Repeats: 25.00% of the records that count, 2.19% of the time that they report",
        "First number isn't 1, so the beginning is missing: 1 order, 2 numbers",
        "COMPLETE, but with gaps in its time: 1 order, gaps of 10.000 s",
        "1 order with dead letters and no total: nothing of it was billed",
        "3 orders to look at first",
    ):
        assert line in text, text
    order = [text.index(each) for each in ("  lost ", "  =late, ", "  short ")]
    assert order == sorted(order)
    assert "no bound, 30.000 s at least" in text
    assert "never ended, numbers missing, first number isn't 1" in text
    assert "\u202e" not in text


def test_json_and_csv() -> None:
    found = json.loads(json.dumps(as_json(example())))
    assert [each["service_order_number"] for each in found["look_at_first"]] == [
        *("lost", "=late,", "short")
    ]
    lost, late, short = found["look_at_first"]
    assert (lost["status"], lost["dead_letters_ms"]) == (None, 7_200_000)
    assert (late["may_be_missing_ms"], late["at_least_in_doubt_ms"]) == (None, 30_000)
    assert (short["may_be_missing_ms"], short["at_least_in_doubt_ms"]) == (20_000, None)
    assert found["all"]["orders"] == 4
    assert found["missing_by_hour"] == [{"hour_ms": START_MS, "missing_numbers": 4}]
    assert found["dead_letters"]["TOO_LATE"] == {"count": 1, "time_ms": 7_200_000}
    rows = list(csv.DictReader(io.StringIO(as_csv(example()))))
    assert [row["service_order_number"] for row in rows] == ["lost", "'=late,", "short"]
    assert rows[1]["reasons"] == "never ended; numbers missing; first number isn't 1"
    assert rows[1]["may_be_missing_ms"] == ""


def test_numbers_that_were_made_up_spoil_no_sum() -> None:
    found = Leakage(5)
    found.add_total(total_of("a", Status.ABANDONED, [(0, 60)], [(1, 2**62)]))
    found.add_total(total_of("b", Status.ABANDONED, [(0, 60)], [(2, MISSING_NUMBERS_MAX + 1)]))
    found.finish()
    assert found.all_orders.missing_numbers == MISSING_NUMBERS_MAX
    assert sum(found.missing_by_hour.values()) == MISSING_NUMBERS_MAX
    assert (found.made_up.orders, found.missing_first) == (1, 0)
    assert max(each.lost_ms for each in found.suspects) == 0
    assert "a number that was made up or is damaged" in "\n".join(lines_of(found))


def test_numbers_of_a_long_order_are_spread_over_its_hours() -> None:
    found = Leakage(5)
    day = total_of("a", Status.ABANDONED, [(0, 86_400)], [(11, 250)], segments=10)
    found.add_total(day)
    found.finish()
    assert sum(found.missing_by_hour.values()) == 240
    assert len(found.missing_by_hour) == 23
    assert set(found.missing_by_hour) <= {START_MS + at * HOUR_MS for at in range(25)}


def test_dead_letters_of_very_many_orders_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leakage_module, "LETTER_ORDERS_MAX", 2)
    found = Leakage(9)
    for number in ("a", "b", "c", "a", "d"):
        found.add_letter("TOO_LATE", number, 5)
    found.finish()
    assert found.by_reason["TOO_LATE"].count == 5
    assert [(each.number, each.letters.count) for each in found.suspects] == [("a", 2), ("b", 1)]
    assert found.letters_untold == 2
    assert "2 dead letters of further orders" in "\n".join(lines_of(found))


def test_nothing_at_all() -> None:
    found = Leakage(9)
    found.finish()
    assert "Dead letters: none" in "\n".join(lines_of(found))
    assert as_json(found)["look_at_first"] == []


def test_a_forged_total_that_contradicts_itself_is_counted_too() -> None:
    found = Leakage(5)
    ages = [(0, 1), (2**52, 2**52 + 1)]
    found.add_total(total_of("a", Status.ABANDONED, ages, [(2, 3), (9, 9)], segments=1))
    found.finish()
    assert sum(found.missing_by_hour.values()) == 3
