"""The pure replay: what a partition's log gives, by the recorded terms and nothing else.

A `LogSource` yields what there is of one partition, from Kafka or from the archive. A `Replay`
folds it with the same table as the worker, and is told the terms instead of asking for them. So
totals, dead letters and records sent on come out as they did for the worker, in whatever pieces
either of them read the log.

Two things differ from a worker. A replay never comes back to where it was, so an order's slot is
free as soon as it is forgotten: memory follows the orders that go on. And no registry is asked: an
id that nobody has decided on is unknown, as it is recorded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from durabill.schemas import OWN_SCHEMA_ONLY, WriterSchemas
from durabill.schemas.limits import LONG_MAX
from durabill.schemas.wire import zigzag
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import HEADER, HEADER_SIZE, LOG_APPEND_TIME, Chunk
from durabill.stream_processors.engine.effects import Effects
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.policies import (
    History,
    PolicyRecord,
    Terms,
    in_force,
    split,
)
from durabill.stream_processors.engine.standing import Standing
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.engine.verdicts import RecordedSchemas

CONFIRM_RECORDS = 100_000
"""After so many offsets the slots of forgotten orders are given back."""


class Engine(StrEnum):
    """By what a log is folded: both give the same totals."""

    COLUMNS = "columns"
    """The kernel's columns: fast."""

    REFERENCE = "reference"
    """The plain core, record by record: the specification itself."""


class LogPart(NamedTuple):
    """Some of a partition's log, and what each of its offsets is.

    `chunk` has the batches that count. data + control + aborted + the offsets of `missing` (ranges
    [first, after)) are all offsets of the chunk. `skipped` tells which offsets are control and
    aborted, as (first, after, what).
    """

    chunk: Chunk
    data: int
    control: int = 0
    aborted: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    skipped: tuple[tuple[int, int, Standing], ...] = ()


class LogSource(Protocol):
    """Where a partition's log comes from. It holds the offsets [first_offset, end_offset)."""

    @property
    def partition(self) -> int:
        """Return the partition's number."""

    @property
    def first_offset(self) -> int:
        """Return the first offset that is there."""

    @property
    def end_offset(self) -> int:
        """Return the offset at which the reading ends; it is proven to have been reached."""

    def parts(self) -> Iterator[LogPart]:
        """Yield all of it, in the order of the log; the first begins at `first_offset`."""


@dataclass(frozen=True, slots=True)
class PartitionTerms:
    """What decides a partition's totals besides its log.

    `schemas` is the recorded entry of verdicts on registry ids. `assumed_because` says why the
    history is the settings' and not a recorded one; it is empty where it was recorded.
    """

    history: History
    schemas: bytes | None = None
    assumed_because: str = ""

    @classmethod
    def of_policy(cls, policy: Policy, *, schemas: bytes | None = None) -> "PartitionTerms":
        """Return the terms by which the whole log is billed under one policy."""
        return cls((PolicyRecord(0, Terms(policy, registry=schemas is not None)),), schemas)


class Replayed(NamedTuple):
    """What folding some of the log gave. All before `next_offset` has been folded by then.

    `clock_ms` is the partition's clock then.
    """

    next_offset: int
    clock_ms: int
    effects: Effects


class Replay:
    """Folds one partition's log, chunk after chunk, by given terms."""

    def __init__(
        self,
        place: Place,
        terms: PartitionTerms,
        engine: Engine = Engine.COLUMNS,
        *,
        writers: WriterSchemas = OWN_SCHEMA_ONLY,
        seed: int = 0,
    ) -> None:
        self.terms = terms
        self._schemas = RecordedSchemas(writers, terms.schemas)
        first = in_force(terms.history, 0)
        self._terms: Terms | None = None
        self.table = new_table(engine, place, first.policy, self._schemas, seed)
        self._use(first)
        self._confirm_at = CONFIRM_RECORDS

    def fold(self, chunk: Chunk) -> Iterator[Replayed]:
        """Take in the next chunk; yield what it gives, in steps."""
        table = self.table
        for terms, piece in split(chunk, self.terms.history):
            if terms is not None:
                self._use(terms)
            for step in table.steps(piece):
                yield Replayed(step.next_offset, table.clock_ms, step.effects)
        # The next record begins here or later, so deadlines follow the terms in force here.
        self._use(in_force(self.terms.history, chunk.next_offset))
        if chunk.next_offset >= self._confirm_at:
            self._confirm_at = chunk.next_offset + CONFIRM_RECORDS
            while table.confirm(table.clock_ms):
                pass

    def _use(self, terms: Terms) -> None:
        if terms is not self._terms:
            self._terms = terms
            self.table.set_policy(terms.policy)
            self._schemas.reads_ids = terms.registry
            self._schemas.reads_openings = terms.reads_openings
            self._schemas.extends_openings = terms.extends_openings


def new_table(
    engine: Engine, place: Place, policy: Policy, schemas: WriterSchemas, seed: int = 0
) -> IntervalTable:
    """Return an empty table of an engine."""
    if engine is Engine.REFERENCE:
        return PlainTable(place, policy, schemas)
    from durabill.stream_processors.engine.columns import ColumnTable  # numba is for those who fold

    return ColumnTable(place, policy, schemas, seed=seed)


def replay_partition(
    source: LogSource,
    terms: PartitionTerms,
    partitions: int,
    engine: Engine = Engine.COLUMNS,
    *,
    seed: int = 0,
) -> Iterator[Replayed]:
    """Yield what a partition's log gives, from its first offset to its end.

    The topic has `partitions` of them. Totals come in the order in which they fall due in the log;
    those of one order in the order of their revisions.
    """
    replay = Replay(Place(source.partition, partitions), terms, engine, seed=seed)
    for part in source.parts():
        yield from replay.fold(part.chunk)


def cuts_of(terms: PartitionTerms) -> tuple[int, ...]:
    """Return the offsets from which on other terms hold, ascending."""
    return tuple(sorted({each.from_offset for each in terms.history}))


Row = tuple[int, int, bytes | None, bytes | None, Iterable[tuple[str, bytes | None]]]
"""(offset, append_ms, key, value, headers) of one record."""

BATCH_ROWS_MAX = 10_000


def chunk_of_rows(
    rows: Iterable[Row], first_offset: int, next_offset: int, cuts: Sequence[int] = ()
) -> Chunk:
    """Return the chunk that holds these records, as uncompressed batches.

    Offsets rise, and lie in [first_offset, next_offset). A batch is folded against one append time,
    so a batch ends where the append time changes. One also begins at each of the `cuts`, ascending:
    other terms hold from the first batch on that begins at or after their offset (give the
    `cuts_of` the partition's terms).
    """
    batches: list[bytes] = []
    body: list[bytes] = []
    base, last, time_ms = first_offset, first_offset, -1
    ahead = iter([*(each for each in cuts if each > first_offset), LONG_MAX])
    cut = next(ahead)
    for offset, append_ms, key, value, headers in rows:
        if body and (append_ms != time_ms or len(body) == BATCH_ROWS_MAX or offset >= cut):
            batches.append(_batch(base, last, time_ms, body))
            body = []
        while offset >= cut:
            cut = next(ahead)
        if not body:
            base, time_ms = offset, append_ms
        body.append(_record(offset - base, key, value, headers))
        last = offset
    if body:
        batches.append(_batch(base, last, time_ms, body))
    return Chunk(first_offset, next_offset, b"".join(batches))


_NULL = zigzag(-1)
_SIZES = tuple(map(zigzag, range(4096)))
"""The lengths and offset deltas that nearly all records have, encoded."""


def _varint(number: int) -> bytes:
    return _SIZES[number] if number < len(_SIZES) else zigzag(number)


def _sized(content: bytes | None) -> bytes:
    return _NULL if content is None else _varint(len(content)) + content


def _record(
    delta: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
) -> bytes:
    known = tuple(headers) if headers else ()
    parts = [b"\0\0", _varint(delta), _sized(key), _sized(value), _varint(len(known))]
    for name, content in known:
        parts += _sized(name.encode()), _sized(content)
    record = b"".join(parts)
    return _varint(len(record)) + record


def _batch(base: int, last: int, append_ms: int, body: list[bytes]) -> bytes:
    packed = b"".join(body)
    size = HEADER_SIZE + len(packed) - 12
    header = HEADER.pack(
        *(base, size, 0, 2, 0, LOG_APPEND_TIME, last - base, append_ms, append_ms),
        *(-1, -1, -1, len(body)),
    )
    return header + packed
