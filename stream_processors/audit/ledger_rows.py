"""Compares the ledger's rows with the records of the totals topic that they stand for.

The rows come from PostgreSQL sorted, as lines of text, and of each record the line is made that its
row must be. Equal lines need no further look.

A record can lack a row of its own rightly: where it repeats what is recorded already, or where
another total is recorded under its order and revision, so that it was set aside.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple

from durabill.schemas import BadTotal, decode_total, total_record
from durabill.stream_processors.audit.findings import Finding, Kind
from durabill.stream_processors.audit.ledger_walk import LedgerView, LedgerWalk
from durabill.stream_processors.audit.totals_log import Published

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

Row = tuple[int, str]
"""The offset of its record, and its line."""


class _Absent(NamedTuple):
    """A record that has no row at its place."""

    record: Published
    number: str
    revision: int


class LedgerRows(LedgerWalk[Row]):
    """The rows of one partition."""

    def __init__(
        self, view: LedgerView, topic: str, partition: int, only_order: str | None = None
    ) -> None:
        next_offset = view.next_offsets.get(partition, 0)
        super().__init__(view, topic, partition, next_offset, view.rows_to.get(partition, 0))
        self.set_aside = 0
        self._only_order = only_order
        self._absent: list[_Absent] = []
        self._aside: dict[int, list[str]] = {}
        self._aside_here: Sequence[str] = ()
        """What is set aside of the record that passes by."""

    def _begin(self) -> Generator[Row, None, None]:
        which = (self.topic, self.partition, self._only_order, self._only_order)
        # Few: of a number's second life, or of a falsifier.
        for offset, line in self._lines(_LINES.format(_ASIDE), which):
            self._aside.setdefault(offset, []).append(line)
            self.set_aside += 1
        return self._lines(_LINES.format(_TABLE), which)

    def _lines(self, query: str, which: tuple[object, ...]) -> Generator[Row, None, None]:
        with self.connection.cursor().copy(query, which) as copy:
            for raw in copy:
                line = bytes(raw).decode().rstrip("\n")
                yield int(line[: line.index("\t")]), line

    def add_record(self, record: Published) -> None:
        """Compare the next record of the topic with the rows up to its offset."""
        self._aside_here = self._aside.pop(record.offset, ()) if self._aside else ()
        for line in self._aside_here:
            if line != line_of(record):
                self._compare(line_of(record), line, _ASIDE)
        super().add_record(record)

    def _judge(self, record: Published, row: Row) -> None:
        for line in self._aside_here:
            self._stranger((row[0], line), "its record has a row that stands", _ASIDE)
        expected = line_of(record)
        if row[1] == expected:
            self.proven += 1
        else:
            self._compare(expected, row[1])

    def _compare(self, expected: str | None, line: str, table: str = _TABLE) -> None:
        if expected is None:
            self._stranger((0, line), "the record is no total", table)
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

    def _stranger(self, row: Row, why: str, table: str = _TABLE) -> None:
        there = _fields(row[1])
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

    def _judge_absent(self) -> None:
        for offset, lines in self._aside.items():
            for line in lines:
                self._stranger((offset, line), "no record at this offset", _ASIDE)
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
        which = (self.topic, number, revision)
        return [line for _, line in self._lines(_SAME_KEY.format(table), which)]


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
