"""What the totals of a log must be, worked out naively: sets of milliseconds, nothing clever.

Shares with the code under test nothing but the shape of the answer (`OrderTotal`). It keeps every
accepted record of an order and works each total out of all of them anew.
"""

import hashlib
from dataclasses import dataclass, field, replace

from durabill.schemas import Interval, NumberRange, OrderTotal, Status

MINUTE_MS = 60_000
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Segment:
    """The fields of a segment as they stand in the log, legal or not."""

    order: str
    number: int
    start_ms: int
    end_ms: int
    end_identifier: bool


@dataclass(frozen=True)
class Opening:
    """The fields of an opening that matter, legal or not; `owner` is its tenant and its client."""

    order: str
    owner: tuple[str, str]
    begin_ms: int
    until_ms: int


@dataclass(frozen=True)
class Entry:
    """A record of the log. Without a segment and an opening, `garbage` says why it is neither."""

    offset: int
    append_ms: int
    key: bytes
    segment: Segment | None
    garbage: str = ""
    opening: Opening | None = None


@dataclass(frozen=True)
class Times:
    """The policy in milliseconds, and how many pieces an order may have."""

    grace_ms: int
    idle_ms: int
    window_ms: int
    interim_ms: int = 0
    pieces_max: int = 10_000
    opened_only: bool = False
    extends: bool = True


@dataclass
class Life:
    """An order from its first record until it is forgotten."""

    order: str
    accepted: list[tuple[Segment, int]] = field(default_factory=list)
    settled_at_ms: int | None = None
    settlements: int = 0
    reopened_at_ms: int | None = None
    ended_since_ms: int | None = None
    idle_since_ms: int = 0
    running_since_ms: int = 0
    totals: list[OrderTotal] = field(default_factory=list)
    opening: Opening | None = None

    def milliseconds(self) -> set[int]:
        """Return every millisecond that some record holds."""
        return {ms for each, _ in self.accepted for ms in range(each.start_ms, each.end_ms)}

    def numbers(self) -> set[int]:
        """Return the business data numbers seen."""
        return {each.number for each, _ in self.accepted}

    def end_number(self) -> int | None:
        """Return the greatest number that carried the end identifier."""
        return max((each.number for each, _ in self.accepted if each.end_identifier), default=None)

    def evidence(self) -> tuple[set[int], set[int], int | None]:
        """Return what a revision is about."""
        return self.milliseconds(), self.numbers(), self.end_number()

    def missing(self) -> list[int]:
        """Return the numbers that should have come."""
        seen = self.numbers()
        return [number for number in range(1, max(seen) + 1) if number not in seen]

    def deadline_ms(self, times: Times) -> int:
        """Return when an order that has not settled will."""
        if self.reopened_at_ms is not None:
            return self.reopened_at_ms + times.grace_ms * min(1 << (self.settlements - 1), 128)
        if self.ended_since_ms is not None:
            return self.ended_since_ms + times.grace_ms
        return self.idle_since_ms + times.idle_ms

    def last_known_ms(self, times: Times) -> int:
        """Return the last instant at which a settled order is known."""
        assert self.settled_at_ms is not None
        ended_ms = max(each.end_ms for each, _ in self.accepted)
        after_ms = max(self.settled_at_ms, ended_ms - MINUTE_MS) + times.window_ms
        if self.opening is not None:
            after_ms = max(after_ms, self.opening.until_ms)
        return after_ms + MINUTE_MS

    def settle(self, status: Status, settled_at_ms: int) -> None:
        """Write down the next total."""
        self.settled_at_ms = settled_at_ms
        self.reopened_at_ms = None
        self.settlements += 1
        self.totals.append(self.total(status, settled_at_ms))

    def is_too_much(self, segment: Segment, pieces_max: int) -> bool:
        """Tell whether the record would add a piece beyond the limit."""
        after = Life(self.order, [*self.accepted, (segment, 0)])
        for mine, others in (
            (self.milliseconds(), after.milliseconds()),
            (self.numbers(), after.numbers()),
        ):
            if len(runs(others)) > max(pieces_max, len(runs(mine))):
                return True
        return False

    def take(self, segment: Segment, arrival_ms: int, offset: int) -> None:
        """Take in an accepted record."""
        before = self.evidence() if self.accepted else None
        self.accepted.append((segment, offset))
        if before is None:
            self.running_since_ms = arrival_ms
        if self.evidence() == before:
            return
        if self.settled_at_ms is not None:
            self.settled_at_ms = None
            self.reopened_at_ms = self.running_since_ms = arrival_ms
        if self.reopened_at_ms is not None:
            return
        self.idle_since_ms = arrival_ms
        if self.end_number() is None:
            return
        if not self.missing():
            self.settle(Status.COMPLETE, arrival_ms)
        elif self.ended_since_ms is None:
            self.ended_since_ms = arrival_ms

    def settle_if_due(self, now_ms: int, times: Times) -> None:
        """Write down interim totals whose time has come, and settle an order whose has."""
        while self.settled_at_ms is None:
            deadline_ms = self.deadline_ms(times)
            interim_ms = self.running_since_ms + times.interim_ms
            if times.interim_ms and interim_ms < deadline_ms and interim_ms <= now_ms:
                self.totals.append(self.total(Status.RUNNING, interim_ms))
                self.running_since_ms = interim_ms
                continue
            if now_ms < deadline_ms:
                return
            status = Status.ABANDONED if self.end_number() is None else Status.INCOMPLETE
            if self.end_number() is not None and not self.missing():
                status = Status.COMPLETE
            self.settle(status, deadline_ms)

    def total(self, status: Status, settled_at_ms: int) -> OrderTotal:
        """Return the total of all records accepted so far, every field worked out anew."""
        milliseconds, numbers, end_number = self.evidence()
        segments = [each for each, _ in self.accepted]
        started_ms = min(each.start_ms for each in segments)
        ended_ms = max(each.end_ms for each in segments)
        bound_ms: int | None = ended_ms - started_ms
        if status is Status.COMPLETE:
            bound_ms = len(milliseconds)
        elif end_number is None or 1 not in numbers:
            bound_ms = None
        intervals = [(first, last + 1) for first, last in runs(milliseconds)]
        lines = [
            "durabill-evidence-1",
            self.order,
            ",".join(f"{start}-{end}" for start, end in intervals),
            ",".join(f"{first}-{last}" for first, last in runs(numbers)),
            "-" if end_number is None else str(end_number),
        ]
        return OrderTotal(
            service_order_number=self.order,
            revision=len(self.totals) + 1,
            status=status,
            duration_ms=len(milliseconds),
            upper_bound_ms=bound_ms,
            started_ms=started_ms,
            ended_ms=ended_ms,
            intervals=tuple(Interval(*each) for each in intervals),
            end_number=end_number,
            missing_numbers=tuple(NumberRange(*each) for each in runs(set(self.missing()))),
            segments=len(numbers),
            duplicates=len(segments) - len(numbers),
            overlap_ms=sum(each.end_ms - each.start_ms for each in segments) - len(milliseconds),
            gap_ms=ended_ms - started_ms - len(milliseconds),
            numbers_after_end=len(
                [n for n in numbers if end_number is not None and n > end_number]
            ),
            digest=hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest(),
            previous_digest=self.totals[-1].digest if self.totals else "",
            source_partition=0,
            source_offset=self.accepted[-1][1],
            settled_at_ms=settled_at_ms,
        )


def runs(integers: set[int]) -> list[tuple[int, int]]:
    """Return (first, last) of each run of neighbours, in order."""
    found: list[tuple[int, int]] = []
    for integer in sorted(integers):
        if found and found[-1][1] == integer - 1:
            found[-1] = (found[-1][0], integer)
        else:
            found.append((integer, integer))
    return found


def reason(entry: Entry, arrival_ms: int) -> str:
    """Return why a record is a dead letter whatever is known of its order, or nothing."""
    segment = entry.segment
    if entry.opening is not None:
        ahead_ms = entry.opening.begin_ms - arrival_ms
        late_ms = arrival_ms - entry.opening.until_ms
        return "IN_THE_FUTURE" if ahead_ms > MINUTE_MS else "TOO_LATE" if late_ms > 0 else ""
    if segment is None:
        return entry.garbage
    length_ms = segment.end_ms - segment.start_ms
    rules = {
        "KEY_MISMATCH": entry.key != segment.order.encode(),
        "BAD_ORDER_NUMBER": not 1 <= len(segment.order.encode()) <= 64 or "\n" in segment.order,
        "BAD_BUSINESS_DATA_NUMBER": segment.number < 1,
        "BAD_TIME_SEQUENCE": segment.start_ms < 0
        or length_ms < 0
        or (length_ms == 0 and not segment.end_identifier),
        "IN_THE_FUTURE": segment.end_ms > arrival_ms + MINUTE_MS,
        "TOO_LONG": length_ms > DAY_MS,
    }
    return next((name for name, broken in rules.items() if broken), "")


def order_reason(segment: Segment, life: Life, arrival_ms: int, times: Times) -> str:
    """Return why a segment is a dead letter for what is known of its order, or nothing."""
    opening = life.opening
    is_old = segment.end_ms < arrival_ms - times.window_ms
    rules = {
        "TOO_LATE": is_old and (opening is None or arrival_ms > opening.until_ms),
        "NOT_OPENED": opening is None and times.opened_only,
        "BEFORE_OPENING": opening is not None and segment.start_ms < opening.begin_ms,
        "TOO_FRAGMENTED": life.accepted and life.is_too_much(segment, times.pieces_max),
    }
    return next((name for name, broken in rules.items() if broken), "")


@dataclass
class Answer:
    """What a log must give: each order's totals in their sequence, and the dead letters."""

    totals: dict[str, list[OrderTotal]]
    dead_letters: list[tuple[int, str]]
    open_lives: dict[str, Life]
    opened: list[int]
    """The offsets of the openings that were accepted."""


def answer(log: list[Entry], times: Times) -> Answer:
    """Return what `log` must give once every timer has fired."""
    lives: dict[str, Life] = {}
    past: list[Life] = []
    waiting: dict[str, Opening] = {}
    dead_letters, opened = [], []
    arrival_ms = 0
    for entry in log:
        arrival_ms = max(arrival_ms, entry.append_ms)
        why = reason(entry, arrival_ms)
        found = entry.segment or entry.opening
        if why or found is None:
            dead_letters.append((entry.offset, why))
            continue
        order = found.order
        life = lives.get(order)
        if life is not None:
            life.settle_if_due(arrival_ms, times)
            if life.settled_at_ms is not None and arrival_ms > life.last_known_ms(times):
                past.append(lives.pop(order))
                life = None
        if order in waiting and arrival_ms > waiting[order].until_ms + MINUTE_MS:
            del waiting[order]
        if isinstance(found, Opening):
            known = waiting.get(order) if life is None else life.opening
            if life is None and known is None:
                waiting[order] = found
                opened.append(entry.offset)
            elif known is None or known.owner != found.owner:
                dead_letters.append((entry.offset, "ALREADY_OPENED"))
            elif times.extends and found.until_ms > known.until_ms:
                longer = replace(known, until_ms=found.until_ms)
                if life is None:
                    waiting[order] = longer
                else:
                    life.opening = longer
            continue
        begun = life or Life(order, opening=waiting.get(order))
        if why := order_reason(found, begun, arrival_ms, times):
            dead_letters.append((entry.offset, why))
            continue
        if life is None:
            lives[order] = begun
            waiting.pop(order, None)
        begun.take(found, arrival_ms, entry.offset)
    for life in lives.values():
        life.settle_if_due(1 << 60, times)
    totals: dict[str, list[OrderTotal]] = {}
    for life in [*past, *lives.values()]:
        totals.setdefault(life.order, []).extend(life.totals)
    return Answer(totals, dead_letters, lives, opened)
