"""Logs of a partition, and what comes of them: totals with bytes and digests, dead letters."""

from collections.abc import Iterator
from typing import Any

from durabill.schemas import (
    ClockMark,
    SegmentEvent,
    WriterSchemas,
    decode_total,
    encode_clock_mark,
    encode_segment,
    total_record,
)
from durabill.schemas.order_opened import OrderOpened, encode_opening
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects
from tests.property.batches import encode_batch

T0_MS = 1_800_000_000_000
S = 1_000
POLICY = Policy(
    settle_grace_ms=30 * S,
    idle_timeout_ms=300 * S,
    correction_window_ms=3_600 * S,
    interim_interval_ms=600 * S,
)
PLACE = Place(0, 1)


def fold_one(
    place: Place, policy: Policy, append_ms: int, key: bytes | None, value: bytes | None
) -> Effects:
    """Return what one record gives in a partition that holds nothing else."""
    table = PlainTable(place, policy, WriterSchemas())
    return table.fold(Chunk(0, 1, encode_batch(0, append_ms, [(0, (key, value, ()))])))


class History:
    """A log that grows record by record, and what it gives."""

    def __init__(self, name: str, says: str, policy: Policy = POLICY) -> None:
        self._name = name
        self._says = says
        self._policy = policy
        self._table = PlainTable(PLACE, policy, WriterSchemas())
        self._records: list[dict[str, Any]] = []
        self._totals: list[dict[str, Any]] = []
        self._letters: list[dict[str, Any]] = []
        self._openings: list[int] = []

    def add(self, at_s: float, key: bytes | None, value: bytes) -> None:
        """Append a record so many seconds after T0."""
        offset, append_ms = len(self._records), T0_MS + round(at_s * S)
        self._records.append(
            {
                "offset": offset,
                "append_ms": append_ms,
                "key_hex": None if key is None else key.hex(),
                "value_hex": value.hex(),
            }
        )
        data = encode_batch(offset, append_ms, [(offset, (key, value, ()))])
        effects = self._table.fold(Chunk(offset, offset + 1, data))
        self._totals += [_total(offset, each.value) for each in effects.totals]
        self._openings += [each.offset for each in effects.openings]
        self._letters += [
            {"offset": each.record.offset, "reason": each.reason.value}
            for each in effects.dead_letters
        ]

    def segment(
        self,
        at_s: float,
        number: int,
        start_s: float,
        end_s: float,
        *,
        end: bool = False,
        order: str = "SO1",
    ) -> None:
        """Append a segment; times are seconds after T0."""
        times_ms = T0_MS + round(start_s * S), T0_MS + round(end_s * S)
        self.add(at_s, order.encode(), encode_segment(SegmentEvent(order, number, *times_ms, end)))

    def mark(self, at_s: float) -> None:
        """Append a clock mark: time goes on."""
        self.add(at_s, None, encode_clock_mark(ClockMark("durabill", T0_MS)))

    def opening(self, at_s: float, until_s: float, client: str = "bike-7") -> None:
        """Append an opening of SO1 that begins at its arrival."""
        begin_ms, until_ms = T0_MS + round(at_s * S), T0_MS + round(until_s * S)
        opened = OrderOpened("SO1", "acme", client, "ride", (), begin_ms, 10 * S, until_ms)
        self.add(at_s, b"SO1", encode_opening(opened))

    def as_json(self) -> dict[str, Any]:
        """Return the log and all that it gives."""
        return {
            "name": self._name,
            "says": self._says,
            "policy": {
                "settle_grace_ms": self._policy.settle_grace_ms,
                "idle_timeout_ms": self._policy.idle_timeout_ms,
                "correction_window_ms": self._policy.correction_window_ms,
                "interim_interval_ms": self._policy.interim_interval_ms,
                "opened_only": self._policy.opened_only,
            },
            "records": self._records,
            "totals": self._totals,
            "dead_letters": self._letters,
            "openings_passed_on": self._openings,
        }


def _total(offset: int, value: bytes) -> dict[str, Any]:
    decode_total(value)  # its fields fit together
    return {"given_at_offset": offset, "total": total_record(value), "value_hex": value.hex()}


def orders_file() -> dict[str, Any]:
    """Return all histories."""
    return {
        "about": "Logs of partition 0 of 1. `given_at_offset` is the record at whose arrival a "
        "total is given; a deadline that has come is settled before the record that brings it.",
        "histories": [each.as_json() for each in _histories()],
    }


def _histories() -> Iterator[History]:
    yield from _of_segments()
    yield from _of_openings()


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

    log = History("forgotten", "After the correction window the number begins a new order")
    log.segment(11, 1, 0, 10, end=True)
    log.mark(4_000)
    log.segment(4_001, 1, 3_990, 4_000, end=True)
    yield log


def _of_openings() -> Iterator[History]:
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

    only = Policy(
        POLICY.settle_grace_ms,
        POLICY.idle_timeout_ms,
        POLICY.correction_window_ms,
        POLICY.interim_interval_ms,
        opened_only=True,
    )
    log = History("opened only", "Where only opened orders are taken", only)
    log.segment(11, 1, 0, 10, end=True)
    log.opening(20, 10_000)
    log.segment(31, 1, 20, 30, end=True)
    yield log
