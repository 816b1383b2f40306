"""An order as a row, and back; see `kernel.rows` for what a row can hold."""

from typing import Any

from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Order, Phase, evidence_digest
from durabill.stream_processors.engine.kernel import rows

_PHASES = {rows.OPEN: Phase.OPEN, rows.ENDED: Phase.ENDED, rows.SETTLED: Phase.SETTLED}
_FLAGS = {phase: flag for flag, phase in _PHASES.items()}


def fits_row(order: Order) -> bool:
    """Tell whether an order can be a row; see `kernel.rows`.

    One whose opening was extended since its last segment can't: only the plain core passes over
    what a replay brings of between the two. So the kernel has nothing to know of extensions.
    """
    return (
        len(order.service_order_number.encode()) <= rows.KEY_BYTES_MAX
        and (order.revision == 0 or order.phase is Phase.SETTLED)
        and order.revision <= rows.REVISION_MAX
        and len(order.time) <= rows.PIECES_MAX
        and len(order.numbers) <= rows.PIECES_MAX
        and order.numbers.last() <= rows.NUMBER_MAX
        and order.accepted < rows.ACCEPTED_MAX
        and not order.forwarded
        and (order.opening is None or order.opening.extended_at < 0)
    )


def row_of(order: Order) -> dict[str, int]:
    """Return the fields of a fitting order's row, without its pieces and its key."""
    settlements = max(0, order.settlements - 1) << rows.TIMES_SETTLED_SHIFT
    return {
        "start_ms": order.started_ms,
        "end_ms": order.ended_ms,
        "deadline_ms": order.deadline_ms,
        "unbilled_since_ms": order.unbilled_since_ms,
        "source_offset": order.source_offset,
        "overlap_ms": order.length_sum_ms - order.time.measure,
        "end_number": order.end_number or 0,
        "accepted": order.accepted,
        "revision": order.revision,
        "flags": rows.USED | _FLAGS[order.phase] | settlements,
    }


def order_of(
    row: Any,
    key: bytes,
    time: list[tuple[int, int]],
    numbers: list[tuple[int, int]],
    partition: int,
    opened: Opened | None,
) -> Order:
    """Return the plain order that a row holds, with its key, its pieces and its opening."""
    order = Order(key.decode(), partition, IntervalSet(time), IntervalSet(numbers))
    order.opening = opened
    order.end_number = int(row["end_number"]) or None
    order.accepted = int(row["accepted"])
    order.length_sum_ms = int(row["overlap_ms"]) + order.time.measure
    order.started_ms = int(row["start_ms"])
    order.ended_ms = int(row["end_ms"])
    flags = int(row["flags"])
    order.phase = _PHASES[flags & rows.PHASE]
    order.deadline_ms = int(row["deadline_ms"])
    order.unbilled_since_ms = int(row["unbilled_since_ms"])
    order.source_offset = int(row["source_offset"])
    order.revision = int(row["revision"])
    if order.revision:
        order.settlements = ((flags & rows.TIMES_SETTLED) >> rows.TIMES_SETTLED_SHIFT) + 1
        # A settled row's evidence is that of its last total: new evidence would have spilled it.
        order.digest = evidence_digest(
            order.service_order_number, order.time, order.numbers, order.end_number
        )
    return order
