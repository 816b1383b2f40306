"""A chunk of the log, folded in steps of bounded work.

Nothing that Kafka takes may hold the event loop for long: neither a batch of a million records, nor
one that unpacks to gigabytes, nor a million orders whose deadline comes with one record. So a chunk
is folded in steps of some 10 ms. Between two of them the worker does whatever else there is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from durabill.schemas.errors import PoisonError, is_told
from durabill.stream_processors.engine.batch import (
    BATCH_UNPACKED_BYTES_MAX,
    BatchHeader,
    Chunk,
    Rest,
    append_time_ms,
    headers_in,
)
from durabill.stream_processors.engine.effects import (
    HASHED_BYTES,
    PLAIN_COST,
    STEP_COST,
    Effects,
    Step,
    batch_letter,
)
from durabill.stream_processors.engine.unpack import Room


@dataclass(slots=True)
class AtHand:
    """What is being folded, for PoisonError: a record has an offset, a timer only a key."""

    offset: int | None = None
    key: bytes | None = None

    def set(self, offset: int | None, key: bytes | None) -> None:
        """Note what is folded from now on."""
        self.offset = offset
        self.key = key


class ChunkFolder(ABC):
    """The flow of a table: chunks in, steps out. What a batch does is up to the table."""

    def __init__(self, partition: int) -> None:
        self.clock_ms = 0
        self.records_folded = 0
        """Records folded in this process's life; for the metrics only."""
        self._partition = partition
        self._room = Room(BATCH_UNPACKED_BYTES_MAX)
        self._at_hand = AtHand()

    @abstractmethod
    def _fold_batch(
        self, header: BatchHeader, batch: memoryview, first_offset: int, effects: Effects
    ) -> Iterator[int]:
        """Fold a batch's records from `first_offset` on; see `_fold_chunk` for what it yields."""

    @abstractmethod
    def _run_due(self, effects: Effects) -> Iterator[None]:
        """Settle what is due by the partition's clock; yield after each little work."""

    def fold(self, chunk: Chunk) -> Effects:
        """Take in a chunk of the log; return what it gives, timers due by its end included."""
        effects = Effects()
        for step in self.steps(chunk):
            effects.extend(step.effects)
        return effects

    def steps(self, chunk: Chunk) -> Iterator[Step]:
        """Take in a chunk of the log in pieces of bounded work, the timers due by its end last.

        Between two steps the table may be asked, checkpointed and confirmed. A replay from there
        goes on at the step's `next_offset`. While timers are still due, that is inside the last
        batch: its terms hold for them, and other terms may begin right after it. All steps of a
        chunk come before any of the next one.
        PoisonError stands for a bug of ours. After it the table must not be used any more.
        """
        effects, next_offset = Effects(), -1
        try:
            for next_offset in self._fold_chunk(chunk, effects):
                if effects.cost >= STEP_COST:
                    yield Step(next_offset, effects.take())
            self._at_hand.set(None, None)
            # Time moves by records alone: nothing is due by what has none.
            for _ in self._run_due(effects) if next_offset >= 0 else ():
                if effects.cost >= STEP_COST:
                    yield Step(next_offset, effects.take())
        except Exception as error:
            # The sender's faults become dead letters: one that comes up here is a bug of ours.
            if isinstance(error, MemoryError) or is_told(error):
                raise
            at_hand = self._at_hand
            raise PoisonError(self._partition, at_hand.offset, at_hand.key, error) from error
        yield Step(chunk.next_offset, effects.take())

    def _fold_chunk(self, chunk: Chunk, effects: Effects) -> Iterator[int]:
        """Fold the chunk's records; yield, after each little work, where a replay would go on."""
        view = memoryview(chunk.data)
        for at, header in headers_in(chunk.data):
            append_ms = append_time_ms(header)
            next_offset = header.next_offset
            if next_offset > chunk.first_offset:
                if header.record_count:
                    self.clock_ms = max(self.clock_ms, append_ms)
                batch = view[at : at + header.size]
                last_offset = max(chunk.first_offset, next_offset - 1)
                for replay_offset in self._fold_batch(header, batch, chunk.first_offset, effects):
                    yield min(replay_offset, last_offset)
                yield last_offset

    def _set_aside(
        self, header: BatchHeader, batch: memoryview, rest: Rest, effects: Effects
    ) -> None:
        """Make one dead letter of the part of a batch that doesn't count."""
        effects.cost += PLAIN_COST + len(batch) // HASHED_BYTES
        effects.dead_letters.append(batch_letter(header, batch, rest))
