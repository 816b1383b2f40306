"""Record batches, Kafka's message format v2, taken apart (KIP-98; "Message Format" in its docs).

A `Chunk` is what the driver hands over: one or more whole record batches of one partition, as
fetched, verified (CRC) and still compressed. `records` is the plain way to unpack one. The kernel
has its own way, and must find the same records.

A broker checks that a batch has as many records as offsets. It looks at the records themselves
only where the batch is compressed, and then not at all of them. So a forged batch can hold any
bytes, put a record anywhere, or unpack to gigabytes. But every order relies on offsets that rise,
and the process on its memory. So a batch counts up to the first record that can't be read or is
out of its place; see `read_batch`. A frame of a batch that the broker would have refused can't be
its writer's fault, and raises CorruptBatch.

    batch header, big-endian, 61 bytes: base offset i64, length i32 (of all that follows it),
    leader epoch i32, magic i8 (2), CRC-32C u32 (of all that follows it), attributes i16 (bits 0-2
    codec, 3 timestamp type, 4 transactional, 5 control), last offset delta i32, base timestamp
    i64, max timestamp i64, producer id i64, producer epoch i16, base sequence i32, record count i32
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from durabill.schemas.errors import ContractError, CorruptBatch
from durabill.schemas.wire import Headers
from durabill.stream_processors.engine.unpack import BadBatch, Room

HEADER = Struct(">qiibIhiqqqhii")
HEADER_SIZE = 61
HEADER_FRAME_BYTES = 10
"""The most that the two lengths of a record's header take."""

CRC_FROM = 21
"""The CRC covers a batch from this position on."""

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
BATCH_UNPACKED_BYTES_MAX = 32 * 1024 * 1024
"""How large a batch's records may be together, unpacked. Of a larger batch nothing counts."""

HEADERS_MAX = 1000
"""How many headers a record may have: each takes a microsecond to read."""

BYTES_FOLLOW = "bytes follow the last record"


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
    before, and are passed over.
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
        """Return the bytes of its parts; in a batch they take at most some 40 more."""
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
        header = BatchHeader._make(HEADER.unpack_from(data, at))
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
    """Return the batch's append time; raise ContractError if the log has the client's time."""
    if not header.attributes & LOG_APPEND_TIME:
        raise ContractError(
            f"the batch at offset {header.base_offset} carries the client's time, not the broker's:"
            " set message.timestamp.type=LogAppendTime on the segments topic, and start a new"
            " topic or delete the records from before the change"
        )
    return header.max_timestamp_ms


def records(chunk: Chunk, *, is_look: bool = False) -> Iterator[Record]:
    """Yield the chunk's records that count from `first_offset` on; see `read_batch`.

    For a look at a log (`is_look`) a record without key, value and headers stands for the rest of
    a batch that doesn't count, for the log's time goes on by it; and a log that has the clients'
    time is read by that, and no error. Raises CorruptBatch and ContractError.
    """
    room = Room(BATCH_UNPACKED_BYTES_MAX)
    view = memoryview(chunk.data)
    for at, header in headers_in(chunk.data):
        append_ms = header.max_timestamp_ms if is_look else append_time_ms(header)
        for each in read_batch(header, view[at + HEADER_SIZE : at + header.size], room):
            if not isinstance(each, Record):
                if not is_look:
                    continue
                each = Record(each.offset, append_ms, None, None, ())
            if each.offset >= chunk.first_offset:
                yield each


class Rest(NamedTuple):
    """The part of a batch that doesn't count: all from `offset` on; `detail` says what is wrong."""

    offset: int
    detail: str


def read_batch(header: BatchHeader, packed: memoryview, room: Room) -> Iterator[Record | Rest]:
    """Yield a batch's records, up to the first that can't be read or is out of its place.

    From there on the batch doesn't count, and a `Rest` comes last. `packed` is all that follows
    the header. `room` sets how large a batch may be.
    """
    try:
        body = room.unpack(header.attributes & CODEC_MASK, packed).tobytes()
    except BadBatch as error:
        yield unread(header, str(error))
        return
    at, least_offset = 0, header.base_offset
    for number in range(header.record_count):
        try:
            record, at = take_record(body, at, header, least_offset)
        except BadBatch as error:
            yield unread(header, str(error), number, least_offset)
            return
        least_offset = record.offset + 1
        yield record
    if at != len(body):
        yield unread(header, BYTES_FOLLOW, header.record_count, least_offset)


def unread(header: BatchHeader, problem: str, number: int = 0, offset: int = -1) -> Rest:
    """Return the rest of a batch from its record `number`, whose offset is `offset` or more."""
    count = header.record_count
    where = max(header.base_offset, min(offset, header.next_offset - 1))
    detail = f"{problem}; of the {count} records of the batch at offset {header.base_offset}"
    return Rest(where, f"{detail} the last {count - number} don't count")


def rest_of(body: bytes, at: int, header: BatchHeader, number: int, least_offset: int) -> Rest:
    """Return the rest of a batch from its record `number` on, which the kernel could not read.

    That record is at `at`, or the one before it ended there. The reason is told as `read_batch`
    tells it.
    """
    if number == header.record_count:
        return unread(header, BYTES_FOLLOW, number, least_offset)
    try:
        take_record(body, at, header, least_offset)
    except BadBatch as error:
        return unread(header, str(error), number, least_offset)
    raise AssertionError("the kernel could not read a good record")


def take_record(body: bytes, at: int, header: BatchHeader, least_offset: int) -> tuple[Record, int]:
    """Return (record, position after it) of the record at `at`; raise BadBatch.

    Its offset must be `least_offset` or more, and one of the batch's.
    """
    record, at = read_record(body, at, header)
    if not least_offset <= record.offset < header.next_offset:
        raise BadBatch(
            f"forged: a record has offset {record.offset}, where {least_offset} to"
            f" {header.next_offset - 1} are possible"
        )
    return record, at


def read_record(body: bytes, at: int, header: BatchHeader) -> tuple[Record, int]:
    """Return (record, position after it) of the record at `at`; raise BadBatch."""
    size, at = _varint(body, at)
    end = at + size
    if size < 0 or end > len(body):
        raise BadBatch("a record is cut short")
    delta_ms, at = _varint(body, at + 1)  # one byte of attributes, unused
    is_brokers = header.attributes & LOG_APPEND_TIME  # else the batch isn't one that counts
    append_ms = header.max_timestamp_ms if is_brokers else header.base_timestamp_ms + delta_ms
    offset_delta, at = _varint(body, at)
    if not 0 <= offset_delta < 2**31:
        raise BadBatch(f"a record is {offset_delta} offsets after the first")
    key, at = _bytes(body, at)
    value, at = _bytes(body, at)
    count, at = _varint(body, at)
    if not 0 <= count <= HEADERS_MAX:
        raise BadBatch(f"a record has {count} headers, at most {HEADERS_MAX} are allowed")
    headers = []
    for _ in range(count):
        name, at = _bytes(body, at)
        if name is None:
            raise BadBatch("a header has no name")
        content, at = _bytes(body, at)
        headers.append((_text(name), content))
    if at != end:
        raise BadBatch("a record's size is wrong")
    offset = header.base_offset + offset_delta
    return Record(offset, append_ms, key, value, tuple(headers)), end


def _text(name: bytes) -> str:
    """Return a header's name; librdkafka can't send one that is no UTF-8, or has a NUL in it."""
    return name.decode("utf-8", "replace").replace("\0", "\ufffd")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(body) or (shift == 63 and body[at] > 1):
            raise BadBatch("a number inside a record is cut short or too long")
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
        raise BadBatch("a field inside a record is cut short")
    return body[at : at + size], at + size
