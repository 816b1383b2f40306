"""Walks a table of the ledger beside the topic whose records its rows stand for.

Theory of operation. Both are streams in the order of the topic's offsets. One snapshot of the
database is taken before the ends of the topic, and all processes share it. So every row must stand
for a record that is there, and every record before the ledger's own offset must have its row, also
while a ledger goes on writing. `ledger_rows` and `ledger_orders` say what a row must be, and when a
record rightly has none.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.rows import TupleRow

from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.totals_log import Published
from durabill.stream_processors.dsn import connect

Connection = psycopg.Connection[TupleRow]
R = TypeVar("R", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class LedgerView:
    """One moment of a ledger, which several processes can look at; picklable."""

    dsn: str
    snapshot: str
    next_offsets: dict[int, int]
    """Partition of the totals topic -> the offset up to which the ledger says it has read."""
    rows_to: dict[int, int]
    """Partition -> the offset up to which there are rows: so far the ledger must have read."""

    has_orders: bool = False
    """Whether there is a table of orders: a ledger from before has none."""
    orders_next: dict[int, int] = field(default_factory=dict)
    orders_rows_to: dict[int, int] = field(default_factory=dict)
    """The same two of the orders topic."""


def look_at(view: LedgerView) -> Connection:
    """Return a connection that sees the ledger as it was at the view's moment."""
    connection = connect(view.dsn)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    connection.execute(f"SET TRANSACTION SNAPSHOT '{view.snapshot}'")
    return connection


class LedgerWalk(ABC, Generic[R]):
    """The rows of one partition, told of its records as they pass by; must be closed.

    A row is a tuple that begins with its record's offset. `next_offset` is where the ledger says
    that it reads on, `rows_to` up to where it has rows.
    """

    def __init__(
        self, view: LedgerView, topic: str, partition: int, next_offset: int, rows_to: int
    ) -> None:
        self.findings: list[Finding] = []
        self.rows = 0
        self.proven = 0
        self.not_yet_recorded = 0
        self.topic = topic
        self.partition = partition
        self._view = view
        self._next_offset = next_offset
        self._read_to = max(next_offset, rows_to)
        self._rows: Generator[R, None, None] | None = None
        self._row: R | None = None
        self._looking: Connection | None = None

    @property
    def connection(self) -> Connection:
        """Return the open connection."""
        assert self._looking is not None, "it is open"
        return self._looking

    def open(self) -> None:
        """Begin to read. Raises psycopg.Error."""
        self._looking = look_at(self._view)
        self._rows = self._begin()
        self._step()

    def close(self) -> None:
        """Close the connection."""
        if self._rows is not None:
            with suppress(psycopg.Error):  # it may be why this is closed
                self._rows.close()
        if self._looking is not None:
            self._looking.close()

    def add_record(self, record: Published) -> None:
        """Compare the next record of the topic with the rows up to its offset."""
        while self._row is not None and self._row[0] < record.offset:
            self._stranger(self._row, "no record at this offset")
            self._step()
        if self._row is None or self._row[0] != record.offset:
            if record.offset < self._read_to:
                self._note_absent(record)
            else:
                self.not_yet_recorded += 1
            return
        self._judge(record, self._row)
        self._step()
        while self._row is not None and self._row[0] == record.offset:
            self._stranger(self._row, "once more for the same record")
            self._step()

    def finish(self, end: int) -> None:
        """Judge what is left, once all records before `end`, the topic's, have passed by."""
        if self._next_offset > end:
            self.findings.append(
                Finding(
                    Kind.LEDGER_DIFFERS,
                    field="next_offset",
                    expected=f"at most {end}, the end of the topic",
                    found=f"{self._next_offset}: what comes before would never be recorded",
                    place=f"ledger_offsets, of {self.topic}/{self.partition}",
                )
            )
        while self._row is not None:
            self._stranger(self._row, "no record at this offset")
            self._step()
        self._judge_absent()

    def _step(self) -> None:
        assert self._rows is not None, "it is open"
        self._row = next(self._rows, None)
        self.rows += self._row is not None

    @abstractmethod
    def _begin(self) -> Generator[R, None, None]:
        """Return the rows, in the order of their records' offsets."""

    @abstractmethod
    def _judge(self, record: Published, row: R) -> None:
        """Compare a record with the row at its offset."""

    @abstractmethod
    def _stranger(self, row: R, why: str) -> None:
        """Note a row that stands for no record."""

    @abstractmethod
    def _note_absent(self, record: Published) -> None:
        """Note a record that the ledger has read, and that has no row at its offset."""

    @abstractmethod
    def _judge_absent(self) -> None:
        """Judge the records without a row; all rows have been read."""
