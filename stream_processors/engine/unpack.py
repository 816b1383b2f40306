"""Record batches unpacked into bounded memory.

A compressed batch of 1 MB can unpack to gigabytes. So every codec writes into one room of a fixed
size, and stops where it is full. cramjam's `decompress_into` never makes the room larger, also
where several frames follow each other (gzip, lz4, zstd). A bare snappy block has its size in
front, and snappy-java's stream is unpacked block by block. A zstd frame may ask for a window of up
to 128 MiB beside the room; only the part of it that holds unpacked bytes is touched.
"""

import mmap
from typing import Any

import cramjam
import numpy as np
from numpy.typing import NDArray

from durabill.stream_processors.engine.memory import NO_COMMIT

KEPT_BYTES = 4 * 1024 * 1024
"""What a room keeps of its memory for the next batch; ordinary batches are smaller."""

XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_HEADER_SIZE = 16
_CODECS: dict[int, Any] = {
    1: cramjam.gzip.decompress_into,
    3: cramjam.lz4.decompress_into,
    4: cramjam.zstd.decompress_into,
}


class BadBatch(ValueError):
    """The sender's fault: a batch, or the rest of it, can't be read; the message says why."""


class Room:
    """The memory into which batches are unpacked, one after the other."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size, flags=NO_COMMIT)
        self._array = np.frombuffer(self._memory, np.uint8)
        self._used = 0

    def unpack(self, codec: int, packed: memoryview) -> NDArray[np.uint8]:
        """Return a batch's records, read-only, until the next call; `codec` is Kafka's number.

        Raises BadBatch where they can't be unpacked, or take more than the room's size.
        """
        if self._used > KEPT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, KEPT_BYTES)
        self._used = 0
        if codec == 0 or not packed:
            if len(packed) > len(self._array):
                raise self._too_large()
            return np.frombuffer(packed, np.uint8)
        self._used = len(self._array)  # as far as is known if it fails
        self._used = self._fill(codec, packed)
        body = self._array[: self._used]
        body.flags.writeable = False  # as bytes are: the kernel is compiled for these
        return body

    def _fill(self, codec: int, packed: memoryview) -> int:
        try:
            if codec == 2:
                return self._fill_snappy(packed)
            if codec in _CODECS:
                return int(_CODECS[codec](packed, self._array))
        except cramjam.DecompressionError as error:
            if "whole buffer" in str(error):
                raise self._too_large() from error
            raise BadBatch(f"it can't be unpacked (codec {codec}): {error}") from error
        raise BadBatch(f"its compression codec {codec} is unknown")

    def _fill_snappy(self, packed: memoryview) -> int:
        """Take both snappy forms: the bare block of librdkafka and snappy-java's block stream."""
        if packed[: len(XERIAL_MAGIC)] != XERIAL_MAGIC:
            return self._put_block(packed, 0)
        after, at = 0, XERIAL_HEADER_SIZE
        while at < len(packed):
            size = int.from_bytes(packed[at : at + 4], "big")
            block = packed[at + 4 : at + 4 + size]
            if len(block) != size:
                raise BadBatch("a snappy block is cut short")
            after += self._put_block(block, after)
            at += 4 + size
        return after

    def _put_block(self, block: memoryview, at: int) -> int:
        if cramjam.snappy.decompress_raw_len(block) > len(self._array) - at:
            raise self._too_large()
        return int(cramjam.snappy.decompress_raw_into(block, self._array[at:].data))

    def _too_large(self) -> BadBatch:
        return BadBatch(f"it unpacks to more than {len(self._array)} bytes")
