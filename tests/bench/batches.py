"""Record batches made in advance, and a minimal client that sends them.

A client library in Python spends a core on half a million records a second. To load a broker with
more than that beside a worker on the same machine, batches are built and compressed before the
measurement, exactly as a client would have, and sent as they are (Kafka's protocol, Produce v7,
acks=all). Also gives batches to a table without a broker.
"""

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cramjam
from aiokafka.record.util import calc_crc32c

from durabill.schemas.wire import zigzag
from durabill.stream_processors.engine.batch import CRC_FROM, HEADER, HEADER_SIZE, LOG_APPEND_TIME
from tests.bench.processes import BenchError
from tests.bench.traffic import Entry

LZ4 = 3
_ZIGZAGS = [zigzag(number) for number in range(20_000)]
_API_PRODUCE, _PRODUCE_VERSION = 0, 7
_IN_FLIGHT_MAX = 16


def encode_batch(
    entries: Sequence[Entry], now_ms: int, *, base_offset: int = 0, append_time: bool = False
) -> bytes:
    """Return a record batch: lz4 as a producer sends it, or plain as it lies in a log."""
    parts: list[bytes] = []
    for delta, (key, value) in enumerate(entries):
        key_size, value_size = _ZIGZAGS[len(key)], _ZIGZAGS[len(value)]
        middle = b"\0\0" + _ZIGZAGS[delta] + key_size + key + value_size + value + b"\0"
        parts += (_ZIGZAGS[len(middle)], middle)
    body = b"".join(parts)
    attributes = LOG_APPEND_TIME if append_time else LZ4
    if not append_time:
        # The broker takes frames of independent blocks only (KIP-57).
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(body)
        body = bytes(compressor.finish())
    size, count = HEADER_SIZE - 12 + len(body), len(entries)
    stamps = (now_ms, now_ms, -1, -1, -1, count)
    head = HEADER.pack(base_offset, size, -1, 2, 0, attributes, count - 1, *stamps)
    checked = head[CRC_FROM:] + body
    head = HEADER.pack(
        base_offset, size, -1, 2, calc_crc32c(checked), attributes, count - 1, *stamps
    )
    return head + body


class RawProducer:
    """Sends ready batches to one broker; `on_ack(tag)` is called as each request is answered."""

    def __init__(self, address: str, topic: str, on_ack: Callable[[Any], None]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._topic = topic.encode()
        self._on_ack = on_ack
        self._sent: queue.Queue[Any] = queue.Queue()
        self._room = threading.Semaphore(_IN_FLIGHT_MAX)
        self._error = ""
        self._serial = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, batches: Mapping[int, bytes], tag: Any) -> None:
        """Send one batch to each of some partitions, as one request."""
        self._room.acquire()
        if self._error:
            raise BenchError(self._error)
        self._serial += 1
        client = b"bench"
        parts = [
            struct.pack(">hhih", _API_PRODUCE, _PRODUCE_VERSION, self._serial, len(client)),
            client,
            struct.pack(">hhii", -1, -1, 30_000, 1),  # no transaction, acks=all, timeout, topics
            struct.pack(">h", len(self._topic)),
            self._topic,
            struct.pack(">i", len(batches)),
        ]
        for partition, batch in batches.items():
            parts += (struct.pack(">ii", partition, len(batch)), batch)
        request = b"".join(parts)
        self._sent.put(tag)
        self._socket.sendall(struct.pack(">i", len(request)) + request)

    def close(self) -> None:
        """Wait for the last answer, and leave."""
        for _ in range(_IN_FLIGHT_MAX):
            if not self._room.acquire(timeout=30):
                raise BenchError("the broker did not answer a produce request in time")
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=5)
        self._socket.close()
        if self._error:
            raise BenchError(self._error)

    def _read(self) -> None:
        stream = self._socket.makefile("rb")
        while len(size := stream.read(4)) == 4:
            answer = stream.read(int.from_bytes(size, "big"))
            self._check(answer)
            self._on_ack(self._sent.get_nowait())
            self._room.release()

    def _check(self, answer: bytes) -> None:
        """Take note of an error code in a Produce v7 response."""
        at = 8  # correlation id, number of topics
        at += 2 + int.from_bytes(answer[at : at + 2], "big")
        count = int.from_bytes(answer[at : at + 4], "big")
        at += 4
        for _ in range(count):
            partition, error = struct.unpack_from(">ih", answer, at)
            if error:
                self._error = f"the broker answered with error {error} for partition {partition}"
            at += 4 + 2 + 8 + 8 + 8  # index, error, base offset, append time, start offset


def paced(count: int, period_s: float, action: Callable[[int], None]) -> float:
    """Call `action(n)` for n below `count`, one a period; return how late the last was, in s."""
    begun_s = time.monotonic()
    for number in range(count):
        pause_s = begun_s + number * period_s - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        action(number)
    return time.monotonic() - (begun_s + count * period_s)
