"""Reads one partition's record batches as the broker keeps them, from outside any group.

A thread fetches ahead by fetch requests of its own (aiokafka's client and protocol, pinned at
0.14.0), up to an end that was known before. So every offset can be accounted for: consumers hide
markers, aborted transactions and holes alike.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    NoError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from durabill.schemas.errors import CorruptBatch, DurabillError
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.replay import LogPart
from durabill.stream_processors.engine.batch import CRC_FROM, Chunk
from durabill.stream_processors.engine.standing import (
    Aborted,
    Standing,
    standings,
    whole_batches,
)
from durabill.stream_processors.kafka.errors import Right, lacks_right
from durabill.stream_processors.settings import Settings

FETCH_BYTES = 4 * 1024 * 1024
FETCHES_AHEAD = 2
PATIENCE_S = 30.0
"""For so long nothing may come of a log that has not been read to its end."""

PAUSE_S = 0.2
_READ_COMMITTED = 1


def part_of(data: bytes, aborted: Aborted, first_offset: int, end_offset: int) -> LogPart:
    """Return what a fetch from `first_offset` on brought: whole batches, and each offset's kind.

    A batch that reaches beyond `end_offset` is left out. Raises CorruptBatch.
    """
    kept: list[memoryview] = []
    view = memoryview(data)
    next_offset, counts = first_offset, dict.fromkeys(Standing, 0)
    missing: list[tuple[int, int]] = []
    skipped: list[tuple[int, int, Standing]] = []
    for at, header, standing in standings(data, aborted):
        if calc_crc32c(data[at + CRC_FROM : at + header.size]) != header.crc:
            raise CorruptBatch(f"the batch at offset {header.base_offset} has a wrong CRC")
        if header.next_offset > end_offset:
            break
        if header.base_offset > next_offset:
            missing.append((next_offset, header.base_offset))
        begins = max(next_offset, header.base_offset)
        offsets, next_offset = max(0, header.next_offset - begins), header.next_offset
        # Of a batch whose first records are deleted the count is still of all that it ever had.
        there = min(offsets, header.record_count)
        counts[standing] += there
        if there < offsets:
            missing.append((next_offset - offsets + there, next_offset))
        if standing is Standing.DATA:
            kept.append(view[at : at + header.size])
        else:
            skipped.append((begins, next_offset, standing))
    batches = data if sum(map(len, kept)) == len(data) else b"".join(kept)
    return LogPart(
        Chunk(first_offset, next_offset, batches),
        counts[Standing.DATA],
        counts[Standing.MARKER],
        counts[Standing.ABORTED],
        tuple(missing),
        tuple(skipped),
    )


class FetchedLog:
    """One partition of a topic on Kafka, [first_offset, end_offset); see `replay.LogSource`.

    `end_offset` must be a committed end that the broker has told of: the log is read until it is
    reached. Where a batch reaches beyond it, the end is that batch's beginning.
    """

    def __init__(
        self, settings: Settings, topic: str, partition: int, first_offset: int, end_offset: int
    ) -> None:
        self.partition = partition
        self.first_offset = first_offset
        self.end_offset = max(first_offset, end_offset)
        self._settings = settings
        self._topic = topic

    def parts(self) -> Iterator[LogPart]:
        """Yield the whole log. Raises AuditError, and AccessError without the right to read it."""
        if self.first_offset == self.end_offset:
            return
        fetched: queue.Queue[LogPart | BaseException | None] = queue.Queue(FETCHES_AHEAD)
        stopped = threading.Event()
        thread = threading.Thread(
            target=self._fetch_all, args=(fetched, stopped), name="raw-log", daemon=True
        )
        thread.start()
        reached = self.first_offset
        try:
            while (part := fetched.get()) is not None:
                if isinstance(part, BaseException):
                    raise part
                reached = part.chunk.next_offset
                yield part
        finally:
            stopped.set()
            while thread.is_alive():
                _drain(fetched)
                thread.join(0.05)
        self.end_offset = reached

    def _fetch_all(self, fetched: Any, stopped: threading.Event) -> None:
        """Put every part, then None, or the error that ended it; runs in a thread of its own."""
        try:
            asyncio.run(self._fetch(fetched, stopped))
            _put(fetched, None, stopped)
        except BaseException as error:  # whatever it is: the reader must not wait for ever
            _put(fetched, error, stopped)

    async def _fetch(self, fetched: Any, stopped: threading.Event) -> None:
        client = await _connected(self._settings, self._topic)
        try:
            offset = self.first_offset
            while offset < self.end_offset and not stopped.is_set():
                data, aborted = await self._fetch_one(client, offset)
                try:
                    part = part_of(whole_batches(data), aborted, offset, self.end_offset)
                except DurabillError as error:
                    raise AuditError(f"{self._topic}/{self.partition}: {error}") from error
                if part.chunk.next_offset == offset:
                    return  # the next batch reaches beyond the end
                offset = part.chunk.next_offset
                await asyncio.to_thread(_put, fetched, part, stopped)
        finally:
            await client.close()

    async def _fetch_one(self, client: AIOKafkaClient, offset: int) -> tuple[bytes, Aborted]:
        """Return what there is from an offset on; wait out what passes."""
        since_s, last = time.monotonic(), "it sends nothing"
        while time.monotonic() < since_s + PATIENCE_S:
            place = TopicPartition(self._topic, self.partition)
            node = client.cluster.leader_for_partition(place)
            if node is None or node == -1:
                last = "the partition has no leader"
            else:
                wanted = [(self._topic, [(self.partition, offset, FETCH_BYTES)])]
                request = FetchRequest(500, 1, FETCH_BYTES, _READ_COMMITTED, wanted)
                try:
                    answer = await client.send(node, request)
                except (KafkaError, OSError) as error:
                    last = str(error) or type(error).__name__
                else:
                    ((_, ((_, code, _, _, *rest),)),) = answer.topics
                    if code == NoError.errno and rest[-1]:
                        aborted = rest[-2] if answer.API_VERSION < 11 else rest[-3]
                        return bytes(rest[-1]), aborted or ()
                    if code == NoError.errno:
                        continue
                    last = self._judge(for_code(code), offset)
            await client.force_metadata_update()
            await asyncio.sleep(PAUSE_S)
        raise AuditError(
            f"{self._topic}/{self.partition}: Kafka hasn't sent offset {offset} for {PATIENCE_S:g}"
            f" s: {last}. The log was to be read up to {self.end_offset}"
        )

    def _judge(self, error: type[KafkaError], offset: int) -> str:
        """Return what an error says that passes; raise what doesn't."""
        if error is OffsetOutOfRangeError:
            raise AuditError(
                f"{self._topic}/{self.partition}: offset {offset} was deleted (retention, or a"
                " recreated topic) while the log was being read. Run the audit again"
            )
        if error is TopicAuthorizationFailedError:
            right = Right("Read", "topic", self._topic)
            raise lacks_right(self._settings.librdkafka(), right, says=error.message)
        return str(error.description)


async def _connected(settings: Settings, topic: str) -> AIOKafkaClient:
    """Return a client that knows the topic's leaders."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # our own errors say what is wrong
    client = AIOKafkaClient(
        bootstrap_servers=settings.bootstrap_servers,
        client_id="durabill-audit",
        security_protocol=settings.security_protocol,
        ssl_context=settings.ssl_context(),
        sasl_mechanism=settings.sasl_mechanism,
        sasl_plain_username=settings.sasl_username or None,
        sasl_plain_password=settings.sasl_password or None,
        request_timeout_ms=int(PATIENCE_S * 1000),
    )
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            await client.bootstrap()
            await client.set_topics([topic])
        except KafkaError as error:
            if time.monotonic() > until_s:
                await client.close()
                raise AuditError(f"Kafka hasn't answered for {PATIENCE_S:g} s: {error}") from error
            await asyncio.sleep(PAUSE_S)
        else:
            return client


def _put(fetched: Any, item: Any, stopped: threading.Event) -> None:
    """Put an item as soon as there is room, unless nobody wants it any more."""
    while not stopped.is_set():
        try:
            return fetched.put(item, timeout=0.1)  # type: ignore[no-any-return]
        except queue.Full:
            continue


def _drain(fetched: Any) -> None:
    while True:
        try:
            fetched.get_nowait()
        except queue.Empty:
            return
