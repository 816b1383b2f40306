"""What the kernel has settled, as the records that go out."""

import hashlib

import numpy as np

from durabill.schemas import TOTAL_HEADER
from durabill.stream_processors.engine.kernel import rows, totals
from durabill.stream_processors.engine.store import Rows
from durabill.stream_processors.engine.table import Total

_TOTAL_HEADER = np.frombuffer(TOTAL_HEADER, np.uint8)


def take_totals(store: Rows, partition: int) -> list[Total]:
    """Return the totals of the store's events, and forget these."""
    count = int(store.counters[rows.EVENTS])
    if not count:
        return []
    texts = np.empty(count * totals.TEXT_BYTES_MAX, np.uint8)
    ends = np.empty(count, np.int64)
    row = np.empty(rows.EXTRA_SIZE, np.int64)
    totals.write_texts(store.events, count, store.event_extra, row, texts, ends)
    digests, start = [], 0
    raw, sha256 = memoryview(texts.data), hashlib.sha256
    for end in ends.tolist():
        digests.append(sha256(raw[start:end]).hexdigest())
        start = end
    out = np.empty(count * totals.TOTAL_BYTES_MAX, np.uint8)
    totals.write_totals(
        store.events,
        count,
        store.event_at,
        store.event_status,
        store.event_extra,
        row,
        np.frombuffer("".join(digests).encode(), np.uint8),
        partition,
        _TOTAL_HEADER,
        out,
        ends,
    )
    after = ends.tolist()
    encoded = out[: after[-1]].tobytes()
    values = map(encoded.__getitem__, map(slice, [0, *after[:-1]], after))
    found = list(map(Total, store.event_keys(count), values))
    store.counters[rows.EVENTS] = store.counters[rows.EVENT_EXTRAS] = 0
    return found
