"""States of orders, for tests of what passes them on."""

from typing import Any

import msgspec

from durabill.schemas import Interval, NumberRange
from durabill.schemas.order_state import OrderState, Phase


def a_state(number: str = "SO1", *, intervals: int = 1, missing: int = 0) -> OrderState:
    """Return the state of an open order: so many intervals and ranges of missing numbers."""
    return OrderState(
        service_order_number=number,
        phase=Phase.OPEN,
        duration_ms=intervals,
        intervals=[Interval(2 * at, 2 * at + 1) for at in range(intervals)],
        started_ms=0,
        ended_ms=2 * intervals - 1,
        end_number=None,
        missing_numbers=[NumberRange(2 * at, 2 * at) for at in range(1, missing + 1)],
        segments=missing + 1,
        duplicates=0,
        overlap_ms=0,
        gap_ms=intervals - 1,
        numbers_after_end=0,
        revision=0,
        deadline_ms=300_000,
        interim_deadline_ms=None,
        source_partition=0,
        source_offset=4,
        intervals_count=intervals,
        missing_numbers_count=missing,
    )


def as_json(state: OrderState) -> dict[str, Any]:
    """Return the state as it comes out of JSON."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
    return plain
