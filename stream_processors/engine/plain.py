"""The interval table record by record: the specification of the batch path in `columns`."""

from collections.abc import Iterable, Iterator

from durabill.schemas import WriterSchemas
from durabill.schemas.errors import StateError
from durabill.schemas.limits import ORDER_PIECES_MAX
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import (
    HEADER_SIZE,
    BatchHeader,
    Record,
    Rest,
    read_batch,
)
from durabill.stream_processors.engine.blocks import decode_block
from durabill.stream_processors.engine.effects import Effects, plain_cost
from durabill.stream_processors.engine.restored import Restored
from durabill.stream_processors.engine.slots import PlainBlocks
from durabill.stream_processors.engine.table import IntervalTable


class PlainTable(IntervalTable):
    """The orders of one partition, all of them plain."""

    def __init__(
        self,
        place: Place,
        policy: Policy,
        writers: WriterSchemas,
        *,
        pieces_max: int = ORDER_PIECES_MAX,
    ) -> None:
        self._blocks = PlainBlocks()
        super().__init__(place, policy, writers, pieces_max=pieces_max, blocks=self._blocks)

    def _fold_batch(
        self, header: BatchHeader, batch: memoryview, first_offset: int, effects: Effects
    ) -> Iterator[int]:
        for each in read_batch(header, batch[HEADER_SIZE:], self._room):
            if isinstance(each, Rest):
                self._set_aside(header, batch, each, effects)
            elif each.offset >= first_offset:
                self._at_hand.set(each.offset, each.key)
                effects.cost += plain_cost(each)
                if each.key is not None:
                    for _ in self._plain.settle_ahead(each.key, self.clock_ms, effects):
                        yield each.offset
                self._fold_record(each, effects)
                self.records_folded += 1
                yield each.offset + 1

    def _fold_record(self, record: Record, effects: Effects) -> None:
        self._plain.fold_record(record, self.clock_ms, effects)

    def _run_due(self, effects: Effects) -> Iterator[None]:
        return self._plain.run_due(self.clock_ms, effects)

    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before the replay's start; see the base."""
        return self._plain.confirm(clock_ms)

    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from checkpointed entries; see the base."""
        assert not len(self)
        self.clock_ms = clock_ms
        restored = Restored()
        for block in blocks:
            content = decode_block(block)
            if content.rows:
                raise StateError("a checkpoint of the batch path needs the batch path to read it")
            restored.add(content)
        self._plain.restore(restored.orders(), restored.own)
        self._plain.waiting.restore(restored.waiting, self._opening_of)
        self._blocks.restore(self._plain.slots.taken())

    def __len__(self) -> int:
        """Return how many orders are known, settled ones included."""
        return len(self._plain.slots)

    def unsettled(self) -> int:
        """Return how many orders are known that have yet to settle."""
        return self._plain.unsettled()

    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order; see the base."""
        return self._plain.age_of(key)

    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due; see the base."""
        return self._plain.oldest_deadline_ms()

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest deadline of an order that is not settled; see the base."""
        return self._plain.next_due_ms(now_ms)

    def _known(self, number: str) -> Order | None:
        return self._plain.slots.get(number)
