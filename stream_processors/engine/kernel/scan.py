"""Which registry ids a batch's records have: the framing is 00, the id in 4 bytes, the body."""

from typing import Any

import numpy as np

from durabill.stream_processors.engine.kernel import compiled
from durabill.stream_processors.engine.kernel.parse import (
    AFTER,
    DELTA,
    VALUE_AT,
    VALUE_END,
    read_frame,
)

FRAMING_BYTES = 5


@compiled
def registry_ids(
    data: Any, count: int, base_offset: int, record: Any, ids: Any, offsets: Any
) -> int:
    """Note the ids of up to `count` records of a batch, and their offsets; return how many.

    Ends with the first record that can't be read. `record` is scratch. An id that comes several
    times in a row is noted once, with its last offset.
    """
    found, at = 0, 0
    for _ in range(count):
        if at >= data.shape[0] or not read_frame(data, at, record):
            break
        at = record[AFTER]
        start = record[VALUE_AT]
        if record[VALUE_END] - start < FRAMING_BYTES or data[start] != 0:
            continue
        schema_id = np.int64(0)
        for i in range(1, FRAMING_BYTES):
            schema_id = schema_id << 8 | np.int64(data[start + i])
        if found == 0 or ids[found - 1] != schema_id:
            found += 1
        ids[found - 1] = schema_id
        offsets[found - 1] = base_offset + record[DELTA]
    return found
