"""A worker takes over the open orders of the version before, from a checkpoint that it wrote."""

from collections.abc import Iterable
from pathlib import Path

import cramjam
import msgspec
from confluent_kafka import Producer, TopicPartition

from durabill.producers.fleet.truth import LogRecord
from durabill.schemas import WriterSchemas, decode_total
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import META, entry_key, find_meta
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.slots import BLOCK_SLOTS
from durabill.stream_processors.engine.table import IntervalTable, Place
from durabill.stream_processors.settings import Settings
from durabill.stream_processors.worker.faust_runtime import find_segments_topic
from tests.broker.traffic_kit import move_group, now_ms, segment
from tests.broker.worker_kit import Deployment, deployment, read_committed
from tests.property.batches import encode_batch
from tests.waiting import HANG_S

ORDERS = 50
NUMBERS = 10


def numbers(first: int, after: int) -> Iterable[tuple[bytes, bytes]]:
    """Segments first to after - 1 of all orders; the last one carries the end identifier."""
    start_ms = now_ms() - 3_600_000
    for number in range(first, after):
        for order in range(ORDERS):
            at_ms = start_ms + 1_000 * number
            end = number == NUMBERS
            yield segment(f"SO-{order}", number, at_ms, at_ms + 1_000, end)


def block_v1(table: IntervalTable, block: int) -> bytes:
    """A block of plain orders as version 1 had it."""
    names = [
        "end_number",
        "accepted",
        "length_sum_ms",
        "started_ms",
        "ended_ms",
        "phase",
        "deadline_ms",
        "source_offset",
        "revision",
        "digest",
        "forwarded",
    ]
    states = []
    slots = table._plain.slots
    for slot in sorted(each for each in slots.taken() if each // BLOCK_SLOTS == block):
        order = slots.at(slot)
        assert order is not None
        state = [slot, order.service_order_number, order.source_partition]
        state += [list(order.time), list(order.numbers)]
        states.append(state + [getattr(order, name) for name in names])
    return b"\x01" + bytes(cramjam.zstd.compress(msgspec.msgpack.encode(states), 1))


def checkpoint_v1(deployed: Deployment, records: list[LogRecord], partition: int) -> int:
    """Writes what the version before wrote: blocks of version 1, and a meta without an offset."""
    own = [each for each in records if each.partition == partition]
    table = PlainTable(Place(partition, deployed.partitions), Policy(), WriterSchemas())
    for each in own:
        batch = encode_batch(
            each.offset, each.append_ms, [(each.offset, (each.key, each.value, ()))]
        )
        assert not table.fold(Chunk(each.offset, each.offset + 1, batch)).totals
    next_offset = own[-1].offset + 1
    producer = Producer(deployed.kafka)
    meta = msgspec.msgpack.encode([1, deployed.partitions, [(next_offset, table.clock_ms)]])
    entries = [(name, block_v1(table, int(name))) for name in table.take_changed()]
    for name, content in [*entries, (META, meta)]:
        producer.produce(
            deployed.checkpoint, content, entry_key(partition, name), partition=partition
        )
    assert producer.flush(HANG_S) == 0
    return next_offset


def test_open_orders_of_the_version_before(bootstrap_servers: str, tmp_path: Path) -> None:
    with deployment(bootstrap_servers, tmp_path, idle_timeout_s=300) as deployed:
        deployed.send(numbers(1, 6))
        log = deployed.log()
        offsets = {each: checkpoint_v1(deployed, log, each) for each in range(deployed.partitions)}
        places = [TopicPartition(deployed.segments, each, at) for each, at in offsets.items()]
        move_group(deployed.bootstrap_servers, deployed.name, places)

        worker = deployed.start_and_wait()
        assert f"{ORDERS} orders known" in worker.log()
        deployed.send(numbers(6, NUMBERS + 1))
        deployed.wait_for_truth()
        totals = [decode_total(each.value()) for each in deployed.found_totals()]
        assert sorted(each.segments for each in totals) == [NUMBERS] * ORDERS
        assert worker.stop() == 0

        latest = {
            each.key(): each.value()
            for each in read_committed(bootstrap_servers, deployed.checkpoint)
        }
        entries = {key: value for key, value in latest.items() if key and value}
        settings = Settings(
            bootstrap_servers=bootstrap_servers,
            application_id=deployed.name,
            segments_topic=deployed.segments,
        )
        segments_topic = find_segments_topic(settings, deployed.partitions)
        for partition in offsets:
            meta = find_meta(entries, partition, segments_topic, None)
            assert meta is not None
            assert (meta.version, meta.topic_id) == (3, segments_topic.topic_id)
