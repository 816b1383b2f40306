"""The histories of `vectors/orders.json`: each shows a rule, at the very instant where it can."""

from collections.abc import Iterator
from typing import Any

from tests.vectors.deadlines import at_their_edges, of_evidence, of_interim_totals
from tests.vectors.lives import of_openings, of_second_lives
from tests.vectors.orders import History


def orders_file() -> dict[str, Any]:
    """Return all histories."""
    return {
        "about": "Logs of partition 0 of 1. `given_at_offset` is the record at whose arrival a "
        "total is given; a deadline that has come is settled before the record that brings it.",
        "histories": [each.as_json() for each in _histories()],
    }


def _histories() -> Iterator[History]:
    yield from _of_segments()
    yield from of_evidence()
    yield from at_their_edges()
    yield from of_interim_totals()
    yield from of_second_lives()
    yield from of_openings()


def _of_segments() -> Iterator[History]:
    log = History("complete", "Out of order and repeated: COMPLETE when the last number is there")
    log.segment(21, 2, 10, 20)
    log.segment(22, 1, 0, 10)
    log.segment(23, 2, 10, 20)
    log.segment(31, 3, 20, 25.5, end=True)
    yield log

    log = History("empty end", "The last segment may be of zero length, and the only one")
    log.segment(1, 1, 0, 0, end=True)
    yield log

    log = History("incomplete", "Number 2 never comes: INCOMPLETE a grace after the end")
    log.segment(11, 1, 0, 10)
    log.segment(31, 3, 20, 30, end=True)
    log.mark(60.999)
    log.mark(61)
    yield log

    log = History("abandoned", "No end comes: ABANDONED when nothing new came for the timeout")
    log.segment(11, 1, 0, 10)
    log.segment(200, 1, 0, 10)
    log.mark(311)
    yield log

    log = History("corrected", "What was missing comes late: a second revision")
    log.segment(11, 1, 0, 10)
    log.segment(31, 3, 20, 30, end=True)
    log.mark(61)
    log.segment(100, 2, 10, 20)
    log.mark(130)
    yield log

    log = History("overlap and gap", "Time in two segments counts once; numbers after the end tell")
    log.segment(11, 1, 0, 10)
    log.segment(21, 2, 5, 15)
    log.segment(41, 9, 60, 70)
    log.segment(51, 3, 30, 40, end=True)
    log.mark(81)
    yield log

    log = History("interim", "An order that goes on gives a RUNNING total each interval")
    for number in range(1, 8):
        log.segment(number * 120, number, (number - 1) * 120, number * 120)
    yield log
