"""What was read of a log, as records and gaps: every offset is one or the other. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from durabill.stream_processors.audit.archive.gaps import Gap, Why, between, join
from durabill.stream_processors.audit.replay import LogPart
from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    HEADER_SIZE,
    Record,
    append_time_ms,
    headers_in,
    read_batch,
)
from durabill.stream_processors.engine.standing import Standing
from durabill.stream_processors.engine.unpack import Room

PIECE_RECORDS = 10_000
PIECE_BYTES = 16 * 1024 * 1024
_WHY = {Standing.MARKER: Why.CONTROL, Standing.ABORTED: Why.ABORTED}


class Piece(NamedTuple):
    """Part of a partition's log: its records and gaps, in order, all before `next_offset`.

    Records at the offsets `bad` stand for batches of which nothing counts from there on.
    """

    records: list[Record]
    gaps: list[Gap]
    next_offset: int
    bad: frozenset[int] = frozenset()


class PieceReader:
    """Takes apart what was fetched; keeps its memory for the next part."""

    def __init__(self) -> None:
        self._room = Room(BATCH_UNPACKED_BYTES_MAX)

    def pieces(self, part: LogPart) -> Iterator[Piece]:
        """Yield all of a part, whole batches at a time: some PIECE_RECORDS or PIECE_BYTES each.

        Raises CorruptBatch, and ContractError where the log has the clients' time.
        """
        known = [Gap(first, after - 1, _WHY[what]) for first, after, what in part.skipped]
        records: list[Record] = []
        bad: set[int] = set()
        size = 0
        start = part.chunk.first_offset
        view = memoryview(part.chunk.data)
        for at, header in headers_in(part.chunk.data):
            append_ms = append_time_ms(header)
            batch = view[at : at + header.size]
            for each in read_batch(header, batch[HEADER_SIZE:], self._room):
                if not isinstance(each, Record):
                    known.append(Gap(each.offset + 1, header.next_offset - 1, Why.UNREADABLE))
                    if records and records[-1].offset == each.offset:
                        records.pop()  # the batch has it too
                    each = Record(each.offset, append_ms, None, batch.tobytes(), ())
                    bad.add(each.offset)
                if each.offset < start:
                    continue
                records.append(each)
                size += len(each.key or b"") + len(each.value or b"")
            if len(records) >= PIECE_RECORDS or size >= PIECE_BYTES:
                yield _piece(records, known, start, header.next_offset, bad)
                records, bad, size, start = [], set(), 0, header.next_offset
        yield _piece(records, known, start, part.chunk.next_offset, bad)


def _piece(
    records: list[Record], known: list[Gap], start: int, next_offset: int, bad: set[int]
) -> Piece:
    empty = between((each.offset for each in records), start, next_offset)
    known[:] = sorted(each for each in known if each.first <= each.last)
    return Piece(records, join(explained(empty, known)), next_offset, frozenset(bad))


def explained(ranges: Iterable[tuple[int, int]], known: list[Gap]) -> Iterator[Gap]:
    """Yield ranges [first, last] as gaps, by what is known of them: else they are absent.

    Both come in order. What is known and lies before the end of the ranges is taken out of `known`.
    """
    for first, last in ranges:
        at = first
        while known and known[0].first <= last:
            gap = known[0]
            if gap.last >= at:
                if gap.first > at:
                    yield Gap(at, gap.first - 1, Why.ABSENT)
                yield Gap(max(gap.first, at), min(gap.last, last), gap.why)
                at = min(gap.last, last) + 1
            if gap.last > last:
                break
            known.pop(0)
        if at <= last:
            yield Gap(at, last, Why.ABSENT)
