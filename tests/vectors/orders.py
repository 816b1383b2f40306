"""Logs of a partition, and what comes of them: totals with bytes and digests, dead letters."""

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

    def opening(
        self,
        at_s: float,
        until_s: float,
        client: str = "bike-7",
        *,
        tenant: str = "acme",
        order: str = "SO1",
    ) -> None:
        """Append an opening of an order that begins at its arrival."""
        begin_ms, until_ms = T0_MS + round(at_s * S), T0_MS + round(until_s * S)
        opened = OrderOpened(order, tenant, client, "ride", (), begin_ms, 10 * S, until_ms)
        self.add(at_s, order.encode(), encode_opening(opened))

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
