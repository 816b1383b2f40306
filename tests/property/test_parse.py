"""The kernel's readers of numbers and records against the plain ones, byte by byte."""

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from durabill.schemas import SEGMENT_HEADER, BadRecord
from durabill.schemas.wire import read_long
from durabill.stream_processors.engine import batch as batch_module
from durabill.stream_processors.engine.kernel import parse
from durabill.stream_processors.engine.unpack import BadBatch
from tests.property.batches import encode_record
from tests.property.column_histories import value_of
from tests.property.test_kernel_fuzz import NO_EXPLAINING, NOW_MS, odd_record, with_odd_bytes


@given(st.binary(max_size=14), st.integers(0, 3))
@example(b"\x80\x00", 0)
@example(b"\x80" * 9 + b"\x01", 0)
@example(b"\x80" * 9 + b"\x02", 0)
@example(b"\xff" * 9 + b"\x01", 0)
@example(b"\x80" * 10 + b"\x00", 0)
@NO_EXPLAINING
def test_varints_are_read_alike(data: bytes, at: int) -> None:
    at = min(at, len(data))
    value, after = parse.read_varint(np.frombuffer(data, np.uint8), at, len(data))
    found = None if after < 0 else (int(value), int(after))
    assert wire_varint(data, at) == batch_varint(data, at) == found


def wire_varint(data: bytes, at: int) -> tuple[int, int] | None:
    """Return what the plain reader of Avro bodies reads, None if it refuses."""
    try:
        return read_long(data, at)
    except BadRecord:
        return None


def batch_varint(data: bytes, at: int) -> tuple[int, int] | None:
    """Return what the plain reader of record batches reads, None if it refuses."""
    try:
        return batch_module._varint(data, at)
    except BadBatch:
        return None


WORDS = np.frombuffer(SEGMENT_HEADER + bytes(6), np.uint64)


@given(st.integers(0, 2**32))
@NO_EXPLAINING
def test_what_is_read_by_words_is_read_alike_with_care(seed: int) -> None:
    dice = random.Random(seed)
    body = odd_record(dice, dice.randrange(9))
    if dice.random() < 0.3:
        body = with_odd_bytes(dice, body)
    data = np.frombuffer(body + dice.randbytes(parse.BYTES_AFTER), np.uint8)
    words, bytewise = np.zeros((2, parse.FIELDS), np.int64)
    if parse.read_ordinary(data, 0, *WORDS, words):
        assert parse.read_frame(data, 0, bytewise)
        assert parse.parse_segment(data, np.frombuffer(SEGMENT_HEADER, np.uint8), bytewise)
        assert words.tolist() == bytewise.tolist()


@given(st.sampled_from(range(1, 41)), st.integers(1, 2**53), st.integers(0, 2**31 - 1))
@NO_EXPLAINING
def test_ordinary_records_are_read_by_words(size: int, number: int, delta: int) -> None:
    name = b"n" * size
    value = value_of(name, number, NOW_MS, NOW_MS + 1, True)
    body = encode_record(delta, (name, value, (("trace", b"x"),)[: number & 1]))
    record = np.zeros(parse.FIELDS, np.int64)
    data = np.frombuffer(body + bytes(parse.BYTES_AFTER), np.uint8)
    assert parse.read_ordinary(data, 0, *WORDS, record)
    segment = record[[parse.NUMBER, parse.START_MS, parse.END_MS, parse.IS_END]].tolist()
    assert [number, NOW_MS, NOW_MS + 1, 1] == segment
    assert (len(body), delta) == (record[parse.AFTER], record[parse.DELTA])
