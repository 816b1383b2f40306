"""What a fetch brought, as records and gaps: every offset is one or the other. Pure."""

from typing import NamedTuple

from durabill.stream_processors.audit.archive.gaps import Gap, Why, between, join
from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    HEADER_SIZE,
    BatchHeader,
    Record,
    append_time_ms,
    read_batch,
)
from durabill.stream_processors.engine.standing import Aborted, Standing, standings
from durabill.stream_processors.engine.unpack import Room


class Piece(NamedTuple):
    """Part of a partition's log: its records and gaps, in order, all before `next_offset`.

    Records at the offsets `bad` stand for batches of which nothing counts from there on.
    """

    records: list[Record]
    gaps: list[Gap]
    next_offset: int
    bad: frozenset[int] = frozenset()


class PieceReader:
    """Takes fetches apart; keeps its memory for the next one."""

    def __init__(self) -> None:
        self._room = Room(BATCH_UNPACKED_BYTES_MAX)

    def piece(self, data: bytes, aborted: Aborted, first_offset: int, next_offset: int) -> Piece:
        """Return what [first_offset, next_offset) of the log is.

        `data` is the whole batches of it (perhaps with more before and after), `aborted` what the
        same fetch said of transactions. Raises CorruptBatch, and ContractError where the log has
        the clients' time.
        """
        records: list[Record] = []
        gaps: list[Gap] = []
        bad: set[int] = set()
        at_offset = first_offset
        view = memoryview(data)
        for at, header, standing in standings(data, aborted):
            start = max(at_offset, header.base_offset)
            end = min(header.next_offset, next_offset)
            if start >= end:
                continue
            gaps += [Gap(at_offset, start - 1, Why.ABSENT)] if at_offset < start else []
            if standing is Standing.DATA:
                batch = view[at : at + header.size]
                self._data(batch, header, (start, end), records, gaps, bad)
            else:
                why = Why.CONTROL if standing is Standing.MARKER else Why.ABORTED
                gaps.append(Gap(start, end - 1, why))
            at_offset = end
        gaps += [Gap(at_offset, next_offset - 1, Why.ABSENT)] if at_offset < next_offset else []
        return Piece(records, join(gaps), next_offset, frozenset(bad))

    def _data(
        self,
        batch: memoryview,
        header: BatchHeader,
        bounds: tuple[int, int],
        records: list[Record],
        gaps: list[Gap],
        bad: set[int],
    ) -> None:
        start, end = bounds
        append_ms = append_time_ms(header)
        found: list[Record] = []
        for each in read_batch(header, batch[HEADER_SIZE:], self._room):
            if not start <= each.offset < end:
                continue
            if not isinstance(each, Record):
                bad.add(each.offset)
                if found and found[-1].offset == each.offset:
                    found.pop()
                each = Record(each.offset, append_ms, None, batch.tobytes(), ())
            found.append(each)
        records += found
        offsets = (each.offset for each in found)
        gaps += [Gap(*each, Why.ABSENT) for each in between(offsets, start, end)]
