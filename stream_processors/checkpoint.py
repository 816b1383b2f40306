"""Checkpoints: a partition's interval table in the entries of an ordinary Faust `Table`.

Keys are `partition/block`, and `partition/meta` for the marks. Union is idempotent and every order
knows its last offset, so blocks need not be written all at once or not at all: a checkpoint that
a crash tore is a mixture of older and newer blocks, and the replay from the committed offset brings
each of them to the same place.

The effect order, which a test walks by killing the worker after each step:

    1 folded      a chunk is in the table; its totals and dead letters are queued
    2 cut         the offset is noted; then the changed blocks are encoded, a few at a time
    3 published   every total, dead letter and forward that the blocks rest on has been delivered
    4 written     every changed block and the marks have been delivered to the changelog
    5 committed   the group's offset has moved to the cut
    6 confirmed   orders that were forgotten before the cut give back their slots

The marks hold (offset, clock) pairs: the partition's append-time clock at every offset that may be
the committed one, so that a replay starts with the very clock that the records were judged by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from stream_processors.blocks import Snapshot
from stream_processors.errors import StateError
from stream_processors.table import IntervalTable

MARKS_VERSION = 1
META = "meta"


class Marks(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a checkpoint says of its partition; `clocks` is [(next offset, clock_ms), ...]."""

    version: int
    partitions: int
    clocks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Cut:
    """What a checkpoint of one partition has to write: `blocks`, and the marks at `next_offset`."""

    lane: "Lane"
    next_offset: int
    clock_ms: int
    blocks: list[int]
    marks: bytes

    def snapshots(self, count: int) -> Iterator[list[tuple[bytes, Snapshot | None]]]:
        """Yield (entry key, content) of the blocks, `count` at a time, each as of now.

        A block that is taken later than the cut holds orders that are ahead of it; a replay from
        the cut passes over what they have seen.
        """
        for at in range(0, len(self.blocks), count):
            yield [
                (entry_key(self.lane.partition, str(block)), self.lane.table.snapshot(block))
                for block in self.blocks[at : at + count]
            ]


@dataclass(slots=True)
class Lane:
    """One assigned partition: its table, and how far it and its checkpoints have come."""

    table: IntervalTable
    next_offset: int | None = None
    """The offset that the table waits for; None before the first chunk of a new group."""
    committed: tuple[int, int] | None = None
    """(next offset, clock_ms) of the last commit that is known to have worked."""
    pending: list[tuple[int, int]] = field(default_factory=list)

    @property
    def partition(self) -> int:
        """Return the partition's number."""
        return self.table.place.partition

    def cut(self) -> Cut | None:
        """Return what a checkpoint as of now has to write, or None if nothing has changed."""
        changed = self.table.take_changed()
        if self.next_offset is None:
            assert not changed
            return None
        if not changed and self.committed is not None and self.committed[0] == self.next_offset:
            return None
        mark = (self.next_offset, self.table.clock_ms)
        known = [] if self.committed is None else [self.committed]
        self.pending = [*self.pending, mark]
        marks = Marks(MARKS_VERSION, self.table.place.partitions, known + self.pending)
        return Cut(self, *mark, changed, msgspec.msgpack.encode(marks))

    def commit_worked(self, cut: Cut) -> None:
        """Take note that the group's offset is at the cut."""
        mark = (cut.next_offset, cut.clock_ms)
        self.committed = mark
        self.pending = [each for each in self.pending if each[0] > mark[0]]
        self.table.confirm(cut.clock_ms)


def entry_key(partition: int, name: str) -> bytes:
    """Return the key of a table entry."""
    return f"{partition}/{name}".encode()


def restore_lane(
    table: IntervalTable, entries: Mapping[bytes, bytes | None], committed_offset: int | None
) -> Lane:
    """Return a lane with its table filled from the changelog's entries of all partitions.

    `committed_offset` is where the replay will start (None: the group has never committed).
    Raises StateError if entries are damaged, or don't fit the partition number or the offset.
    """
    lane = Lane(table, next_offset=committed_offset)
    prefix = entry_key(table.place.partition, "")
    own = {key[len(prefix) :]: value for key, value in entries.items() if key.startswith(prefix)}
    blocks = [value for key, value in own.items() if key != META.encode() and value is not None]
    raw_marks = own.get(META.encode())
    if raw_marks is None:
        if committed_offset is not None:
            raise StateError(
                f"partition {table.place.partition} is committed up to offset {committed_offset},"
                " but its checkpoint is empty: the changelog topic was deleted, or another program"
                " uses this application id. Restore the topic, or start anew from the first"
                " segment under another DURABILL_APPLICATION_ID"
            )
        # Blocks without marks are what a crash in the very first checkpoint can leave.
        table.restore(blocks, clock_ms=0)
        return lane
    marks = _decode_marks(raw_marks)
    if marks.partitions != table.place.partitions:
        raise StateError(
            f"the checkpoint was made with {marks.partitions} partitions, the segments topic has"
            f" {table.place.partitions}: orders have moved. Start anew under another"
            " DURABILL_APPLICATION_ID, which replays the segments from the start"
        )
    if committed_offset is None:
        # The process died between writing and its very first commit: the log is read from its
        # start, and each order passes over what it has seen.
        table.restore(blocks, clock_ms=0)
        return lane
    clocks = dict(marks.clocks)
    if committed_offset not in clocks:
        raise StateError(
            f"partition {table.place.partition} is committed at offset {committed_offset}, but its"
            f" checkpoint knows only {sorted(clocks)}: somebody moved the group's offsets, or two"
            " deployments share an application id"
        )
    table.restore(blocks, clocks[committed_offset])
    lane.committed = (committed_offset, clocks[committed_offset])
    return lane


def _decode_marks(raw: bytes) -> Marks:
    try:
        marks = msgspec.msgpack.decode(raw, type=Marks)
    except msgspec.DecodeError as error:
        raise StateError(f"the marks of a checkpoint are damaged: {error}") from error
    if marks.version != MARKS_VERSION:
        raise StateError(f"a checkpoint's marks have version {marks.version}, not {MARKS_VERSION}")
    return marks
