"""Compares the ledger's rows with the records of the totals topic that they stand for.

Theory of operation. Both are streams in the order of the topic's offsets: the rows come from
PostgreSQL sorted, as lines of text, and of each record the line is made that its row must be. Equal
lines need no further look. One snapshot of the database is taken before the ends of the topic, and
all processes share it. So every row must stand for a record that is there, and every record before
the ledger's own offset must have its row, also while a ledger goes on writing.

A record can lack a row of its own rightly: where it repeats what is recorded already, or where
another total is recorded under its order and revision, so that it was set aside.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import TupleRow

from durabill.schemas import BadTotal, decode_total, total_record
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.totals_log import Published
from durabill.stream_processors.dsn import connect

COLUMNS = (
    *("totals_offset", "totals_append_ms", "service_order_number", "revision", "status"),
    *("duration_ms", "upper_bound_ms", "started_ms", "ended_ms", "intervals", "end_number"),
    *("missing_numbers", "segments", "duplicates", "overlap_ms", "gap_ms", "numbers_after_end"),
    *("digest", "previous_digest", "source_partition", "source_offset", "settled_at_ms"),
)
"""The columns that are compared, in the order of a line."""

_NUMBER_AT, _REVISION_AT = COLUMNS.index("service_order_number"), COLUMNS.index("revision")
_LINES = (
    f"COPY (SELECT {', '.join(COLUMNS)} FROM {{}} WHERE totals_topic = %s AND"
    " totals_partition = %s AND (%s::text IS NULL OR service_order_number = %s)"
    " ORDER BY totals_offset, service_order_number, revision) TO STDOUT"
)
_SAME_KEY = (
    f"COPY (SELECT {', '.join(COLUMNS)} FROM {{}} WHERE totals_topic = %s AND"
    " service_order_number = %s AND revision = %s) TO STDOUT"
)

_TABLE, _ASIDE = "order_totals", "set_aside_totals"
_NULL = "\\N"

Connection = psycopg.Connection[TupleRow]


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

    def read_to(self, partition: int) -> int:
        """Return the offset up to which the ledger has read the totals."""
        return max(self.next_offsets.get(partition, 0), self.rows_to.get(partition, 0))

    def orders_read_to(self, partition: int) -> int:
        """Return the offset up to which the ledger has read the orders topic."""
        return max(self.orders_next.get(partition, 0), self.orders_rows_to.get(partition, 0))


class _Absent(NamedTuple):
    """A record that has no row at its place."""

    record: Published
    number: str
    revision: int


@dataclass(slots=True)
class LedgerRows:
    """The rows of one partition, told of its records as they pass by; must be closed."""

    view: LedgerView
    topic: str
    partition: int
    only_order: str | None = None
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    proven: int = 0
    not_yet_recorded: int = 0
    set_aside: int = 0
    _absent: list[_Absent] = field(default_factory=list)
    _aside: dict[int, list[str]] = field(default_factory=dict)
    _connection: Connection | None = None
    _copy: "AbstractContextManager[Any] | None" = None
    _lines: Iterator[Any] = field(default_factory=lambda: iter(()))
    _row: tuple[int, str] | None = None

    def open(self) -> None:
        """Begin to read. Raises psycopg.Error."""
        self._connection = connection = look_at(self.view)
        order = self.only_order
        which = (self.topic, self.partition, order, order)
        with connection.cursor().copy(_LINES.format(_ASIDE), which) as aside:
            for line in map(_text, aside):  # few: of a number's second life, or of a falsifier
                self._aside.setdefault(_offset(line), []).append(line)
                self.set_aside += 1
        self._copy = connection.cursor().copy(_LINES.format(_TABLE), which)
        self._lines = iter(self._copy.__enter__())
        self._step()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _step(self) -> None:
        raw = next(self._lines, None)
        self._row = None
        if raw is not None:
            line = _text(raw)
            self.rows += 1
            self._row = _offset(line), line

    def add_record(self, record: Published) -> None:
        """Compare the next record of the topic with the rows up to its offset."""
        aside = self._aside.pop(record.offset, ()) if self._aside else ()
        for line in aside:
            if line != line_of(record):
                self._compare(line_of(record), line, _ASIDE)
        while self._row is not None and self._row[0] < record.offset:
            self._stranger(self._row[1], "no record at this offset")
            self._step()
        if self._row is None or self._row[0] != record.offset:
            if record.offset < self.view.read_to(self.partition):
                self._note_absent(record)
            else:
                self.not_yet_recorded += 1
            return
        for line in aside:
            self._stranger(line, "its record has a row that stands", _ASIDE)
        expected, line = line_of(record), self._row[1]
        if line == expected:
            self.proven += 1
        else:
            self._compare(expected, line)
        self._step()
        while self._row is not None and self._row[0] == record.offset:
            self._stranger(self._row[1], "once more for the same record")
            self._step()

    def _compare(self, expected: str | None, line: str, table: str = _TABLE) -> None:
        if expected is None:
            self._stranger(line, "the record is no total", table)
            return
        there, right = _fields(line), _fields(expected)
        for name, want, found in zip(COLUMNS, right, there, strict=True):
            if want != found:
                self.findings.append(
                    Finding(
                        Kind.LEDGER_DIFFERS,
                        right[_NUMBER_AT],
                        int(right[_REVISION_AT]),
                        name,
                        want,
                        found,
                        self._place(there, table),
                    )
                )

    def _stranger(self, line: str, why: str, table: str = _TABLE) -> None:
        there = _fields(line)
        number, revision = there[_NUMBER_AT], int(there[_REVISION_AT])
        place = self._place(there, table)
        found = f"{there[COLUMNS.index('status')]}, {there[COLUMNS.index('duration_ms')]} ms"
        self.findings.append(
            Finding(Kind.ROW_WITHOUT_TOTAL, number, revision, "", why, found, place)
        )

    def _place(self, there: list[str], table: str) -> str:
        return f"{table}, of {self.topic}/{self.partition}/{there[0]}"

    def _note_absent(self, record: Published) -> None:
        try:
            total = total_record(record.value)
        except BadTotal:
            return  # the ledger keeps it elsewhere; that it was published is a finding already
        number, revision = total["service_order_number"], total["revision"]
        if record.key == number.encode():
            self._absent.append(_Absent(record, number, revision))

    def finish(self, totals_end: int) -> None:
        """Judge what is left, once all records have passed by; `totals_end`: of the topic."""
        if (read_to := self.view.next_offsets.get(self.partition, 0)) > totals_end:
            self.findings.append(
                Finding(
                    Kind.LEDGER_DIFFERS,
                    field="next_offset",
                    expected=f"at most {totals_end}, the end of the topic",
                    found=f"{read_to}: what comes before would never be recorded",
                    place=f"ledger_offsets, of {self.topic}/{self.partition}",
                )
            )
        while self._row is not None:
            self._stranger(self._row[1], "no record at this offset")
            self._step()
        for line in (each for lines in self._aside.values() for each in lines):
            self._stranger(line, "no record at this offset", _ASIDE)
        assert self._copy is not None, "it is open"
        self._copy.__exit__(None, None, None)
        for record, number, revision in self._absent:
            expected = line_of(record)
            assert expected is not None, "it could be read before"
            standing = self._same_key(_TABLE, number, revision)
            others = [*standing, *self._same_key(_ASIDE, number, revision)]
            if not standing or not any(_content(each) == _content(expected) for each in others):
                self.findings.append(
                    Finding(
                        Kind.MISSING_ROW,
                        number,
                        revision,
                        expected=f"{decode_total(record.value).duration_ms} ms",
                        found="no row",
                        place=f"{self.topic}/{self.partition}/{record.offset}",
                    )
                )

    def _same_key(self, table: str, number: str, revision: int) -> list[str]:
        assert self._connection is not None, "it is open"
        query = _SAME_KEY.format(table)
        with self._connection.cursor().copy(query, (self.topic, number, revision)) as copy:
            return list(map(_text, copy))


def look_at(view: LedgerView) -> Connection:
    """Return a connection that sees the ledger as it was at the view's moment."""
    connection = connect(view.dsn)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    connection.execute(f"SET TRANSACTION SNAPSHOT '{view.snapshot}'")
    return connection


def line_of(record: Published) -> str | None:
    """Return the line that a record's row must be; None where it is no total."""
    try:
        total = total_record(record.value)
    except BadTotal:
        return None
    number = total["service_order_number"].replace("\\", "\\\\")
    bound, end = total["upper_bound_ms"], total["end_number"]
    intervals = ", ".join(
        f'{{"end_ms": {each["end_ms"]}, "start_ms": {each["start_ms"]}}}'
        for each in total["intervals"]
    )
    missing = ", ".join(
        f'{{"last": {each["last"]}, "first": {each["first"]}}}' for each in total["missing_numbers"]
    )
    return (
        f"{record.offset}\t{record.append_ms}\t{number}\t{total['revision']}\t{total['status']}"
        f"\t{total['duration_ms']}\t{_NULL if bound is None else bound}\t{total['started_ms']}"
        f"\t{total['ended_ms']}\t[{intervals}]\t{_NULL if end is None else end}\t[{missing}]"
        f"\t{total['segments']}\t{total['duplicates']}\t{total['overlap_ms']}\t{total['gap_ms']}"
        f"\t{total['numbers_after_end']}\t{total['digest']}\t{total['previous_digest']}"
        f"\t{total['source_partition']}\t{total['source_offset']}\t{total['settled_at_ms']}"
    )


def _fields(line: str) -> list[str]:
    fields = line.split("\t")
    fields[_NUMBER_AT] = fields[_NUMBER_AT].replace("\\\\", "\\")
    return ["-" if each == _NULL else each for each in fields]


def _content(line: str) -> str:
    """Return a line without the place that it came from."""
    return line.split("\t", 2)[2]


def _text(raw: Any) -> str:
    return bytes(raw).decode().rstrip("\n")


def _offset(line: str) -> int:
    return int(line[: line.index("\t")])
