"""Histories of orders that are opened, forgotten, and begun anew."""

from collections.abc import Iterator
from dataclasses import replace

from tests.vectors.orders import POLICY, History, S

_ONLY = replace(POLICY, opened_only=True)
_BRIEF = replace(POLICY, correction_window_ms=100 * S)
"""An order that settled is forgotten 160 s later."""


def of_second_lives() -> Iterator[History]:
    """When an order is forgotten, and when just not yet."""
    log = History("forgotten", "After the correction window the number begins a new order")
    log.segment(11, 1, 0, 10, end=True)
    log.mark(4_000)
    log.segment(4_001, 1, 3_990, 4_000, end=True)
    yield log

    log = History("forgotten by its settlement", "Known for the window and a minute more", _BRIEF)
    for order in ("SO1", "SO2"):
        log.segment(11, 1, 0, 10, end=True, order=order)
    log.segment(171, 2, 165, 171, order="SO1")
    log.segment(171.001, 1, 165, 171, end=True, order="SO2")
    log.mark(201)
    yield log

    says = "An empty end segment that is no evidence moves the greatest end, and so the time"
    log = History("forgotten by its greatest end", says, _BRIEF)
    for order in ("SO1", "SO2"):
        log.segment(11, 1, 0, 10, end=True, order=order)
        log.segment(150, 1, 205, 205, end=True, order=order)
    log.segment(305, 2, 300, 305, order="SO1")
    log.segment(305.001, 1, 300, 305, end=True, order="SO2")
    log.mark(335)
    yield log


def of_openings() -> Iterator[History]:
    """What an opening changes."""
    log = History("opened", "An opening: nothing begins before it, and lateness is by its promise")
    log.opening(0, 10_000)
    log.opening(1, 10_000)
    log.opening(2, 10_000, client="bike-8")
    log.segment(3, 1, -1, 3)
    log.segment(9_000, 1, 0, 10)
    log.segment(9_001, 2, 10, 20, end=True)
    yield log

    log = History("extended", "Opened again for longer by the same client, late and settled")
    log.opening(0, 5_000)
    log.segment(5_001, 1, 0, 10, end=True)
    log.opening(5_002, 5_010)
    log.segment(5_003, 1, 0, 10, end=True)
    log.opening(5_060, 20_000)
    log.opening(5_061, 10_000)
    log.opening(5_062, 30_000, client="bike-8")
    log.segment(19_999, 2, 10, 20, end=True)
    log.mark(20_060)
    log.segment(20_061, 3, 20, 30, end=True)
    yield log

    log = History("opened only", "Where only opened orders are taken", _ONLY)
    log.segment(11, 1, 0, 10, end=True)
    log.opening(20, 10_000)
    log.segment(31, 1, 20, 30, end=True)
    yield log

    yield from _openings_by_others_and_late()


def _openings_by_others_and_late() -> Iterator[History]:
    log = History("opened by others", "The first opening holds; a segment may have begun it")
    log.opening(0, 10_000)
    log.opening(1, 20_000, tenant="other")
    log.segment(2, 1, 0, 2, order="SO2")
    log.opening(3, 10_000, order="SO2")
    yield log

    log = History(
        "accepted until", "Old segments count until that arrival, and not after it", _BRIEF
    )
    log.opening(0, 500)
    log.segment(500, 1, 0, 10)
    log.segment(500.001, 2, 10, 20, end=True)
    log.segment(500.002, 2, 490, 500, end=True)
    log.mark(530.002)
    yield log

    log = History("opened and forgotten", "Not before the promise is a minute past", _BRIEF)
    for order in ("SO1", "SO2"):
        log.opening(0, 500, order=order)
        log.segment(385, 1, 375, 385, end=True, order=order)
    log.opening(560, 9_000, client="bike-8", order="SO1")
    log.opening(560.001, 9_000, client="bike-8", order="SO2")
    yield log

    log = History("opened and silent", "Without a segment there is no total", _BRIEF)
    for order in ("SO1", "SO2"):
        log.opening(0, 500, order=order)
    log.opening(560, 9_000, client="bike-8", order="SO1")
    log.opening(560.001, 9_000, client="bike-8", order="SO2")
    yield log
