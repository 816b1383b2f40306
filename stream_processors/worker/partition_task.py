"""One assigned partition: its table, how far it has come, and what a checkpoint of it writes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from durabill.schemas import OWN_SCHEMA_ONLY, decode_total, total_revision
from durabill.schemas.errors import NEW_RESULTS, StateError
from durabill.schemas.text import shown
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import Snapshot
from durabill.stream_processors.engine.checkpoint import (
    META,
    SegmentsTopic,
    encode_meta,
    entry_key,
)
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.policies import History, Terms
from durabill.stream_processors.engine.scan import IdScanner
from durabill.stream_processors.engine.table import IntervalTable, Total
from durabill.stream_processors.engine.verdicts import RecordedSchemas
from durabill.stream_processors.worker.clock import BrokerClock
from durabill.stream_processors.worker.ports import Ends
from durabill.stream_processors.worker.published_openings import PublishedOpenings
from durabill.stream_processors.worker.transactions import TransactionWatch


@dataclass(frozen=True, slots=True)
class CheckpointBarrier:
    """The point in a partition's log that one checkpoint is of.

    The checkpoint writes the entries `names`, and the meta for `next_offset`.
    """

    task: "PartitionTask"
    next_offset: int
    clock_ms: int
    names: list[str]
    meta: bytes

    def snapshots(
        self, count: int, weight_max: int
    ) -> Iterator[list[tuple[bytes, Snapshot | None]]]:
        """Yield (entry key, content) of the entries in lists, each entry as of now.

        A list has at most `count` entries, and ends with the one that brings it to `weight_max`.
        An entry that is taken after the barrier holds orders that are ahead of it; a replay from
        the barrier passes over what they have seen.
        """
        taken: list[tuple[bytes, Snapshot | None]] = []
        weight = 0
        for name in self.names:
            if self.task.is_broken:
                return  # its table must not be asked; the caller drops this barrier
            snapshot = self.task.table.snapshot(name)
            taken.append((entry_key(self.task.partition, name), snapshot))
            weight += snapshot.weight if snapshot else 0
            if len(taken) == count or weight >= weight_max:
                yield taken
                taken, weight = [], 0
        if taken:
            yield taken


@dataclass(slots=True)
class PartitionTask:
    """One assigned partition: its table, and how far it and its checkpoints have come."""

    table: IntervalTable
    segments_topic: SegmentsTopic
    next_offset: int
    """The offset that the table waits for."""
    written_offset: int | None = None
    """The offset in the last meta that is known to be written."""
    published: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Order number -> totals (offset, value) published since the checkpoint.

    The replay gives each of them once more, and it is suppressed then.
    """
    openings: PublishedOpenings | None = None
    """The same for openings; None: none were."""
    openings_passed_on: int = 0
    """How many this process has passed on to the orders topic."""
    strays: int = 0
    """Records among those that are no worker's: they were passed over."""
    schemas: RecordedSchemas = field(default_factory=lambda: RecordedSchemas(OWN_SCHEMA_ONLY))
    scanner: IdScanner | None = None
    history: History = ()
    clock: BrokerClock = field(default_factory=BrokerClock)
    held: str = ""
    """Why nothing more of the partition is folded for now; empty: it is folded."""
    is_broken: bool = False
    """Whether the table can't be trusted any more: folding failed by a bug of ours."""
    backlog: deque[Chunk] = field(default_factory=deque)
    """Chunks that came while it was held, or slow: the driver hands out no more meanwhile."""
    is_slow: bool = False
    """Whether a chunk takes so long that it is folded beside those of other partitions."""
    transaction: TransactionWatch = field(init=False)
    _terms: Terms | None = None
    _published_at: dict[int, None] = field(init=False)
    """The offsets of `published`, ascending: a new application id finds millions of them."""

    def __post_init__(self) -> None:
        self.transaction = TransactionWatch(self.partition)
        offsets = sorted(offset for known in self.published.values() for offset, _ in known)
        self._published_at = dict.fromkeys(offsets)

    @property
    def partition(self) -> int:
        """Return the partition's number."""
        return self.table.place.partition

    def not_yet_published(self, totals: list[Total]) -> list[Total]:
        """Return the totals without those that an owner before us has published already.

        Raises StateError where it published another total: totals are a function of the log, so
        the policy must have changed, or our program is wrong. Either way nobody may be billed
        twice.
        """
        if not self.published:
            return totals
        return [each for each in totals if not self._was_published(each)]

    def _was_published(self, total: Total) -> bool:
        known = self.published.get(total.key, [])
        revision = total_revision(total.value) if known else 0
        for each in known:
            if total_revision(each[1]) != revision:
                continue
            # A younger schema of the program encodes the same total in other bytes.
            if each[1] != total.value and decode_total(each[1]) != decode_total(total.value):
                raise StateError(
                    f"order {shown(total.key.decode())}, revision {revision}: the log gives another"
                    f" total now than the one at offset {each[0]} of partition {self.partition}."
                    " Either it was published under a policy that is not recorded under this"
                    " application id (name the one that published it in"
                    " DURABILL_PREVIOUS_APPLICATION_ID), or the log has lost records (restore"
                    f" them), or somebody else has written that one ({NEW_RESULTS['totals']}), or"
                    " Durabill is wrong (report it). `durabill audit` tells what differs"
                )
            known.remove(each)
            del self._published_at[each[0]]
            if not known:
                del self.published[total.key]
            return True
        return False

    def openings_not_yet_published(self, openings: list[Opening]) -> list[Opening]:
        """Return the openings without those that an owner before us has published already.

        Raises StateError where it published another one in its place.
        """
        new = openings if self.openings is None else self.openings.not_among(openings)
        self.openings_passed_on += len(new)
        return new

    def use(self, terms: Terms) -> None:
        """Judge what is folded from now on by these terms."""
        if terms is not self._terms:
            self._terms = terms
            self.table.set_policy(terms.policy)
            self.schemas.reads_ids = terms.registry
            self.schemas.reads_openings = terms.reads_openings
            self.schemas.extends_openings = terms.extends_openings

    def undecided_ids(self, chunk: Chunk) -> list[int]:
        """Return the registry ids in a chunk that nobody has decided on yet.

        Call it beside the event loop: a chunk can unpack to gigabytes.
        """
        if not self.schemas.reads_ids:
            return []
        if self.scanner is None:
            self.scanner = IdScanner()
        return self.schemas.undecided(self.scanner.ids_in(chunk))

    def begin_checkpoint(self, ends: Ends) -> CheckpointBarrier | None:
        """Return the barrier of a checkpoint as of now, or None if nothing has changed.

        `ends`: every total or opening at or after them in its topic comes from after this call.
        """
        if self.is_broken:
            return None
        changed = self.table.take_changed()
        if not changed and self.written_offset == self.next_offset:
            return None
        meta = self._encode_meta(ends)
        return CheckpointBarrier(self, self.next_offset, self.table.clock_ms, changed, meta)

    def _totals_start(self, totals_end: int) -> int:
        """Return from where on the next recovery has to look for totals.

        It must also find the totals that our own replay has yet to repeat.
        """
        return min(totals_end, next(iter(self._published_at), totals_end))

    def _orders_start(self, orders_end: int) -> int:
        """Return from where on the next recovery has to look for openings."""
        if self.openings is None:
            return orders_end
        self.openings.pass_over(self.next_offset)
        return self.openings.start(orders_end)

    def _encode_meta(self, ends: Ends) -> bytes:
        return encode_meta(
            self.segments_topic,
            next_offset=self.next_offset,
            clock_ms=self.table.clock_ms,
            totals_offset=self._totals_start(ends.totals),
            orders_offset=self._orders_start(ends.orders),
        )

    def first_meta(self, ends: Ends) -> tuple[bytes, bytes]:
        """Return the meta entry that a new group commits before its first total or opening.

        What another application id left in the topics must be found again as well.
        """
        return entry_key(self.partition, META), self._encode_meta(ends)

    def note_written(self, barrier: CheckpointBarrier) -> None:
        """Note that the checkpoint is in the changelog: a recovery replays from its barrier now."""
        self.written_offset = barrier.next_offset
