"""What was read of a log, as records and gaps: every offset is one or the other."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from durabill.stream_processors.audit.archive.gaps import Gap, Why, between, join
from durabill.stream_processors.audit.replay import LogPart
from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    CODEC_MASK,
    HEADER_SIZE,
    BatchHeader,
    Record,
    append_time_ms,
    headers_in,
    read_batch,
)
from durabill.stream_processors.engine.standing import Standing
from durabill.stream_processors.engine.unpack import BadBatch, Room

_WHY = {Standing.MARKER: Why.CONTROL, Standing.ABORTED: Why.ABORTED}


class Whole(NamedTuple):
    """A batch with a record for each of its offsets, unpacked; `body` is valid until the next one.

    Nothing is known yet of its records. `plain` reads them one by one.
    """

    header: BatchHeader
    append_ms: int
    body: Any
    plain: "Callable[[], Piece]"


class Piece(NamedTuple):
    """Part of a partition's log: its records and gaps, in order, all before `next_offset`.

    Records at the offsets `bad` stand for batches of which nothing counts from there on. Where
    there is a `whole` batch, it comes after the gaps, and there are no records.
    """

    records: list[Record]
    gaps: list[Gap]
    next_offset: int
    bad: frozenset[int] = frozenset()
    whole: Whole | None = None


class PieceReader:
    """Takes apart what was fetched; keeps its memory for the next part."""

    def __init__(self) -> None:
        self._room = Room(BATCH_UNPACKED_BYTES_MAX)

    def pieces(self, part: LogPart, *, is_plain: bool = False) -> Iterator[Piece]:
        """Yield all of a part, a batch at a time; with `is_plain` no batch is left `whole`.

        Raises CorruptBatch, and ContractError where the log has the clients' time.
        """
        known = [Gap(first, after - 1, _WHY[what]) for first, after, what in part.skipped]
        start = part.chunk.first_offset
        view = memoryview(part.chunk.data)
        for at, header in headers_in(part.chunk.data):
            append_ms = append_time_ms(header)
            batch = view[at : at + header.size]
            piece = None
            if not is_plain and header.base_offset >= start:
                piece = self._whole(header, append_ms, batch, start, known)
            yield piece or self._plain(header, append_ms, batch, start, known)
            start = header.next_offset
        yield Piece([], _gaps((), start, part.chunk.next_offset, known), part.chunk.next_offset)

    def _whole(
        self, header: BatchHeader, append_ms: int, batch: memoryview, start: int, known: list[Gap]
    ) -> Piece | None:
        """Return an unpacked batch; None where it has holes, or can't be unpacked."""
        if header.record_count != header.last_offset_delta + 1:
            return None
        try:
            body = self._room.unpack(header.attributes & CODEC_MASK, batch[HEADER_SIZE:])
        except BadBatch:
            return None
        gaps = _gaps((), start, header.base_offset, known)

        def plain() -> Piece:
            piece = self._plain(header, append_ms, batch, header.base_offset, known)
            return piece._replace(gaps=join([*gaps, *piece.gaps]))

        return Piece([], gaps, header.next_offset, whole=Whole(header, append_ms, body, plain))

    def _plain(
        self, header: BatchHeader, append_ms: int, batch: memoryview, start: int, known: list[Gap]
    ) -> Piece:
        """Read a batch record by record."""
        records: list[Record] = []
        bad: set[int] = set()
        for each in read_batch(header, batch[HEADER_SIZE:], self._room):
            if not isinstance(each, Record):
                known.append(Gap(each.offset + 1, header.next_offset - 1, Why.UNREADABLE))
                if records and records[-1].offset == each.offset:
                    records.pop()  # the batch has it too
                each = Record(each.offset, append_ms, None, batch.tobytes(), ())
                bad.add(each.offset)
            if each.offset >= start:
                records.append(each)
        offsets = (each.offset for each in records)
        gaps = _gaps(offsets, start, header.next_offset, known)
        return Piece(records, gaps, header.next_offset, frozenset(bad))


def _gaps(offsets: Iterable[int], start: int, after: int, known: list[Gap]) -> list[Gap]:
    """Return what [start, after) has besides these offsets; takes out of `known` what is past."""
    empty = between(offsets, start, after)
    if not empty:
        return []
    known[:] = sorted(each for each in known if each.first <= each.last)
    return join(explained(empty, known))


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
