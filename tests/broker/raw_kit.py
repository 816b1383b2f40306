"""Record batches put into the log byte by byte, as no client library would write them."""

import asyncio
import struct
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from tests.property.batches import CODECS, compress
from tests.waiting import HANG_S

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

    size = 4 << 20
    request = FetchRequest(
        max_wait_time=500,
        min_bytes=1,
        max_bytes=size,
        isolation_level=0,
        topics=[(topic, [(partition, 0, size)])],
    )
    answer = asyncio.run(_asked(bootstrap_servers, topic, partition, request))
    ((_, (found,)),) = answer.topics
    return bytes(found[-1])


def append(bootstrap_servers: str, topic: str, partition: int, data: bytes) -> int:
    """Has the broker append a batch; returns its error code, 0 for none."""

    request = ProduceRequest(
        required_acks=-1,
        timeout=int(HANG_S * 1_000),
        topics=[(topic, [(partition, data)])],
        transactional_id=None,
    )
    answer = asyncio.run(_asked(bootstrap_servers, topic, partition, request))
    ((_, ((_, code, *_),)),) = answer.topics
    return int(code)


async def _asked(bootstrap_servers: str, topic: str, partition: int, request: Any) -> Any:
    """What the partition's leader answers to a request of the protocol."""
    client = AIOKafkaClient(
        bootstrap_servers=bootstrap_servers, request_timeout_ms=int(HANG_S * 1_000)
    )
    await client.bootstrap()
    try:
        client.add_topic(topic)
        await client.force_metadata_update()
        node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return await client.send(node, request)
    finally:
        await client.close()
