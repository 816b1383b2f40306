"""Which registry ids a chunk has, found before a record of it is judged."""

import numpy as np

from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    CODEC_MASK,
    HEADER_SIZE,
    Chunk,
    headers_in,
)
from durabill.stream_processors.engine.kernel import parse, scan
from durabill.stream_processors.engine.unpack import BadBatch, Room

RECORD_BYTES_MIN = 7


class IdScanner:
    """Finds registry ids in chunks; keeps its memory for the next one."""

    def __init__(self) -> None:
        self._room = Room(BATCH_UNPACKED_BYTES_MAX)
        self._record = np.zeros(parse.FIELDS, np.int64)

    def warm_up(self) -> None:
        """Have the kernel compiled, or loaded from its cache, before there is a stream."""
        none = np.empty(0, np.int64)
        scan.registry_ids(self._room.unpack(0, memoryview(b"")), 0, 0, self._record, none, none)

    def ids_in(self, chunk: Chunk) -> dict[int, int]:
        """Return the registry ids of a chunk's readable records, each with its last offset."""
        found: dict[int, int] = {}
        view = memoryview(chunk.data)
        for at, header in headers_in(chunk.data):
            packed = view[at + HEADER_SIZE : at + header.size]
            try:
                body = self._room.unpack(header.attributes & CODEC_MASK, packed)
            except BadBatch:
                continue  # a dead letter as a whole
            count = min(header.record_count, len(body) // RECORD_BYTES_MIN)
            ids, offsets = np.empty(count, np.int64), np.empty(count, np.int64)
            noted = scan.registry_ids(body, count, header.base_offset, self._record, ids, offsets)
            # By a loop, between whose turns other threads run: a batch can have millions.
            for each, last in zip(ids[:noted].tolist(), offsets[:noted].tolist(), strict=True):
                found[each] = last
        return {each: last for each, last in found.items() if last >= chunk.first_offset}
