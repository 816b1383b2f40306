"""The contract's records as frozen values that cannot be made wrong.

Time sequences are half-open, [start_ms, end_ms), in integer milliseconds of the server's
time basis since the epoch. Fields stand in the order of the Avro schemas beside this file.
"""

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from durabill.schemas.errors import BadRecord, BadTotal, Reason
from durabill.schemas.limits import (
    ARRIVES_UNTIL_MS,
    FUTURE_TOLERANCE_MS,
    LONG_MAX,
    ORDER_NUMBER_BYTES_MAX,
    SEGMENT_LENGTH_MAX_MS,
)
from durabill.schemas.units import refused_time


class Interval(NamedTuple):
    """The half-open piece of time [start_ms, end_ms)."""

    start_ms: int
    end_ms: int


class NumberRange(NamedTuple):
    """The business data numbers `first` to `last`, both included."""

    first: int
    last: int


class Status(StrEnum):
    """How an order was settled; RUNNING: it was not, and goes on."""

    COMPLETE = "COMPLETE"
    INCOMPLETE = "INCOMPLETE"
    ABANDONED = "ABANDONED"
    RUNNING = "RUNNING"


def check_order_number(number: str) -> None:
    """Raise BadRecord(BAD_ORDER_NUMBER) unless `number` has 1 to 64 UTF-8 bytes, none a control.

    Control characters are Unicode's category Cc: U+0000 to U+001F and U+007F to U+009F.
    """
    try:
        size = len(number.encode())
    except UnicodeEncodeError as error:
        raise BadRecord(Reason.BAD_ORDER_NUMBER, "holds a lone surrogate") from error
    if not 1 <= size <= ORDER_NUMBER_BYTES_MAX:
        detail = f"has {size} UTF-8 bytes, 1 to {ORDER_NUMBER_BYTES_MAX} are allowed"
        raise BadRecord(Reason.BAD_ORDER_NUMBER, detail)
    if not number.isprintable() and any(unicodedata.category(char) == "Cc" for char in number):
        raise BadRecord(Reason.BAD_ORDER_NUMBER, "holds a control character")


@dataclass(frozen=True, slots=True)
class SegmentEvent:
    """One segment of business data. Raises BadRecord when made against the contract.

    `business_data_number` counts 1, 2, 3 ... within the order. [start_ms, end_ms) may be empty
    only on the segment with the end identifier. Rules that need a clock (IN_THE_FUTURE,
    TOO_LATE) or a key are the stream processor's; TOO_LONG is judged there too, so that the
    order of checks is one.
    """

    service_order_number: str
    business_data_number: int
    start_ms: int
    end_ms: int
    end_identifier: bool

    def __post_init__(self) -> None:
        check_order_number(self.service_order_number)
        if self.business_data_number < 1:
            detail = f"is {_number(self.business_data_number)}, the first number is 1"
            raise BadRecord(Reason.BAD_BUSINESS_DATA_NUMBER, detail)
        if self.business_data_number > LONG_MAX:
            detail = f"is too large, the largest number is {LONG_MAX}"
            raise BadRecord(Reason.BAD_BUSINESS_DATA_NUMBER, detail)
        if (wrong := self._wrong_times()) is not None:
            what = f"[{_number(self.start_ms)}, {_number(self.end_ms)})"
            times_ms = self.start_ms, self.end_ms
            raise refused_time(Reason.BAD_TIME_SEQUENCE, f"{what} {wrong}", *times_ms)

    def _wrong_times(self) -> str | None:
        """Return why the times are no time sequence, None if they are one."""
        if max(self.start_ms, self.end_ms) > LONG_MAX:
            return "does not fit into 64 bits"
        if self.start_ms < 0:
            return "begins before the epoch"
        if self.end_ms < self.start_ms:
            return "ends before it begins"
        if self.start_ms == self.end_ms and not self.end_identifier:
            return "is empty without the end identifier"
        return None


def comes_later(reason: str, start_ms: float, end_ms: float) -> bool:
    """Tell whether a segment that doesn't count for `reason` will, once its end has come.

    So it is where the server's clock was set back after its client had asked for the time.
    """
    is_legal = end_ms - start_ms <= SEGMENT_LENGTH_MAX_MS
    is_ever = end_ms <= ARRIVES_UNTIL_MS + FUTURE_TOLERANCE_MS
    return reason == Reason.IN_THE_FUTURE and is_legal and is_ever


def _number(value: int) -> str:
    """Return a number for a message; Python refuses to show one of thousands of digits."""
    return str(value) if abs(value) <= LONG_MAX + 1 else "a number of more than 64 bits"


@dataclass(frozen=True, slots=True)
class OrderTotal:
    """The proven duration of an order as of one revision. Raises BadTotal if contradictory.

    `duration_ms` is the measure of `intervals`, the union of the accepted segments;
    `upper_bound_ms` what it can be at most if everything missing were found, None where that is
    unknown. `gap_ms` is what no segment covers between `started_ms` and `ended_ms`. `digest` is
    the evidence's SHA-256 (see `core.order.evidence_digest`).
    """

    service_order_number: str
    revision: int
    status: Status
    duration_ms: int
    upper_bound_ms: int | None
    started_ms: int
    ended_ms: int
    intervals: tuple[Interval, ...]
    end_number: int | None
    missing_numbers: tuple[NumberRange, ...]
    segments: int
    duplicates: int
    overlap_ms: int
    gap_ms: int
    numbers_after_end: int
    digest: str
    previous_digest: str
    source_partition: int
    source_offset: int
    settled_at_ms: int

    def __post_init__(self) -> None:
        edges = [edge for interval in self.intervals for edge in interval]
        span_ms = self.ended_ms - self.started_ms
        bound_ms = span_ms if self.upper_bound_ms is None else self.upper_bound_ms
        checks = (
            (all(a < b for a, b in pairwise(edges)), "intervals"),
            (self.duration_ms == sum(b - a for a, b in self.intervals), "duration_ms"),
            (0 <= self.duration_ms <= bound_ms <= span_ms, "upper_bound_ms"),
            (self._may_be_unbounded() or self.upper_bound_ms is not None, "upper_bound_ms"),
            (self.status is not Status.COMPLETE or bound_ms == self.duration_ms, "upper_bound_ms"),
            (self.gap_ms == span_ms - self.duration_ms, "gap_ms"),
            (self.revision >= 1, "revision"),
            (self.revision == 1 or bool(self.previous_digest), "previous_digest"),
            (self.segments >= 1 and self.duplicates >= 0 and self.overlap_ms >= 0, "counts"),
            (self.status is not Status.COMPLETE or not self.missing_numbers, "missing_numbers"),
            (self._has_right_end(), "end_number"),
        )
        wrong = [name for holds, name in checks if not holds]
        if wrong:
            raise BadTotal(f"total of {self.service_order_number!r}: wrong {', '.join(wrong)}")

    def _may_be_unbounded(self) -> bool:
        """Tell whether the beginning or the end of the order is not known."""
        lacks_first = bool(self.missing_numbers) and self.missing_numbers[0].first == 1
        return self.end_number is None or lacks_first

    def _has_right_end(self) -> bool:
        """Tell whether the status and the end number can be together."""
        if self.status is Status.RUNNING:
            return True
        return (self.status is Status.ABANDONED) == (self.end_number is None)
