"""Which record batches of a log count: markers and aborted transactions don't (KIP-98).

A fetch with READ_COMMITTED ends at the last stable offset, before the first open transaction. It
still has the batches of aborted transactions, and says which producers aborted from which offset
on. A transaction of theirs ends with the next marker of the same producer.
"""

from collections.abc import Iterable, Iterator
from enum import Enum
from heapq import heapify, heappop

from durabill.schemas.errors import CorruptBatch
from durabill.stream_processors.engine.batch import (
    CONTROL,
    HEADER_SIZE,
    TRANSACTIONAL,
    BatchHeader,
    headers_in,
    read_record,
)
from durabill.stream_processors.engine.unpack import BadBatch

Aborted = Iterable[tuple[int, int]]
"""(producer id, first offset) of the aborted transactions that a fetch's batches belong to."""


class Standing(Enum):
    """What a batch is."""

    DATA = "it counts"
    MARKER = "a transaction's end"
    ABORTED = "of an aborted transaction"


def whole_batches(data: bytes) -> bytes:
    """Cut off the last batch where the broker's size limit cut through it."""
    at = 0
    while at + 12 <= len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "big") + 12
        if at + size > len(data):
            break
        at += size
    return data if at == len(data) else data[:at]


def standings(data: bytes, aborted: Aborted) -> Iterator[tuple[int, BatchHeader, Standing]]:
    """Yield (position, header, standing) of every batch that a fetch brought.

    `data` is whole batches, `aborted` what the same fetch said. Raises CorruptBatch.
    """
    waiting = [(first_offset, producer_id) for producer_id, first_offset in aborted]
    heapify(waiting)
    aborting: set[int] = set()
    for at, header in headers_in(data):
        standing = Standing.DATA
        while waiting and waiting[0][0] <= header.base_offset:
            aborting.add(heappop(waiting)[1])
        if header.attributes & CONTROL:
            standing = Standing.MARKER
            if header.producer_id in aborting and _is_abort(data, at, header):
                aborting.discard(header.producer_id)
        elif header.attributes & TRANSACTIONAL and header.producer_id in aborting:
            standing = Standing.ABORTED
        yield at, header, standing


def _is_abort(data: bytes, at: int, header: BatchHeader) -> bool:
    """Read a control batch's only record: its key is version i16, type i16 (0 is abort)."""
    body = data[at + HEADER_SIZE : at + header.size]
    try:
        record, _ = read_record(body, 0, header)
    except BadBatch as error:
        raise CorruptBatch(f"the marker at offset {header.base_offset}: {error}") from error
    return record.key is not None and int.from_bytes(record.key[2:4], "big") == 0
