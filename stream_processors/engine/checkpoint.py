"""Checkpoints: a partition's interval table in the entries of an ordinary Faust `Table`.

Keys are `partition/entry`, with the names that `slots` explains, `partition/meta` for the
checkpoint's meta, and `partition/policy` and `partition/schemas` for what else decides totals
(`policies`, `verdicts`). Union is idempotent and every order knows its last offset, so entries need
not be written atomically: a checkpoint that a crash tore is a mixture of older and newer entries,
and the replay from the meta's offset brings each of them to the same state. The partition's writer
writes all of it, so the partition's owner alone does. `effect_order` has the steps.

The meta alone decides where a replay starts; the group's offset, which anybody can move, follows
it. The meta holds the partition's append-time clock at that offset, so that a replay starts with
the very clock that the records were judged by. It also holds the ends of the totals and of the
orders topic as they were: recovery reads both from there on, and suppresses what it finds when the
replay gives it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from durabill.schemas.errors import (
    BEGIN_ANEW,
    NEW_TOPICS,
    OWN_APPLICATION_ID,
    REBUILD,
    START_ANEW,
    StateError,
)
from durabill.stream_processors.engine.blocks import Snapshot
from durabill.stream_processors.engine.policies import POLICY
from durabill.stream_processors.engine.verdicts import SCHEMAS

META_VERSION = 3
META = "meta"
NO_BLOCKS = (META, POLICY, SCHEMAS)


class CheckpointMeta(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
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
    """The changelog's own topic id: a recreated changelog lacks the blocks written before."""
    orders_offset: int | None = None
    """As `totals_offset`, of the orders topic; None: not known (before version 3)."""


class CheckpointMetaV1(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Meta of version 1: the group's offset chose one of [(next offset, clock_ms)]."""

    version: int
    partitions: int
    clocks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SegmentsTopic:
    """The segments topic that a checkpoint is of. `topic_id` is "" where the broker has none."""

    name: str
    topic_id: str
    partitions: int
    checkpoint_id: str = ""
    """The topic id of the changelog as it was when the worker started."""


def entry_key(partition: int, name: str) -> bytes:
    """Return the key of a table entry."""
    return f"{partition}/{name}".encode()


def packed(
    snapshots: list[tuple[bytes, Snapshot | None]],
) -> list[tuple[bytes, bytes | None]]:
    """Return entries as they are written; takes a while, but no interpreter lock."""
    return [(key, snapshot.pack() if snapshot else None) for key, snapshot in snapshots]


def blocks_in(entries: Mapping[bytes, bytes], partition: int) -> list[bytes]:
    """Return the blocks of one partition among the changelog's entries."""
    prefix = entry_key(partition, "")
    others = {entry_key(partition, name) for name in NO_BLOCKS}
    return [value for key, value in entries.items() if key.startswith(prefix) and key not in others]


def encode_meta(
    segments_topic: SegmentsTopic,
    *,
    next_offset: int,
    clock_ms: int,
    totals_offset: int,
    orders_offset: int,
) -> bytes:
    """Return the meta of a checkpoint as it is written."""
    meta = CheckpointMeta(
        META_VERSION,
        segments_topic.partitions,
        next_offset,
        clock_ms,
        totals_offset,
        segments_topic.name,
        segments_topic.topic_id,
        segments_topic.checkpoint_id,
        orders_offset,
    )
    return msgspec.msgpack.encode(meta)


def find_meta(
    entries: Mapping[bytes, bytes],
    partition: int,
    segments_topic: SegmentsTopic,
    committed_offset: int | None,
) -> CheckpointMeta | None:
    """Return the meta of a partition among the changelog's entries, None where it has none yet.

    `committed_offset` is the group's (None: it has never committed). Raises StateError if the meta
    is damaged or missing, or belongs to other segments.
    """
    raw = entries.get(entry_key(partition, META))
    if raw is None:
        if committed_offset is not None:
            raise StateError(
                f"partition {partition} is committed up to offset {committed_offset},"
                " but its checkpoint is empty: the changelog topic was deleted, or another program"
                " uses this application id. Restore the topic, or rebuild the checkpoint from the"
                f" log with `durabill rebuild checkpoint`, or {START_ANEW}"
            )
        return None
    meta = _decode_meta(raw, partition, committed_offset)
    if meta is not None:
        _check_meta(meta, segments_topic)
    return meta


def meta_in(entries: Mapping[bytes, bytes], partition: int) -> CheckpointMeta | None:
    """Return a partition's meta for somebody who only looks; None where it has none of today's."""
    raw = entries.get(entry_key(partition, META))
    return None if raw is None else _decode_meta(raw, partition, None)


def _check_meta(meta: CheckpointMeta, topic: SegmentsTopic) -> None:
    """Raise StateError if the checkpoint is of other segments than these."""
    if meta.partitions != topic.partitions:
        raise StateError(
            f"the checkpoint was made with {meta.partitions} partitions, the segments topic has"
            f" {topic.partitions}: orders have moved: {NEW_TOPICS}"
        )
    if meta.topic and meta.topic != topic.name:
        raise StateError(
            f"the checkpoint is of the segments in {meta.topic}, not {topic.name}: two"
            f" deployments share an application id. {OWN_APPLICATION_ID}"
        )
    if meta.topic_id and topic.topic_id and meta.topic_id != topic.topic_id:
        raise StateError(
            f"{topic.name} was deleted and recreated since the checkpoint, so its offsets mean"
            f" other segments now: {BEGIN_ANEW}"
        )
    if meta.checkpoint_id and topic.checkpoint_id and meta.checkpoint_id != topic.checkpoint_id:
        raise StateError(
            "the checkpoint topic was deleted and recreated while a worker ran, so it lacks the"
            f" blocks that had not changed since. Restore it, or {START_ANEW}"
        )


def _decode_meta(raw: bytes, partition: int, committed_offset: int | None) -> CheckpointMeta | None:
    try:
        fields: Any = msgspec.msgpack.decode(raw)
        version = fields[0] if isinstance(fields, list) and fields else None
        if version in (2, META_VERSION):
            return msgspec.convert(fields, CheckpointMeta)
        if version == 1:
            old = msgspec.convert(fields, CheckpointMetaV1)
            return _from_v1(old, partition, committed_offset)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StateError(f"the meta of a checkpoint is damaged: {error}. {REBUILD}") from error
    raise StateError(f"the meta of a checkpoint has version {version}, not {META_VERSION}")


def _from_v1(
    old: CheckpointMetaV1, partition: int, committed_offset: int | None
) -> CheckpointMeta | None:
    if committed_offset is None:
        return None  # it died before its very first commit: the log is read from its start
    clocks = dict(old.clocks)
    if committed_offset not in clocks:
        raise StateError(
            f"partition {partition} is committed at offset {committed_offset}, but its"
            f" checkpoint knows only {sorted(clocks)}: somebody moved the group's offsets, or two"
            " deployments share an application id"
        )
    clock_ms = clocks[committed_offset]
    return CheckpointMeta(META_VERSION, old.partitions, committed_offset, clock_ms, None)
