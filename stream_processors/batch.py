"""Record batches, Kafka's message format v2, taken apart (KIP-98; "Message Format" in its docs).

A `Chunk` is what the driver hands over: one or more whole record batches of one partition, as
fetched, verified (CRC) and still compressed. `records` is the plain way to unpack one; the
columnar path has its own and must find the same records.

A broker checks that a batch has as many records as offsets, but looks at the records' own offsets
only where the batch is compressed: a forged one can put a record anywhere. Every order trusts in
offsets that rise, so a batch whose records leave their places is corrupt.

    batch header, big-endian, 61 bytes: base offset i64, length i32 (of all that follows it),
    leader epoch i32, magic i8 (2), CRC-32C u32 (of all that follows it), attributes i16 (bits 0-2
    codec, 3 timestamp type, 4 transactional, 5 control), last offset delta i32, base timestamp
    i64, max timestamp i64, producer id i64, producer epoch i16, base sequence i32, record count i32
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

import cramjam

from stream_processors.errors import ContractError, CorruptBatch

HEADER = Struct(">qiibIhiqqqhii")
HEADER_SIZE = 61
HEADER_FRAME_BYTES = 10
"""What the two lengths in a record's header take at most."""

CRC_FROM = 21
"""The CRC covers a batch from this position on."""

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_HEADER_SIZE = 16

Headers = tuple[tuple[str, bytes | None], ...]


class BatchHeader(NamedTuple):
    """A record batch's header; see the module's docstring."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size(self) -> int:
        """Return the bytes of the whole batch, header included."""
        return self.length + 12

    @property
    def next_offset(self) -> int:
        """Return the offset that follows the batch, also where compaction took its last records."""
        return self.base_offset + self.last_offset_delta + 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole record batches of one partition, in log order; `data` holds nothing else.

    Offsets in [first_offset, next_offset); records below `first_offset` have been handed over
    before and are passed over.
    """

    first_offset: int
    next_offset: int
    data: bytes


class Record(NamedTuple):
    """One record as it came. `append_ms` is the broker's append time (ms since the epoch)."""

    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Return the bytes of its parts, which in a batch take at most some 40 more."""
        headers = sum(
            len(name.encode()) + len(content or b"") + HEADER_FRAME_BYTES
            for name, content in self.headers
        )
        return len(self.key or b"") + len(self.value or b"") + headers


def headers_in(data: bytes) -> Iterator[tuple[int, BatchHeader]]:
    """Yield (position, header) of every batch; raise CorruptBatch where there is none."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER_SIZE:
            raise CorruptBatch(f"{len(data) - at} bytes at the end of a chunk are no record batch")
        header = BatchHeader(*HEADER.unpack_from(data, at))
        if header.magic != 2:
            raise CorruptBatch(f"message format v{header.magic} at offset {header.base_offset}")
        if (
            header.length < HEADER_SIZE - 12
            or at + header.size > len(data)
            or header.record_count < 0
        ):
            raise CorruptBatch(f"the batch at offset {header.base_offset} has an impossible size")
        yield at, header
        at += header.size


def append_time_ms(header: BatchHeader) -> int:
    """Return the batch's append time; raise ContractError if the log holds the client's word."""
    if not header.attributes & LOG_APPEND_TIME:
        raise ContractError(
            f"the batch at offset {header.base_offset} carries the client's time, not the broker's:"
            " set message.timestamp.type=LogAppendTime on the segments topic, and start a new"
            " topic or delete the records from before the change"
        )
    return header.max_timestamp_ms


def decompress(codec: int, body: bytes) -> bytes:
    """Return the records of a batch; `codec` is Kafka's number; raise CorruptBatch."""
    try:
        if codec == 0:
            return body
        if codec == 1:
            return bytes(cramjam.gzip.decompress(body))
        if codec == 2:
            return _snappy(body)
        if codec == 3:
            return bytes(cramjam.lz4.decompress(body))
        if codec == 4:
            return bytes(cramjam.zstd.decompress(body))
    except cramjam.DecompressionError as error:
        raise CorruptBatch(f"codec {codec}: {error}") from error
    raise CorruptBatch(f"unknown compression codec {codec}")


def decompress_into(codec: int, body: memoryview, room: Any) -> int | None:
    """Put the records of a batch into `room`, a writable buffer, and return their size.

    None where that can't be done or fails, for want of room too: ask `decompress`, then. New
    memory for every batch costs more than filling it.
    """
    try:
        if codec == 3:
            return int(cramjam.lz4.decompress_into(body, room))
        if codec == 4:
            return int(cramjam.zstd.decompress_into(body, room))
    except cramjam.DecompressionError:
        return None
    return None


def _snappy(body: bytes) -> bytes:
    """Take both snappy forms: the bare block of librdkafka and snappy-java's block stream."""
    if not body.startswith(XERIAL_MAGIC):
        return bytes(cramjam.snappy.decompress_raw(body))
    out = bytearray()
    at = XERIAL_HEADER_SIZE
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        block = body[at + 4 : at + 4 + size]
        if len(block) != size:
            raise CorruptBatch("a snappy block is cut short")
        out += bytes(cramjam.snappy.decompress_raw(block))
        at += 4 + size
    return bytes(out)


def records(chunk: Chunk) -> Iterator[Record]:
    """Yield the chunk's records from `first_offset` on; raise CorruptBatch, ContractError."""
    for at, header in headers_in(chunk.data):
        append_ms = append_time_ms(header)
        body = decompress(
            header.attributes & CODEC_MASK, chunk.data[at + HEADER_SIZE : at + header.size]
        )
        position, least_offset = 0, header.base_offset
        for _ in range(header.record_count):
            record, position = read_record(body, position, header.base_offset, append_ms)
            if not least_offset <= record.offset < header.next_offset:
                raise misplaced(header)
            least_offset = record.offset + 1
            if record.offset >= chunk.first_offset:
                yield record
        if position != len(body):
            raise CorruptBatch(f"bytes follow the records at offset {header.base_offset}")


def misplaced(header: BatchHeader) -> CorruptBatch:
    """Return the error for a batch in which a record has an offset that is not its own."""
    return CorruptBatch(
        f"the batch at offset {header.base_offset} was forged: its records' offsets don't rise, or"
        f" pass {header.next_offset - 1}, which is its last. No client library sends such a thing:"
        " find out who wrote it. To go on without it and what came before, delete the records up"
        f" to offset {header.next_offset} (kafka-delete-records.sh) and start anew from what is"
        " left under another DURABILL_APPLICATION_ID"
    )


def read_record(body: bytes, at: int, base_offset: int, append_ms: int) -> tuple[Record, int]:
    """Return (record, position after it) of the record at `at`; raise CorruptBatch."""
    size, at = _varint(body, at)
    end = at + size
    if size < 0 or end > len(body):
        raise CorruptBatch(f"a record is cut short in the batch at offset {base_offset}")
    _, at = _varint(body, at + 1)  # one byte of attributes, unused; the timestamp's delta
    offset_delta, at = _varint(body, at)
    if not 0 <= offset_delta < 2**31:
        raise CorruptBatch(f"a record has offset {offset_delta} in the batch at {base_offset}")
    key, at = _bytes(body, at)
    value, at = _bytes(body, at)
    count, at = _varint(body, at)
    if count < 0:
        raise CorruptBatch(f"a record has {count} headers in the batch at offset {base_offset}")
    headers = []
    for _ in range(count):
        name, at = _bytes(body, at)
        if name is None:
            raise CorruptBatch(f"a header without a name in the batch at offset {base_offset}")
        content, at = _bytes(body, at)
        headers.append((_text(name), content))
    if at != end:
        raise CorruptBatch(f"a record's size is wrong in the batch at offset {base_offset}")
    return Record(base_offset + offset_delta, append_ms, key, value, tuple(headers)), end


def _text(name: bytes) -> str:
    """Return a header's name; librdkafka can't send on what is no UTF-8, or has a NUL in it."""
    return name.decode("utf-8", "replace").replace("\0", "\ufffd")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(body) or (shift == 63 and body[at] > 1):
            raise CorruptBatch("a number inside a record is cut short or too long")
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def _bytes(body: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = _varint(body, at)
    if size < 0:
        return None, at
    if at + size > len(body):
        raise CorruptBatch("a field inside a record is cut short")
    return body[at : at + size], at + size
