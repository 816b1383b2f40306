"""Record batches put into the log byte by byte, as no client library would write them."""

import asyncio
import struct

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from tests.property.batches import CODECS, compress

REFUSED = 87
"""Kafka's INVALID_RECORD."""


def batch(records: list[bytes], codec: str = "none") -> bytes:
    """A batch of encoded records as a producer sends it; the broker gives it offsets and a time."""
    body = compress(codec, b"".join(records))
    count = len(records)
    checked = struct.pack(">hiqqqhii", CODECS[codec], count - 1, 1, 1, -1, -1, -1, count) + body
    return struct.pack(">qiibI", 0, len(checked) + 9, 0, 2, calc_crc32c(checked)) + checked


def fetch(bootstrap_servers: str, topic: str, partition: int) -> bytes:
    """Returns the first record batches of a partition, some megabytes, as they lie in the log."""

    async def run() -> bytes:
        client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
        await client.bootstrap()
        try:
            client.add_topic(topic)
            await client.force_metadata_update()
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            size = 4 << 20
            topics = [(topic, [(partition, 0, size)])]
            request = FetchRequest(
                max_wait_time=500,
                min_bytes=1,
                max_bytes=size,
                isolation_level=0,
                topics=topics,
            )
            answer = await client.send(node, request)
            ((_, (found,)),) = answer.topics
            return bytes(found[-1])
        finally:
            await client.close()

    return asyncio.run(run())


def append(bootstrap_servers: str, topic: str, partition: int, data: bytes) -> int:
    """Has the broker append a batch; returns its error code, 0 for none."""

    async def run() -> int:
        client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
        await client.bootstrap()
        try:
            client.add_topic(topic)
            await client.force_metadata_update()
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            topics = [(topic, [(partition, data)])]
            request = ProduceRequest(
                required_acks=-1, timeout=10_000, topics=topics, transactional_id=None
            )
            answer = await client.send(node, request)
            ((_, ((_, code, *_),)),) = answer.topics
            return int(code)
        finally:
            await client.close()

    return asyncio.run(run())
