"""Record batches for tests: Kafka's message format v2, written by hand and with LogAppendTime."""

import struct
from collections.abc import Sequence

import cramjam

from durabill.schemas.wire import zigzag

LOG_APPEND_TIME = 0x08
CONTROL = 0x20
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4, "snappy-xerial": 2}

Entry = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
"""Key, value, headers of a record."""


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_OF = [_crc_of(byte) for byte in range(256)]


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C of data; in Python, so that the simulation needs no Kafka client."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_OF[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _sized(content: bytes | None) -> bytes:
    return zigzag(-1) if content is None else zigzag(len(content)) + content


def encode_record(offset_delta: int, entry: Entry) -> bytes:
    """Return one record of a batch, its length before it."""
    key, value, headers = entry
    out = b"\x00" + zigzag(0) + zigzag(offset_delta) + _sized(key) + _sized(value)
    out += zigzag(len(headers))
    for name, content in headers:
        out += _sized(name.encode("utf-8", "surrogateescape")) + _sized(content)
    return zigzag(len(out)) + out


def compress(codec: str, data: bytes) -> bytes:
    """Return `data` as a producer with this codec would send it."""
    if codec == "none":
        return data
    if codec == "gzip":
        return bytes(cramjam.gzip.compress(data))
    if codec == "snappy":
        return bytes(cramjam.snappy.compress_raw(data))
    if codec == "lz4":
        return bytes(cramjam.lz4.compress(data))
    if codec == "zstd":
        return bytes(cramjam.zstd.compress(data))
    assert codec == "snappy-xerial"
    out = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
    for at in range(0, len(data), 50):
        block = bytes(cramjam.snappy.compress_raw(data[at : at + 50]))
        out += struct.pack(">i", len(block)) + block
    return out


def encode_batch(
    base_offset: int,
    append_ms: int,
    entries: Sequence[tuple[int, Entry]],
    *,
    codec: str = "none",
    attributes: int = LOG_APPEND_TIME,
    next_offset: int | None = None,
) -> bytes:
    """Return a record batch of (offset, record) pairs; offsets may have gaps."""
    body = b"".join(encode_record(offset - base_offset, entry) for offset, entry in entries)
    body = compress(codec, body) if entries else b""
    last = entries[-1][0] if entries else base_offset
    last_delta = (last if next_offset is None else next_offset - 1) - base_offset
    checked = struct.pack(
        ">hiqqqhii",
        attributes | (CODECS[codec] if entries else 0),
        last_delta,
        append_ms - 5,  # the base timestamp stays the client's word; nobody may read it
        append_ms,
        -1,
        -1,
        -1,
        len(entries),
    )
    checked += body
    head = struct.pack(">qiibI", base_offset, len(checked) + 9, 0, 2, _crc32c(checked))
    return head + checked
