"""The transport: a fetch is one chunk of whole batches; what was aborted or is damaged is not."""

import asyncio
import gc
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.util import calc_crc32c_py

from durabill.stream_processors.engine.batch import Chunk, headers_in, records
from durabill.stream_processors.worker.driver import (
    ActivePartitions,
    ChunkRecords,
    FetchedRecords,
    RawMemoryRecords,
)
from tests.broker.traffic_kit import now_ms, segment
from tests.broker.worker_kit import Deployment, deployment, send
from tests.conftest import Topics
from tests.property.batches import CONTROL, LOG_APPEND_TIME, encode_batch
from tests.waiting import HANG_S, wait_until

TP = TopicPartition("segments", 3)
TRANSACTIONAL = LOG_APPEND_TIME | 0x10
COMMIT, ABORT = b"\x00\x00\x00\x01", b"\x00\x00\x00\x00"
COMMITTED_ONLY, ALL = 1, 0


def batch(offset: int, count: int = 1, *, producer: int = -1, marker: bytes = b"") -> bytes:
    """A batch of `count` records; of a transaction of `producer`'s, or its marker, where given."""
    attributes = LOG_APPEND_TIME if producer < 0 else TRANSACTIONAL
    if marker:
        attributes |= CONTROL
        entry = (marker, b"\x00" * 6, ())
    else:
        entry = (b"key", b"value", ())
    entries: Any = [(each, entry) for each in range(offset, offset + count)]
    data = bytearray(encode_batch(offset, 1_000 + offset, entries, attributes=attributes))
    data[43:51] = struct.pack(">q", producer)
    data[17:21] = struct.pack(">I", calc_crc32c_py(bytes(data[21:])))
    return bytes(data)


def fetched(
    data: bytes,
    fetch_offset: int = 0,
    *,
    aborted: tuple[tuple[int, int], ...] = (),
    isolation: int = COMMITTED_ONLY,
) -> ChunkRecords:
    """What a fetch of these bytes gives; `aborted` are (producer, first offset)."""
    plain = PartitionRecords(
        TP, RawMemoryRecords(data), list(aborted), fetch_offset, None, None, True, isolation
    )
    return ChunkRecords.take_over(plain)


def the_chunk(records_of_fetch: Iterator[Any]) -> Chunk:
    """The chunk in the only message."""
    (message,) = records_of_fetch
    chunk: Chunk = message.value
    assert message.offset == chunk.next_offset - 1
    return chunk


def base_offsets(chunk: Chunk) -> list[int]:
    """The base offsets of the chunk's batches."""
    return [header.base_offset for _, header in headers_in(chunk.data)]


def test_fetch_is_one_message_with_its_batches_whole() -> None:
    data = batch(0, 3) + batch(3) + batch(4, 2)
    fetch = fetched(data)
    assert the_chunk(fetch) == Chunk(0, 6, data)
    assert fetch.next_fetch_offset == 6


def test_fetch_may_begin_inside_a_batch() -> None:
    chunk = the_chunk(fetched(batch(0, 3) + batch(3), fetch_offset=2))
    assert (chunk.first_offset, chunk.next_offset, base_offsets(chunk)) == (2, 4, [0, 3])
    assert [each.offset for each in records(chunk)] == [2, 3]


@pytest.mark.parametrize("lost", [1, 20, len(batch(3)) - 1])
def test_batch_that_the_size_limit_cut_comes_with_the_next_fetch(lost: int) -> None:
    fetch = fetched((batch(0, 3) + batch(3))[:-lost])
    assert the_chunk(fetch) == Chunk(0, 3, batch(0, 3))
    assert fetch.next_fetch_offset == 3


def test_nothing_but_a_cut_batch_is_no_message() -> None:
    fetch = fetched(batch(0, 3)[:-1])
    assert list(fetch) == []
    assert fetch.next_fetch_offset == 0


def test_offsets_that_compaction_left_out_are_passed() -> None:
    data = encode_batch(5, 1_000, [(6, (b"k", b"v", ()))], next_offset=10)
    assert the_chunk(fetched(data, fetch_offset=5)) == Chunk(5, 10, data)


@pytest.mark.parametrize("at", [-1, 70, 22, 30, 45])
def test_flipped_bit_is_fatal(at: int) -> None:
    damaged = bytearray(batch(0, 3) + batch(3, 3))
    damaged[at] ^= 0x20
    with pytest.raises(CorruptRecordException, match="segments"):
        list(fetched(bytes(damaged), isolation=ALL))


def test_aborted_transactions_are_hidden() -> None:
    plain, again = batch(3), batch(5, 2, producer=7)
    data = b"".join(
        (
            batch(0, 3, producer=7),
            plain,
            batch(4, producer=7, marker=ABORT),
            again,
            batch(7, producer=7, marker=COMMIT),
        )
    )
    assert the_chunk(fetched(data, aborted=((7, 0),))) == Chunk(0, 8, plain + again)


def test_interleaved_transactions_are_told_apart() -> None:
    of_8 = batch(1, producer=8) + batch(4, producer=8)
    data = b"".join(
        (
            batch(0, producer=7),
            of_8[: len(of_8) // 2],
            batch(2, producer=9),
            batch(3, producer=7, marker=ABORT),
            of_8[len(of_8) // 2 :],
            batch(5, producer=9, marker=ABORT),
            batch(6, producer=8, marker=COMMIT),
        )
    )
    assert the_chunk(fetched(data, aborted=((9, 2), (7, 0)))) == Chunk(0, 7, of_8)


def test_aborted_transaction_that_began_before_the_fetch_is_hidden() -> None:
    data = batch(50, 2, producer=7) + batch(52, producer=7, marker=ABORT) + batch(53)
    chunk = the_chunk(fetched(data, fetch_offset=50, aborted=((7, 10),)))
    assert chunk == Chunk(50, 54, batch(53))


def test_offsets_go_on_after_control_batches() -> None:
    fetch = fetched(batch(9, producer=7, marker=COMMIT), fetch_offset=9)
    assert the_chunk(fetch) == Chunk(9, 10, b"")
    assert fetch.next_fetch_offset == 10


def test_control_batches_are_hidden_at_any_isolation() -> None:
    open_ = batch(0, producer=7)
    data = open_ + batch(1, producer=7, marker=ABORT)
    assert the_chunk(fetched(data, isolation=ALL)) == Chunk(0, 2, open_)


def test_fetch_is_freed_without_a_search_for_cycles() -> None:
    """Which the worker does seldom: fetches of megabytes would pile up until then."""
    raw = RawMemoryRecords(batch(0, 3))
    alive = weakref.ref(raw)
    gc.disable()
    try:
        plain = PartitionRecords(TP, raw, [], 0, None, None, True, COMMITTED_ONLY)
        del raw
        records_of_fetch = ChunkRecords.take_over(plain)
        del plain
        assert len(list(records_of_fetch)) == 1
        del records_of_fetch
        assert alive() is None
    finally:
        gc.enable()


def result_for(topic: str) -> FetchResult:
    """A fetch's result as aiokafka stores it."""
    tp = TopicPartition(topic, 0)
    plain = PartitionRecords(tp, RawMemoryRecords(batch(0, 3)), None, 0, None, None, True, 1)
    return FetchResult(tp, assignment=None, partition_records=plain, backoff=0)


def test_other_topics_go_the_ordinary_way() -> None:
    store = FetchedRecords("segments")
    for topic in ("segments", "changelog"):
        store[TopicPartition(topic, 0)] = result_for(topic)
    changelog, segments = (
        store[TopicPartition(topic, 0)]._partition_records for topic in ("changelog", "segments")
    )
    assert [each.offset for each in changelog] == [0, 1, 2]
    assert the_chunk(segments).next_offset == 3


def test_nothing_is_handed_out_that_would_be_lost() -> None:
    """No active partitions are not all; segments wait until a rebalance is over."""
    changelog = TopicPartition("changelog", 3)
    active = {TP, changelog}
    app = SimpleNamespace(segments_topic_name="segments", rebalancing=False)
    consumer = SimpleNamespace(flow_active=True, app=app, held=set())
    partitions: Any = ActivePartitions(consumer, active)
    assert TP in partitions
    assert changelog in partitions
    app.rebalancing = True
    assert TP not in partitions
    assert changelog in partitions
    consumer.flow_active = False
    assert changelog not in partitions
    app.rebalancing, consumer.flow_active = False, True
    consumer.held.add(TP)
    assert TP not in partitions
    consumer.held.clear()
    assert TP in partitions
    active.clear()
    assert bool(partitions)
    assert TP not in partitions


def test_several_batches_of_a_real_broker_are_one_message(
    bootstrap_servers: str, topics: Topics
) -> None:
    for _ in range(3):
        send(bootstrap_servers, topics.segments, [(b"key", b"value")] * 5, partition=1)
    tp = TopicPartition(topics.segments, 1)

    async def consume() -> list[Any]:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
        await consumer.start()
        try:
            consumer._fetcher._records = FetchedRecords(topics.segments)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            found: dict[Any, list[Any]] = await consumer.getmany(timeout_ms=20_000)
            assert await consumer.position(tp) == 15
            return found[tp]
        finally:
            await consumer.stop()

    chunk = the_chunk(iter(asyncio.run(consume())))
    assert (chunk.first_offset, chunk.next_offset) == (0, 15)
    assert len(base_offsets(chunk)) == 3
    assert [each.offset for each in records(chunk)] == list(range(15))


def corrupted(deployed: Deployment) -> int:
    """Exit code of a worker whose memory, or network, flips bits."""
    broken = "import durabill.stream_processors.worker.driver as d; d.calc_crc32c = lambda _: 0"
    worker = deployed.start_and_wait(prelude=broken)
    deployed.send([segment("flipped", 1, now_ms() - 10, now_ms(), True)])
    code = worker.wait(HANG_S)  # at once: a last checkpoint is not waited for
    assert "Invalid CRC" in worker.log()
    return code


def test_worker_stops_at_a_corrupt_batch(bootstrap_servers: str, tmp_path: Path) -> None:
    with deployment(bootstrap_servers, tmp_path) as deployed:
        assert corrupted(deployed) not in (0, None)
        worker = deployed.start()
        wait_until(lambda: bool(deployed.found_totals()), "another worker carries on")
        assert worker.stop() == 0
        assert not deployed.differences()
