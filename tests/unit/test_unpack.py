"""Batches unpacked: every codec, into a room that never grows, whatever they would unpack to."""

import gzip
import resource
from collections.abc import Callable

import cramjam
import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, Reason
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import BATCH_UNPACKED_BYTES_MAX, Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.engine.unpack import KEPT_BYTES, BadBatch, Room
from tests.property.batches import encode_batch, encode_record
from tests.property.test_kernel_fuzz import NOW_MS, raw_batch

Packer = Callable[[bytes], bytes]
XERIAL_HEADER = b"\x82SNAPPY\x00" + bytes(8)
CODECS: dict[str, tuple[int, Packer]] = {
    "none": (0, bytes),
    "gzip": (1, lambda data: bytes(cramjam.gzip.compress(data))),
    "snappy": (2, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "xerial": (2, lambda data: xerial(data)),
    "lz4": (3, lambda data: bytes(cramjam.lz4.compress(data))),
    "zstd": (4, lambda data: bytes(cramjam.zstd.compress(data, 1))),
}


def xerial(data: bytes, size: int = 32_768) -> bytes:
    """Return data in snappy-java's block stream."""
    blocks = [
        bytes(cramjam.snappy.compress_raw(data[at : at + size])) for at in range(0, len(data), size)
    ]
    return XERIAL_HEADER + b"".join(len(each).to_bytes(4, "big") + each for each in blocks)


def unpacked(codec: int, packed: bytes, size: int) -> bytes:
    """Return what a batch unpacks to in a room of this size."""
    return Room(size).unpack(codec, memoryview(packed)).tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_what_just_fits_is_unpacked_and_a_byte_more_is_not(codec: str) -> None:
    number, pack = CODECS[codec]
    data = bytes(range(256)) * 400
    assert data == unpacked(number, pack(data), len(data))
    with pytest.raises(BadBatch, match=f"more than {len(data) - 1} bytes"):
        unpacked(number, pack(data), len(data) - 1)


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_several_frames_are_bounded_together(codec: str) -> None:
    number, pack = CODECS[codec]
    packed = pack(b"a" * 600) + pack(b"b" * 400)
    assert unpacked(number, packed, 1000) == b"a" * 600 + b"b" * 400
    with pytest.raises(BadBatch, match="more than 999 bytes"):
        unpacked(number, packed, 999)


@pytest.mark.parametrize("codec", CODECS)
def test_bombs_take_no_memory(codec: str) -> None:
    """Half a gigabyte each; resource counts in KiB what the process ever held."""
    number, pack = CODECS[codec]
    if codec == "none":
        return
    if codec == "snappy":
        packed = b"\xff\xff\xff\xff\x0f" + bytes(1000)  # says that it holds 4 GiB
    else:
        piece = pack(bytes(16 << 20))
        packed = piece * 32 if codec != "xerial" else piece + piece[len(XERIAL_HEADER) :] * 31
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadBatch, match="more than"):
        unpacked(number, packed, BATCH_UNPACKED_BYTES_MAX)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown_bytes < BATCH_UNPACKED_BYTES_MAX + (32 << 20)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "xerial", "lz4", "zstd"])
def test_what_is_cut_short_is_refused(codec: str) -> None:
    number, pack = CODECS[codec]
    packed = pack(bytes(range(256)) * 4)
    for size in range(1, len(packed)):
        if codec == "xerial" and size <= len(XERIAL_HEADER):
            continue
        with pytest.raises(BadBatch):
            unpacked(number, packed[:size], 5000)


def test_nothing_unpacks_to_nothing() -> None:
    for codec in range(5):
        assert unpacked(codec, b"", 10) == b""


def test_a_room_gives_back_what_a_large_batch_took() -> None:
    room = Room(KEPT_BYTES + (1 << 20))
    large, small = (gzip.compress(b"x" * size) for size in (KEPT_BYTES + 1000, 10))
    assert room.unpack(1, memoryview(large)).tobytes() == b"x" * (KEPT_BYTES + 1000)
    assert room.unpack(1, memoryview(small)).tobytes() == b"x" * 10
    assert not room._array[KEPT_BYTES:].any()
    assert room._array[KEPT_BYTES - 1] == ord("x")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("excess", [0, 1])
def test_the_bound_of_a_batch(codec: str, excess: int) -> None:
    """At the bound its record is judged; one byte more, and nothing of the batch counts."""
    number, pack = CODECS[codec]
    frame = len(encode_record(0, (b"SO1", bytes(1 << 25), ()))) - (1 << 25)
    body = encode_record(0, (b"SO1", bytes(BATCH_UNPACKED_BYTES_MAX - frame + excess), ()))
    assert len(body) == BATCH_UNPACKED_BYTES_MAX + excess
    data = bytearray(raw_batch(7, 1, pack(body)))
    data[22] |= number
    for kind in (PlainTable, ColumnTable):
        table = kind(Place(0, 1), Policy(), OWN_SCHEMA_ONLY)
        effects = table.fold(Chunk(7, 8, bytes(data)))
        (letter,) = effects.dead_letters
        expected = (Reason.BAD_BATCH, None) if excess else (Reason.NOT_AVRO, b"SO1")
        assert (letter.reason, letter.record.key) == expected
        assert table.clock_ms == NOW_MS
        if excess:
            assert f"more than {BATCH_UNPACKED_BYTES_MAX} bytes" in letter.detail
        good = encode_batch(8, NOW_MS, [(8, (b"k", None, ()))])
        assert len(table.fold(Chunk(8, 9, good)).dead_letters) == 1
