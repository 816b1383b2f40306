"""The state of one order: what a table says, a worker's page, the gateway and `durabill order`.

A table describes the order (`core.order.describe_order`). The worker's page cuts a page of it and
adds what it alone knows, the lag (`page_of`). JSON leaves out the fields that nobody has set.
"""

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from durabill.schemas.records import Interval, NumberRange
from durabill.schemas.web import Page, cut_page


class Phase(StrEnum):
    """Where an order stands; docs/settling.md says what each phase means."""

    OPEN = "OPEN"
    ENDED = "ENDED"
    SETTLED = "SETTLED"
    REOPENED = "REOPENED"


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What a table keeps of an order's opening; see `order_opened.OrderOpened`."""

    tenant: str
    client: str
    server_timestamp_ms: int
    accept_until_ms: int


class OrderState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an order now. The fields stand in the sequence that JSON has.

    `duration_ms` to `numbers_after_end` are as in OrderTotal. `deadline_ms` is when the phase ends
    by itself: a settlement, or the order is forgotten where it is SETTLED. `interim_deadline_ms`
    is when the next interim total is due, None where none comes before the order settles.
    `intervals` and `missing_numbers` may be cut short; `intervals_count` and
    `missing_numbers_count` are of all. An order that was opened and has no segment yet has a length
    of 0 at its server timestamp.
    """

    service_order_number: str
    phase: Phase
    duration_ms: int
    intervals: list[Interval]
    started_ms: int
    ended_ms: int
    end_number: int | None
    missing_numbers: list[NumberRange]
    segments: int
    duplicates: int
    overlap_ms: int
    gap_ms: int
    numbers_after_end: int
    revision: int
    deadline_ms: int
    interim_deadline_ms: int | None
    source_partition: int
    source_offset: int
    intervals_count: int
    missing_numbers_count: int
    opened: Opened | None = None
    """None where nobody opened the order: it began with a segment, or was opened and forgotten."""

    interval_count: int | UnsetType = UNSET
    missing_range_count: int | UnsetType = UNSET
    next: str | UnsetType | None = UNSET
    """Set on a page, with the two counts: where the next page begins, None on the last."""

    lag: int | UnsetType = UNSET
    """How many records of its partition the worker has not read yet; set on a worker's page."""


def page_of(state: OrderState, page: Page, lag: int) -> OrderState:
    """Return what a worker answers: a page of the state, and the lag of the order's partition.

    The state's lists may be cut short, where they have one more than the page.
    """
    lists = {"intervals": state.intervals, "missing_numbers": state.missing_numbers}
    cut = cut_page(lists, page) | {
        "interval_count": state.intervals_count,
        "missing_range_count": state.missing_numbers_count,
    }
    return msgspec.structs.replace(state, **cut, lag=lag)


def listed_for(page: Page) -> int | None:
    """Return how many of an order's intervals a page can be cut of, from the first; None: all."""
    is_first = page == Page(page.limit)
    return page.limit + 1 if is_first else None
