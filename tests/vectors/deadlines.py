"""Histories of deadlines: what is evidence, what moves them, and the instant at which they come."""

from collections.abc import Iterator
from dataclasses import replace

from tests.vectors.orders import POLICY, History, S


def of_evidence() -> Iterator[History]:
    """What is new evidence, and what comes of it."""
    log = History("two ends", "The greatest number that carried the end identifier is the end")
    log.segment(11, 1, 0, 10)
    log.segment(21, 4, 30, 40, end=True)
    log.segment(22, 2, 10, 20, end=True)
    log.segment(51, 3, 20, 30)
    yield log

    log = History("an earlier end", "All numbers are there: gaps, and numbers after the end, show")
    log.segment(11, 2, 10, 20, end=True)
    log.segment(12, 3, 25, 30)
    log.segment(13, 1, 0, 10)
    yield log

    says = "New time, a new number, a greater end: each reopens. A repeat doesn't"
    log = History("what reopens", says)
    log.segment(11, 1, 0, 10, end=True)
    log.segment(20, 1, 0, 10, end=True)
    log.segment(100, 1, 5, 15, end=True)
    log.mark(130)
    log.segment(200, 2, 0, 10)
    log.mark(260)
    log.segment(300, 2, 0, 10, end=True)
    log.mark(420)
    yield log

    log = History("number 1 is missing", "Nobody knows the bound then")
    log.segment(21, 2, 10, 20)
    log.segment(31, 3, 20, 30, end=True)
    log.mark(61)
    yield log

    log = History("beyond ASCII", "The digest is of the order number's UTF-8")
    log.segment(11, 1, 0, 10, end=True, order="日本-7")
    yield log


def at_their_edges() -> Iterator[History]:
    """What moves a deadline, what doesn't, and the instant at which it comes."""
    log = History("waiting for the grace", "New evidence puts the end of the wait off no more")
    log.segment(11, 1, 0, 10)
    log.segment(31, 3, 20, 30, end=True)
    log.segment(51, 5, 40, 50)
    log.mark(60.999)
    log.mark(61)
    yield log

    log = History("waiting for the next", "Each new segment puts it off")
    log.segment(11, 1, 0, 10)
    log.segment(200, 2, 190, 200)
    log.mark(499.999)
    log.mark(500)
    yield log

    says = "Complete or not, corrections are gathered until a deadline that nothing moves"
    log = History("corrections are gathered", says)
    log.segment(11, 1, 0, 10, end=True)
    log.segment(100, 3, 20, 30, end=True)
    log.segment(110, 2, 10, 20)
    log.segment(120, 4, 30, 40)
    log.mark(129.999)
    log.segment(130, 5, 40, 50)
    yield log

    says = "Each settlement doubles the next wait, up to 128 times the grace"
    log = History("a flood of corrections", says, replace(POLICY, settle_grace_ms=S))
    log.segment(1, 1, 0, 1, end=True)
    at_s = 1
    for number in range(2, 12):
        at_s += 1
        log.segment(at_s, number, number - 1, number)
        at_s += min(1 << (number - 2), 128)
        log.mark(at_s - 0.001)
        log.mark(at_s)
    yield log

    log = History("the broker's clock runs back", "The arrival is the greatest append time so far")
    log.segment(11, 1, 0, 10)
    log.mark(300)
    log.segment(200, 2, 330, 340)
    log.segment(100, 3, 350, 360.001)
    log.mark(600)
    yield log

    says = "What is due at its arrival comes at once, and no later arrival is earlier"
    log = History("a dead letter tells the time", says)
    log.segment(11, 1, 0, 10)
    log.add(311, b"SO2", b"")
    log.segment(250, 2, 361, 371)
    yield log


def of_interim_totals() -> Iterator[History]:
    """When RUNNING totals come, and when they don't."""
    policy = replace(POLICY, idle_timeout_ms=600 * S)
    log = History("interim at the deadline", "Where both are due only the settlement comes", policy)
    log.segment(11, 1, 0, 10)
    log.mark(611)
    yield log

    log = History(
        "no interim totals", "An interval of 0 is never", replace(POLICY, interim_interval_ms=0)
    )
    log.segment(11, 1, 0, 10)
    log.segment(300, 2, 290, 300)
    log.segment(599, 3, 590, 599)
    log.mark(899)
    yield log

    policy = replace(POLICY, settle_grace_ms=150 * S, interim_interval_ms=100 * S)
    says = "The interval begins anew where an order is reopened; a RUNNING total doubles no wait"
    log = History("interim of corrections", says, policy)
    log.segment(11, 1, 0, 10)
    log.segment(31, 3, 20, 30, end=True)
    log.mark(181)
    log.segment(300, 2, 10, 20)
    log.mark(399.999)
    log.mark(400)
    log.mark(450)
    yield log
