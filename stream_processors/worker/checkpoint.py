"""Checkpoints: a partition's interval table in the entries of an ordinary Faust `Table`.

Keys are `partition/entry`, with the names that `slots` explains, `partition/meta` for the marks,
and `partition/policy` and `partition/schemas` for what else decides totals (`policies`,
`verdicts`). Union is idempotent and every order knows its last offset, so entries need not be
written all at once or not at all: a checkpoint that a crash tore is a mixture of older and newer
ones, and the replay from the marks brings each of them to the same place. All of it is written by
the partition's outlet, so by its owner alone.

The effect order, which a test walks by killing the worker after each step:

    1 folded      a chunk is in the table; its totals and dead letters are queued
    2 cut         the offset is noted; then the changed blocks are encoded, a few at a time
    3 published   every total, dead letter and forward that the blocks rest on has been delivered
    4 written     every changed block, and the marks as the last, are committed to the changelog
    5 committed   the group's offset has moved to the cut
    6 confirmed   orders that were forgotten before the cut give back their slots

The marks alone decide where a replay starts; the group's offset, which anybody can move, follows
them. They hold the partition's append-time clock there, so that a replay starts with the very clock
that the records were judged by, and the end of the totals as it was: what that topic holds from
there on has been said, and is not said again.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from durabill.schemas import OWN_SCHEMA_ONLY, BadTotal, decode_total, partition_for, total_revision
from durabill.schemas.errors import BEGIN_ANEW, NEW_TOPICS, START_ANEW, StateError
from durabill.schemas.text import shown
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import Snapshot
from durabill.stream_processors.engine.scan import IdScanner
from durabill.stream_processors.engine.table import IntervalTable, Total
from durabill.stream_processors.kafka.reading import Tail
from durabill.stream_processors.worker.clock import BrokerClock
from durabill.stream_processors.worker.policies import POLICY, History, Terms
from durabill.stream_processors.worker.transactions import TransactionWatch
from durabill.stream_processors.worker.verdicts import SCHEMAS, RecordedSchemas

MARKS_VERSION = 2
META = "meta"
NO_BLOCKS = (META, POLICY, SCHEMAS)


class Marks(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a checkpoint says of its partition; `topic` is the segments', by name and by id."""

    version: int
    partitions: int
    next_offset: int
    clock_ms: int
    totals_offset: int | None
    """Where the totals that a replay may repeat begin; None: not known (version 1)."""
    topic: str = ""
    topic_id: str = ""
    checkpoint_id: str = ""
    """The changelog's own topic id: what is written to one made anew lacks the blocks of before."""


class MarksV1(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Marks as version 1 wrote them: the group's offset chose one of [(next offset, clock_ms)]."""

    version: int
    partitions: int
    clocks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Origin:
    """The segments topic that a checkpoint is of. `topic_id` is "" where the broker has none."""

    topic: str
    topic_id: str
    partitions: int
    checkpoint_id: str = ""
    """The id of the changelog as it was when the worker started."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What a checkpoint of one partition has to write: `names`, and the marks at `next_offset`."""

    lane: "Lane"
    next_offset: int
    clock_ms: int
    names: list[str]
    marks: bytes

    def snapshots(
        self, count: int, weight_max: int
    ) -> Iterator[list[tuple[bytes, Snapshot | None]]]:
        """Yield (entry key, content) of the entries, some at a time, each as of now.

        At most `count` at a time, and no further one once `weight_max` is reached.

        An entry that is taken later than the cut holds orders that are ahead of it; a replay from
        the cut passes over what they have seen.
        """
        taken: list[tuple[bytes, Snapshot | None]] = []
        weight = 0
        for name in self.names:
            if self.lane.is_broken:
                return  # its table must not be asked any more; whoever takes this drops the cut
            snapshot = self.lane.table.snapshot(name)
            taken.append((entry_key(self.lane.partition, name), snapshot))
            weight += snapshot.weight if snapshot else 0
            if len(taken) == count or weight >= weight_max:
                yield taken
                taken, weight = [], 0
        if taken:
            yield taken


@dataclass(slots=True)
class Lane:
    """One assigned partition: its table, and how far it and its checkpoints have come."""

    table: IntervalTable
    origin: Origin
    next_offset: int
    """The offset that the table waits for."""
    written_offset: int | None = None
    """The offset that the last marks name which are known to be written."""
    said: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Order number -> totals (offset, value) that were said before a crash, and will come again."""
    schemas: RecordedSchemas = field(default_factory=lambda: RecordedSchemas(OWN_SCHEMA_ONLY))
    scanner: IdScanner | None = None
    history: History = ()
    clock: BrokerClock = field(default_factory=BrokerClock)
    held: str = ""
    """Why nothing more of the partition is folded for the time being; empty: it is."""
    is_broken: bool = False
    """Whether the table can't be trusted any more: folding failed by a bug of ours."""
    backlog: deque[Chunk] = field(default_factory=deque)
    """Chunks that came while it was held, or slow: the driver hands out no more meanwhile."""
    is_slow: bool = False
    """Whether a chunk takes so long that it is folded beside those of other partitions."""
    transaction: TransactionWatch = field(init=False)
    _terms: Terms | None = None
    _said_at: dict[int, None] = field(init=False)
    """The offsets of `said`, ascending: a new application id finds millions of them."""

    def __post_init__(self) -> None:
        self.transaction = TransactionWatch(self.partition)
        offsets = sorted(offset for known in self.said.values() for offset, _ in known)
        self._said_at = dict.fromkeys(offsets)

    @property
    def partition(self) -> int:
        """Return the partition's number."""
        return self.table.place.partition

    def unsaid(self, totals: list[Total]) -> list[Total]:
        """Return the totals without those that a worker before us has said already.

        Raises StateError where it said something else: totals are a function of the log, so the
        policy must have changed, or our program is wrong. Either way nobody may be billed twice.
        """
        return [each for each in totals if not self._was_said(each)] if self.said else totals

    def _was_said(self, total: Total) -> bool:
        known = self.said.get(total.key, [])
        revision = total_revision(total.value) if known else 0
        for each in known:
            if total_revision(each[1]) != revision:
                continue
            # Other bytes can say the same where the program's schema is younger.
            if each[1] != total.value and decode_total(each[1]) != decode_total(total.value):
                raise StateError(
                    f"order {shown(total.key.decode())}, revision {revision}: the log gives another"
                    f" total now than the one at offset {each[0]} of partition {self.partition}."
                    " Either it was published under a policy that is not recorded under this"
                    " application id (name the one that published it in"
                    " DURABILL_PREVIOUS_APPLICATION_ID), or"
                    " the log has lost records (restore them), or Durabill is wrong (report it)"
                )
            known.remove(each)
            del self._said_at[each[0]]
            if not known:
                del self.said[total.key]
            return True
        return False

    def use(self, terms: Terms) -> None:
        """Have what is folded from now on judged by these terms."""
        if terms is not self._terms:
            self._terms = terms
            self.table.set_policy(terms.policy)
            self.schemas.reads_ids = terms.registry

    def undecided_ids(self, chunk: Chunk) -> list[int]:
        """Return the registry ids in a chunk that nobody has decided on yet.

        To be called beside the event loop: a chunk can unpack to gigabytes.
        """
        if not self.schemas.reads_ids:
            return []
        if self.scanner is None:
            self.scanner = IdScanner()
        return self.schemas.undecided(self.scanner.ids_in(chunk))

    def cut(self, totals_end: int) -> Cut | None:
        """Return what a checkpoint as of now has to write, or None if nothing has changed.

        `totals_end`: every total at or after it in its topic comes from after this call.
        """
        if self.is_broken:
            return None
        changed = self.table.take_changed()
        if not changed and self.written_offset == self.next_offset:
            return None
        marks = self._marks(self._totals_start(totals_end))
        return Cut(self, self.next_offset, self.table.clock_ms, changed, marks)

    def _totals_start(self, totals_end: int) -> int:
        """Return from where on the next recovery has to look for totals.

        What a replay has yet to repeat must be found by it as well.
        """
        return min(totals_end, next(iter(self._said_at), totals_end))

    def _marks(self, totals_offset: int) -> bytes:
        origin = self.origin
        marks = Marks(
            MARKS_VERSION,
            origin.partitions,
            self.next_offset,
            self.table.clock_ms,
            totals_offset,
            origin.topic,
            origin.topic_id,
            origin.checkpoint_id,
        )
        return msgspec.msgpack.encode(marks)

    def first_marks(self, totals_end: int) -> tuple[bytes, bytes]:
        """Return the entry that goes before a new group's first total.

        What the topic holds already, of another application id, must be found again as well.
        """
        return entry_key(self.partition, META), self._marks(self._totals_start(totals_end))

    def is_written(self, cut: Cut) -> None:
        """Take note that the cut is in the changelog: from now on a recovery replays from there."""
        self.written_offset = cut.next_offset


def entry_key(partition: int, name: str) -> bytes:
    """Return the key of a table entry."""
    return f"{partition}/{name}".encode()


def packed(
    snapshots: list[tuple[bytes, Snapshot | None]],
) -> list[tuple[bytes, bytes | None]]:
    """Return entries as they are written; takes a while, but no interpreter lock."""
    return [(key, snapshot.pack() if snapshot else None) for key, snapshot in snapshots]


def marks_of(
    entries: Mapping[bytes, bytes],
    partition: int,
    origin: Origin,
    committed_offset: int | None,
) -> Marks | None:
    """Return the marks of a partition among the changelog's entries, None where it has none yet.

    `committed_offset` is the group's (None: it has never committed). Raises StateError if the marks
    are damaged or missing, or belong to other segments.
    """
    raw = entries.get(entry_key(partition, META))
    if raw is None:
        if committed_offset is not None:
            raise StateError(
                f"partition {partition} is committed up to offset {committed_offset},"
                " but its checkpoint is empty: the changelog topic was deleted, or another program"
                f" uses this application id. Restore the topic, or {START_ANEW}"
            )
        return None
    marks = _decode_marks(raw, partition, committed_offset)
    if marks is None:
        return None
    if marks.partitions != origin.partitions:
        raise StateError(
            f"the checkpoint was made with {marks.partitions} partitions, the segments topic has"
            f" {origin.partitions}: orders have moved: {NEW_TOPICS}"
        )
    if marks.topic and marks.topic != origin.topic:
        raise StateError(
            f"the checkpoint is of the segments in {marks.topic}, not {origin.topic}: two"
            " deployments share an application id. Give each its own DURABILL_APPLICATION_ID"
        )
    if marks.topic_id and origin.topic_id and marks.topic_id != origin.topic_id:
        raise StateError(
            f"{origin.topic} was deleted and recreated since the checkpoint, so its offsets mean"
            f" other segments now: {BEGIN_ANEW}"
        )
    if marks.checkpoint_id and origin.checkpoint_id and marks.checkpoint_id != origin.checkpoint_id:
        raise StateError(
            "the checkpoint topic was deleted and made anew while a worker ran, so that it lacks"
            f" what had not changed since. Restore it, or {START_ANEW}"
        )
    return marks


def restore_lane(
    table: IntervalTable,
    entries: Mapping[bytes, bytes],
    origin: Origin,
    marks: Marks | None,
    *,
    first_offset: int,
    tail: Tail,
) -> Lane:
    """Return a lane with its table filled from the changelog's entries of all partitions.

    `first_offset` is where a log without marks begins; `tail` is what the totals topic holds from
    the marks' place on. Raises StateError if entries are damaged.
    """
    partition = table.place.partition
    prefix = entry_key(partition, "")
    others = {entry_key(partition, name) for name in NO_BLOCKS}
    blocks = [
        value for key, value in entries.items() if key.startswith(prefix) and key not in others
    ]
    # Blocks without marks are what a crash in version 1's very first checkpoint can leave.
    clock_ms, next_offset = (
        (0, first_offset) if marks is None else (marks.clock_ms, marks.next_offset)
    )
    table.restore(blocks, clock_ms)
    said = _said(table, next_offset, tail.records)
    return Lane(table, origin, next_offset, said=said)


def _said(
    table: IntervalTable, next_offset: int, totals: Sequence[tuple[int, bytes, bytes | None]]
) -> dict[bytes, list[tuple[int, bytes]]]:
    """Return those of the totals that the table doesn't know of, so that a replay repeats them.

    A revision alone doesn't tell: an order that was forgotten begins again with the first. But its
    records are younger than all that it had before. And what the table has forgotten altogether
    can only come of records that the replay, from `next_offset` on, has yet to bring.
    """
    said: dict[bytes, list[tuple[int, bytes]]] = {}
    for offset, key, value in totals:
        if value is None:
            continue
        try:
            total = decode_total(value)
        except BadTotal:
            continue  # somebody else's; the ledger reports it
        if partition_for(key, table.place.partitions) != table.place.partition:
            raise StateError(
                f"the totals topic has a total of order {shown(key.decode('utf-8', 'replace'))} in"
                f" partition {table.place.partition}, where it doesn't belong: it was filled while"
                " the segments had another number of partitions. Use new topics for both"
            )
        known = table.age_of(key) or (next_offset, 0)
        if (total.source_offset, total.revision) > known:
            said.setdefault(key, []).append((offset, value))
    return said


def _decode_marks(raw: bytes, partition: int, committed_offset: int | None) -> Marks | None:
    try:
        fields: Any = msgspec.msgpack.decode(raw)
        version = fields[0] if isinstance(fields, list) and fields else None
        if version == MARKS_VERSION:
            return msgspec.convert(fields, Marks)
        if version == 1:
            old = msgspec.convert(fields, MarksV1)
            return _from_v1(old, partition, committed_offset)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StateError(f"the marks of a checkpoint are damaged: {error}") from error
    raise StateError(f"a checkpoint's marks have version {version}, not {MARKS_VERSION}")


def _from_v1(old: MarksV1, partition: int, committed_offset: int | None) -> Marks | None:
    if committed_offset is None:
        return None  # it died before its very first commit: the log is read from its start
    clocks = dict(old.clocks)
    if committed_offset not in clocks:
        raise StateError(
            f"partition {partition} is committed at offset {committed_offset}, but its"
            f" checkpoint knows only {sorted(clocks)}: somebody moved the group's offsets, or two"
            " deployments share an application id"
        )
    return Marks(MARKS_VERSION, old.partitions, committed_offset, clocks[committed_offset], None)
