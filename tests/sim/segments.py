"""A partition of segments as clients and consumers see it, replicas and transactions included."""

from collections.abc import Callable
from dataclasses import dataclass

from durabill.producers.fleet.truth import LogRecord
from durabill.stream_processors.engine.batch import Chunk
from tests.property.batches import Entry, encode_batch


@dataclass(eq=False, slots=True)
class Batch:
    """A record batch of segments, or a transaction's marker."""

    first: int
    after: int
    append_ms: int
    entries: tuple[Entry, ...]
    is_open: bool = False
    """Whether it belongs to a client's transaction that has not ended."""
    is_aborted: bool = False
    is_lost: bool = False
    """Whether a change of leaders has cut it off."""
    ends: "Batch | None" = None
    """What a marker ends."""
    data: bytes = b""


class SegmentLog:
    """A partition of segments: LogAppendTime, whole batches, replicas that follow the leader.

    Consumers see what all replicas have, up to the high watermark, and no further than to the
    first record of an open transaction.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.batches: list[Batch] = []
        self.records: list[LogRecord] = []
        """Those that consumers can see."""
        self.log_end = self.high_watermark = self.visible_end = 0
        self._seen = 0
        self.on_visible: Callable[[LogRecord], None] = lambda record: None

    def append(self, entries: tuple[Entry, ...], append_ms: int, *, is_open: bool) -> Batch:
        """Append a batch to the leader's log."""
        first, after = self.log_end, self.log_end + len(entries)
        batch = Batch(first, after, append_ms, entries, is_open)
        batch.data = encode_batch(first, append_ms, list(enumerate(entries, first)))
        return self._add(batch)

    def append_marker(self, ends: Batch, append_ms: int, *, is_aborted: bool) -> Batch:
        """Append the marker of a transaction, which ends it once all replicas have it."""
        ends.is_aborted = is_aborted
        return self._add(Batch(self.log_end, self.log_end + 1, append_ms, (), ends=ends))

    def _add(self, batch: Batch) -> Batch:
        self.batches.append(batch)
        self.log_end = batch.after
        return batch

    def replicate(self, to: int) -> None:
        """Have all replicas follow up to an offset."""
        self.high_watermark = max(self.high_watermark, min(to, self.log_end))
        for batch in self.batches:
            if batch.ends is not None and batch.after <= self.high_watermark:
                batch.ends.is_open = False
        while self._seen < len(self.batches):
            batch = self.batches[self._seen]
            if batch.is_open or batch.after > self.high_watermark:
                break
            self._seen += 1
            self.visible_end = batch.after
            if not batch.is_aborted:
                self._show(batch)

    def _show(self, batch: Batch) -> None:
        for offset, (key, value, headers) in enumerate(batch.entries, batch.first):
            record = LogRecord(self.partition, offset, batch.append_ms, key, value, tuple(headers))
            self.records.append(record)
            self.on_visible(record)

    def cut_off(self) -> list[Batch]:
        """Lose what not all replicas have; return it."""
        lost = [batch for batch in self.batches if batch.after > self.high_watermark]
        for batch in lost:
            batch.is_lost = True
        self.batches = self.batches[: len(self.batches) - len(lost)]
        self.log_end = self.high_watermark
        return lost

    def visible(self, position: int = 0) -> list[Batch]:
        """Return the batches that consumers can see from a position on."""
        return [each for each in self.batches[: self._seen] if each.after > position]

    def data(self, position: int = 0) -> bytes:
        """Return the bytes of those that were not aborted."""
        return b"".join(each.data for each in self.visible(position) if not each.is_aborted)

    def fetch(self, position: int, batches_max: int) -> tuple[Chunk | None, int, int]:
        """Return the next few batches as a chunk, None at the end; the high watermark; the end."""
        found = self.visible(position)[:batches_max]
        if not found:
            return None, self.high_watermark, self.visible_end
        data = b"".join(each.data for each in found if not each.is_aborted)
        return Chunk(position, found[-1].after, data), self.high_watermark, self.visible_end
