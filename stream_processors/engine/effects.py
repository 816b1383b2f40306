"""What folding gives, and in what steps: totals, dead letters, records to be forwarded."""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from durabill.schemas import Reason
from durabill.schemas.headers import CUT_BATCH, CUT_HEADERS, CUT_KEY, CUT_VALUE
from durabill.schemas.limits import DETAIL_CHARS_MAX, LETTER_BYTES_MAX, LETTER_CUT_BYTES
from durabill.schemas.wire import Headers
from durabill.stream_processors.engine.batch import BatchHeader, Record, Rest

STEP_COST = 24_576
"""A step ends when its work has cost this much, which takes some 10 ms. The unit is a record that
the kernel folds, 0.3 to 0.5 µs."""

PLAIN_COST = 64
"""The cost of a record that the plain core folds, or of an order that it settles."""

TOTAL_COST = 12
"""The cost of a total that the kernel gives."""

PIECE_COST = 6
"""The cost of an interval or a range of numbers in a total that the plain core gives."""

TIMER_COST = 2
"""The cost of a deadline that has moved on by the time its timer comes up."""

BATCH_COST = 50
"""The cost of a call of the kernel, and of a batch that is opened for it."""

COPIED_BYTES = 1024
"""So many bytes that are unpacked, or copied for the plain core, cost one."""

SCAN_COST = 2_000
"""The cost of a look for due rows, beside what they give, where one call was not enough."""

HEADER_COST = 2
"""The cost of a record's header."""

HASHED_BYTES = 1024
"""So many bytes of a record that becomes a dead letter cost one."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that breaks the contract, as it came (but see `dead_letter`), and why."""

    record: Record
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Forward:
    """A record in the wrong partition for its key, to be forwarded, once, to `partition`."""

    record: Record
    partition: int
    headers: Headers


class Total(NamedTuple):
    """A total as the record that it becomes: the order number's bytes, the encoded OrderTotal."""

    key: bytes
    value: bytes


class Opening(NamedTuple):
    """An accepted opening as it came, and its offset: what is passed on of it."""

    key: bytes
    value: bytes
    offset: int


@dataclass(slots=True)
class Effects:
    """What has to be published, in the order in which it came about."""

    totals: list[Total] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    cost: int = field(default=0, compare=False)
    """What the work behind them took; see STEP_COST."""

    def take(self) -> "Effects":
        """Return what there is so far, and begin anew."""
        taken = Effects(self.totals, self.dead_letters, self.forwards, self.openings, self.cost)
        self.totals, self.dead_letters, self.forwards, self.cost = [], [], [], 0
        self.openings = []
        return taken

    def extend(self, others: "Effects") -> None:
        """Add what came after."""
        self.totals += others.totals
        self.dead_letters += others.dead_letters
        self.forwards += others.forwards
        self.openings += others.openings
        self.cost += others.cost


class Step(NamedTuple):
    """A piece of a chunk's folding: what it gave, and where a replay would go on after it."""

    next_offset: int
    effects: Effects


def plain_cost(record: Record) -> int:
    """Return about what it takes the plain core to judge and fold a record."""
    return PLAIN_COST + HEADER_COST * len(record.headers) + len(record.value or b"") // HASHED_BYTES


def dead_letter(record: Record, reason: Reason, detail: str) -> DeadLetter:
    """Return the record as a dead letter that its topic has room for.

    The broker limits a batch as it is compressed, so a record can be of any size. One that is too
    large is cut. It then has the size and the SHA-256 of each part that was cut; the log has the
    record whole.
    """
    if len(detail) > DETAIL_CHARS_MAX:
        detail = detail[: DETAIL_CHARS_MAX - 1] + "…"
    if record.size > LETTER_BYTES_MAX:
        cuts = [
            (name, _size_and_digest(content))
            for name, content in ((CUT_KEY, record.key), (CUT_VALUE, record.value))
            if content is not None and len(content) > LETTER_CUT_BYTES
        ]
        if record.headers:
            cuts.append((CUT_HEADERS, str(len(record.headers)).encode()))
        key, value = (each and each[:LETTER_CUT_BYTES] for each in (record.key, record.value))
        record = record._replace(key=key, value=value, headers=tuple(cuts))
    return DeadLetter(record, reason, detail)


def batch_letter(header: BatchHeader, batch: memoryview, rest: Rest) -> DeadLetter:
    """Return the part of a batch that doesn't count as one dead letter.

    Its value is the beginning of the batch, as the log has it. Its offset is the first one that
    doesn't count.
    """
    cuts = ((CUT_BATCH, _size_and_digest(batch)),)
    value = bytes(batch[:LETTER_CUT_BYTES])
    record = Record(rest.offset, header.max_timestamp_ms, None, value, cuts)
    return dead_letter(record, Reason.BAD_BATCH, rest.detail)


def _size_and_digest(content: bytes | memoryview) -> bytes:
    """Return the size and the SHA-256 of something that is cut."""
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}".encode()
