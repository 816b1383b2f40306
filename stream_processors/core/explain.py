"""What became of an order, replayed from the log: each record's verdict, and each total's cause.

Decides nothing itself: `accept`, `admit` and `Order` do, in the sequence in which a partition's
table calls them. So what is explained here is what a table published, as long as the log is whole
and the policies are those that were in force.

A partition's time moves by all its records, also by those of other orders and by clock marks. So
`explain` wants every record of the partition, and looks into those that may be the order's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from durabill.schemas import (
    BadRecord,
    Interval,
    OrderOpened,
    OrderTotal,
    Reason,
    SegmentEvent,
    Status,
    is_clock_mark,
    is_opening,
    read_clock_mark,
)
from durabill.schemas.limits import ORDER_PIECES_MAX
from durabill.schemas.order_state import OrderState, Phase
from durabill.schemas.wire import RawSegment
from durabill.stream_processors.core.admission import (
    Admission,
    Fate,
    Known,
    LogRecord,
    Place,
    accept,
    accept_opening,
    admit,
    admit_opening,
)
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import (
    DEADLINE_OF,
    Deadline,
    Order,
    Policy,
    Source,
    describe_order,
)

PolicyAt = Callable[[int], Policy]
"""Returns the policy in force for a record at an offset."""

Read = Callable[[bytes | None, int], RawSegment]
"""Returns the raw fields of the value at an offset, or raises BadRecord; `WriterSchemas.read`."""

IsOpening = Callable[[bytes | None, int], bool]
"""Tells whether the value at an offset claims to be an opening, and openings are read there."""

Extends = Callable[[int], bool]
"""Tells whether the opening at an offset may extend one before it, by the rules in force there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one record of the order. `life` counts the lives of its number from 1.

    A record that no life takes in has the life that was going on, 0 where there was none. `raw` is
    what could be read of the value; `arrival_ms` is the partition's clock at the record.
    `gained_ms` and `is_new_number` are what an accepted record added; `phase` is the order's after
    it, None where nothing is known of the order.
    """

    record: LogRecord
    raw: RawSegment | None
    arrival_ms: int
    life: int
    fate: Fate | None = None
    """None: a dead letter, for `reason`."""

    partition: int | None = None
    """Where the record was forwarded to, if it was."""

    source: Source | None = None
    """Where it was forwarded from, if it was."""

    reason: Reason | None = None
    detail: str = ""
    gained_ms: int = 0
    gained: tuple[Interval, ...] = ()
    """What an accepted record added to the order's time; the rest of it was counted already."""

    is_new_number: bool = False
    reopens: bool = False
    phase: Phase | None = None
    opened: OrderOpened | None = None
    """What an opening says, where the record is one that can be read."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A total that a life gave. The record at `offset` completed it where `deadline` is None.

    Else the deadline passed; `offset` is the record that had set it, None of an interim one.
    """

    total: OrderTotal
    life: int
    deadline: Deadline | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A life is over: the partition's time has passed `at_ms`."""

    life: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Lapsed:
    """No segment came in time to the opening at `offset`: it is forgotten since `at_ms`."""

    offset: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands at the end of the log. `state` is None where no order is known (any more).

    `opening` is the order's, or the one that waits for its first segment.
    """

    life: int
    state: OrderState | None
    clock_ms: int
    next_offset: int
    """The offset after the last record."""

    opening: Opened | None = None


Happening = Verdict | Revision | Forgotten | Lapsed | Standing


def always_opening(value: bytes | None, offset: int) -> bool:
    """Tell whether a value claims to be an opening, where openings are read all over the log."""
    return is_opening(value)


def explain(
    number: str,
    log: Iterable[LogRecord],
    place: Place,
    policy_at: PolicyAt,
    read: Read,
    *,
    is_opening_at: IsOpening = always_opening,
    extends_at: Extends = lambda offset: True,
    pieces_max: int = ORDER_PIECES_MAX,
) -> Iterator[Happening]:
    """Yield what happened to an order in a partition, in the sequence of its time.

    `log` is every record of the partition from its start on; a `Standing` comes last. Nothing is
    kept but the order, however many records there are.
    """
    replay = _Replay(number, place, policy_at, read, is_opening_at, extends_at, pieces_max)
    return replay.run(log)


class _Replay:
    """One order's part of a partition's table."""

    def __init__(
        self,
        number: str,
        place: Place,
        policy_at: PolicyAt,
        read: Read,
        is_opening_at: IsOpening,
        extends_at: Extends,
        pieces_max: int,
    ) -> None:
        self._number = number
        self._key = number.encode()
        self._place = place
        self._policy_at = policy_at
        self._read = read
        self._is_opening_at = is_opening_at
        self._extends_at = extends_at
        self._pieces_max = pieces_max
        self._policy = policy_at(0)
        self._clock_ms = 0
        self._order: Order | None = None
        self._opening: Opened | None = None
        """The opening that waits for the order's first segment."""
        self._life = 0
        self._set_by: int | None = None
        """The record that set the order's deadline."""

    def run(self, log: Iterable[LogRecord]) -> Iterator[Happening]:
        """Yield all that happens."""
        next_offset = 0
        for record in log:
            policy = self._policy_at(record.offset)
            if policy is not self._policy:
                # What the records before have made due was given by the policy before.
                yield from self._give_due()
                self._policy = policy
            self._clock_ms = max(self._clock_ms, record.append_ms)
            next_offset = record.offset + 1
            if record.key == self._key or self._key in (record.value or b""):
                yield from self._fold(record)
        yield from self._pass_time()
        self._policy = self._policy_at(next_offset)
        order = self._order
        state = None if order is None else describe_order(order, self._policy)
        opening = self._opening if order is None else order.opening
        yield Standing(self._life, state, self._clock_ms, next_offset, opening)

    def _fold(self, record: LogRecord) -> Iterator[Happening]:
        """Judge a record that may be the order's, as a table does."""
        raw: RawSegment | None = None
        try:
            if is_clock_mark(record.value):
                read_clock_mark(record.key, record.value or b"")
                return
            if self._is_opening_at(record.value, record.offset):
                yield from self._fold_opening(record)
                return
            raw = self._read(record.value, record.offset)
            if self._key not in (record.key, raw[0]):
                return  # the number only happens to be among other bytes
            yield from self._pass_time()
            event = accept(raw, record.key, self._clock_ms)
            known = Known(self._order, self._opening)
            admission = admit(
                record, event, known, self._place, self._clock_ms, self._policy, self._pieces_max
            )
        except BadRecord as error:
            if raw is not None or record.key == self._key:
                yield from self._pass_time()
                yield self._verdict(record, raw, reason=error.reason, detail=error.detail)
            return
        yield from self._admitted(record, raw, event, admission)

    def _fold_opening(self, record: LogRecord) -> Iterator[Happening]:
        """Judge a record that claims to be an opening, maybe of another order."""
        assert record.value is not None
        opened: OrderOpened | None = None
        try:
            opened = accept_opening(record.key, record.value, self._clock_ms)
            if record.key != self._key:
                return
            yield from self._pass_time()
            known = Known(self._order, self._opening)
            fate, partition, source = admit_opening(
                record,
                opened,
                known,
                self._place,
                self._clock_ms,
                extends=self._extends_at(record.offset),
            )
        except BadRecord as error:
            if record.key == self._key:
                yield from self._pass_time()
                yield self._verdict(
                    record, None, reason=error.reason, detail=error.detail, opened=opened
                )
            return
        if fate is Fate.OPENS:
            self._opening = Opened.by(opened, record.offset)
        elif fate is Fate.EXTENDS:
            self._extend(opened, record.offset)
        where = partition if fate is Fate.FORWARDED else None
        yield self._verdict(record, None, fate=fate, partition=where, source=source, opened=opened)

    def _extend(self, opened: OrderOpened, offset: int) -> None:
        order = self._order
        if order is not None:
            assert order.opening is not None
            order.extend(order.opening.extended_by(opened, offset))
        else:
            assert self._opening is not None
            self._opening = self._opening.extended_by(opened, offset)

    def _admitted(
        self, record: LogRecord, raw: RawSegment, event: SegmentEvent, admission: Admission
    ) -> Iterator[Happening]:
        fate, partition, source = admission
        if fate is Fate.FORWARDED:
            yield self._verdict(record, raw, fate=fate, partition=partition)
            return
        if fate is Fate.BEGINS:
            self._order = Order(self._number, self._place.partition, opening=self._opening)
            self._opening = None
            self._life += 1
        order = self._order
        assert order is not None, "one that begins is new, one that counts was known"
        if fate is Fate.SEEN_BEFORE:
            yield self._verdict(record, raw, fate=fate, source=source)
            return
        duration_ms, numbers = order.time.measure, order.numbers.measure
        gained = order.time.missing(event.start_ms, event.end_ms)
        phase, deadline_ms = order.phase, order.deadline_ms
        total = order.apply(event, self._clock_ms, record.offset, self._policy, source)
        if order.deadline_ms != deadline_ms:
            self._set_by = record.offset
        yield self._verdict(
            record,
            raw,
            fate=fate,
            source=source,
            gained_ms=order.time.measure - duration_ms,
            gained=tuple(Interval(*each) for each in gained),
            is_new_number=order.numbers.measure > numbers,
            reopens=(phase, order.phase) == (Phase.SETTLED, Phase.REOPENED),
        )
        if total is not None:
            yield Revision(total, self._life, None, record.offset)

    def _verdict(self, record: LogRecord, raw: RawSegment | None, **more: Any) -> Verdict:
        order = self._order
        life, phase = (0, None) if order is None else (self._life, order.phase)
        return Verdict(record, raw, self._clock_ms, life, phase=phase, **more)

    def _pass_time(self) -> Iterator[Happening]:
        """Give the totals that are due by the clock, and forget the order if its time is over."""
        yield from self._give_due()
        order = self._order
        if order is not None and order.is_forgotten(self._clock_ms):
            yield Forgotten(self._life, order.deadline_ms)
            self._order = None
        opening = self._opening
        if opening is not None and opening.is_forgotten(self._clock_ms):
            yield Lapsed(opening.offset, opening.known_until_ms)
            self._opening = None

    def _give_due(self) -> Iterator[Revision]:
        """Give the totals whose deadline has come."""
        order = self._order
        while order is not None and order.is_due(self._clock_ms, self._policy):
            deadline, set_by = DEADLINE_OF[order.phase], self._set_by
            total = order.give_due(self._policy)
            if total.status is Status.RUNNING:
                yield Revision(total, self._life, Deadline.INTERIM_INTERVAL, None)
            else:
                yield Revision(total, self._life, deadline, set_by)
