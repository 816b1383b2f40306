"""Compares the checkpoint, as a worker would restore it, with what the oracle says of each order.

At rest every order has settled, so what the checkpoint keeps of it must be what its last total
says. Repeats that came after that total are counted in the order and in no total.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from durabill.schemas import OrderTotal, WriterSchemas
from durabill.schemas.order_state import Phase
from durabill.stream_processors.engine.checkpoint import SegmentsTopic, find_meta
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.kafka.reading import read_topic
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.ports import Tail
from durabill.stream_processors.worker.recovery import restore_task

_SAME = ("duration_ms", "started_ms", "ended_ms", "end_number", "segments", "revision")


def checkpoint_entries(kafka: dict[str, str], topic: str) -> dict[bytes, bytes]:
    """Return the changelog's entries, the last of each key, as read_committed."""
    entries: dict[bytes, bytes] = {}
    for _, _, message in read_topic(kafka, topic):
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        if value is None:
            entries.pop(key, None)
        else:
            assert isinstance(value, bytes)
            entries[key] = value
    return entries


def differences(
    settings: Settings,
    entries: Mapping[bytes, bytes],
    place: tuple[int, int],
    latest: Mapping[str, OrderTotal],
    clock_ms: int,
    committed: int | None,
) -> dict[str, list[str]]:
    """Return what is wrong in one partition's checkpoint, by what it is; empty where all is right.

    `place` is (partition, partitions), `latest` the last total of each of its orders, `clock_ms`
    the greatest append time of its log, `committed` the group's offset.
    """
    partition, partitions = place
    table = ColumnTable(Place(partition, partitions), settings.policy, WriterSchemas())
    segments_topic = SegmentsTopic(settings.segments_topic, "", partitions)
    meta = find_meta(entries, partition, segments_topic, committed)
    if meta is None or meta.next_offset != committed:
        return {"meta": [f"{meta}, committed {committed}"]}
    # At rest nothing has been published since the checkpoint, so there is no tail to it.
    nothing = Tail([], meta.totals_offset or 0)
    restore_task(table, entries, segments_topic, meta, first_offset=0, tail=nothing)
    found = {
        "orders that are wrong": list(_wrong(table, latest)),
        "the number of orders": [f"{len(table)}, must be {len(latest)}"],
        "the clock": [f"{table.clock_ms}, must be {clock_ms} at least"],
    }
    if len(table) == len(latest):
        del found["the number of orders"]
    if table.clock_ms >= clock_ms:
        del found["the clock"]
    return found


def _wrong(table: ColumnTable, latest: Mapping[str, OrderTotal]) -> Iterator[str]:
    for number, total in latest.items():
        kept = table.describe(number)
        must: dict[str, Any] = {name: getattr(total, name) for name in _SAME}
        must["intervals"] = list(total.intervals)
        must["missing_numbers"] = list(total.missing_numbers)
        must["phase"] = Phase.SETTLED
        same = kept is not None and all(getattr(kept, name) == must[name] for name in must)
        if kept is None or not same or kept.duplicates < total.duplicates:
            yield f"{number}: {kept}, must be {must}"
