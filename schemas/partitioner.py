"""Which partition an order lives in: Java's murmur2, librdkafka's `murmur2_random`.

librdkafka's own default (CRC32) and Java's disagree, so the partitioner is part of the contract.
The hash is MurmurHash2 by Austin Appleby with the seed that Kafka's Java client uses.
"""

PARTITIONER = "murmur2_random"
"""The value of librdkafka's `partitioner` setting that every producer of segments must use."""

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Return the unsigned 32-bit MurmurHash2 of `key`, as Kafka's clients compute it."""
    h = _SEED ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """Return the partition of a record with this key in a topic of `partitions` partitions."""
    assert partitions > 0
    return (murmur2(key) & 0x7FFFFFFF) % partitions
