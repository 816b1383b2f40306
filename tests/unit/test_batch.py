"""Record batches: every codec, every odd shape, and bytes that are none."""

import hashlib
import random

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from durabill.schemas import OWN_SCHEMA_ONLY, Reason
from durabill.schemas.errors import ContractError, CorruptBatch
from durabill.schemas.limits import LETTER_CUT_BYTES
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import (
    HEADER_SIZE,
    Chunk,
    Record,
    Rest,
    headers_in,
    read_batch,
    records,
)
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.engine.unpack import BadBatch, Room
from tests.property.batches import CODECS, CONTROL, LOG_APPEND_TIME, Entry, encode_batch

XERIAL_HEADER = b"\x82SNAPPY\x00" + bytes(8)
ENTRIES: list[tuple[int, Entry]] = [
    (10, (b"SO1", b"value", [])),
    (11, (None, b"no key", [("reason", b"NOT_AVRO"), ("empty", b""), ("null", None)])),
    (12, (b"SO2", None, [("é", b"\x00\xff")])),
    (13, (b"", b"", [("same", b"1"), ("same", b"2")])),
    (14, (b"k" * 200, b"v" * 3000, [])),
]


def chunk(data: bytes, first_offset: int = 0) -> Chunk:
    """Return a chunk of whole batches that starts at `first_offset`."""
    return Chunk(first_offset, 1 << 40, data)


def expected(entries: list[tuple[int, Entry]], append_ms: int) -> list[Record]:
    """Return what unpacking must find."""
    return [
        Record(offset, append_ms, key, value, tuple(headers))
        for offset, (key, value, headers) in entries
    ]


def by_aiokafka(codec: int) -> bytes:
    """Return a batch as aiokafka's producer builds it, with the broker's stamp on it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for offset, (key, value, headers) in ENTRIES:
        named = [(name, content) for name, content in headers]
        builder.append(offset - 10, timestamp=77, key=key, value=value, headers=named)
    data = bytearray(builder.build())
    data[0:8] = (10).to_bytes(8, "big")
    data[22] |= LOG_APPEND_TIME
    data[35:43] = (5_000).to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: str) -> None:
    data = encode_batch(10, 5_000, ENTRIES, codec=codec)
    assert expected(ENTRIES, 5_000) == list(records(chunk(data)))


@pytest.mark.parametrize("codec", range(5))
def test_batches_of_another_client(codec: int) -> None:
    assert expected(ENTRIES, 5_000) == list(records(chunk(by_aiokafka(codec))))


@pytest.mark.parametrize("codec", list(CODECS))
def test_our_test_batches_are_read_by_another_client(codec: str) -> None:
    batch = DefaultRecordBatch(encode_batch(10, 5_000, ENTRIES, codec=codec))
    assert batch.validate_crc()
    assert [each.offset for each in batch] == [offset for offset, _ in ENTRIES]


def test_batches_follow_each_other() -> None:
    data = encode_batch(10, 5_000, ENTRIES, codec="zstd")
    data += encode_batch(20, 6_000, [(20, (b"a", b"b", ()))])
    found = list(records(chunk(data)))
    assert [record.offset for record in found] == [10, 11, 12, 13, 14, 20]
    assert [record.append_ms for record in found] == [5_000] * 5 + [6_000]


def test_records_below_first_offset_are_passed_over() -> None:
    data = encode_batch(10, 5_000, ENTRIES)
    assert [record.offset for record in records(chunk(data, 13))] == [13, 14]


def test_a_look_has_the_time_of_what_does_not_count_and_takes_the_clients_time() -> None:
    cut_short = encode_batch(20, 6_000, [(20, (b"a", b"b", ()))])[:-1]
    cut_short = cut_short[:8] + (len(cut_short) - 12).to_bytes(4, "big") + cut_short[12:]
    assert list(records(chunk(cut_short, 20))) == []
    assert list(records(chunk(cut_short, 20), is_look=True)) == [Record(20, 6_000, None, None, ())]
    data = bytearray(by_aiokafka(0))
    data[22] &= ~LOG_APPEND_TIME
    data[27:35] = (70).to_bytes(8, "big")
    with pytest.raises(ContractError, match="the client's time"):
        list(records(chunk(bytes(data))))
    found = list(records(chunk(bytes(data)), is_look=True))
    assert {each.append_ms for each in found} == {70}


def test_offset_gaps_are_kept() -> None:
    data = encode_batch(10, 5_000, [ENTRIES[0], ENTRIES[4]], next_offset=19)
    assert [record.offset for record in records(chunk(data))] == [10, 14]
    [(_, header)] = headers_in(data)
    assert header.next_offset == 19


@pytest.mark.parametrize("deltas", [(0, 2), (0, 0, 2), (1, 0, 2), (0, 1, 3), (0, 2**31 - 1, 2)])
@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_record_that_leaves_its_place_is_corrupt(deltas: tuple[int, ...], codec: str) -> None:
    """A broker lets these in (a compressed one only by forgery): only what is before it counts."""
    last = 1 if len(deltas) == 2 else 2
    entries = [(10 + delta, ENTRIES[0][1]) for delta in deltas]
    data = encode_batch(10, 5_000, entries, codec=codec, next_offset=11 + last)
    good = next(at for at, delta in enumerate(deltas) if delta > last or delta < at or at == last)
    rest = rest_of(data)
    assert "forged" in rest.detail
    assert f"the last {len(deltas) - good} don't count" in rest.detail
    assert len(list(records(chunk(data)))) == good


def columns() -> ColumnTable:
    """Return a table that reads batches the fast way."""
    return ColumnTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY)


def rest_of(data: bytes) -> Rest:
    """Return what doesn't count of a batch, by the plain reader and by both tables the same."""
    [(_, header)] = headers_in(data)
    *_, rest = read_batch(header, memoryview(data)[HEADER_SIZE:], Room(1 << 20))
    assert isinstance(rest, Rest)
    told = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
    for table in (columns(), PlainTable(Place(0, 1), Policy(), OWN_SCHEMA_ONLY)):
        letter = table.fold(chunk(data)).dead_letters[-1]
        assert (letter.reason, letter.detail) == (Reason.BAD_BATCH, rest.detail)
        record = Record(rest.offset, 5_000, None, data[:LETTER_CUT_BYTES], (("cut_batch", told),))
        assert record == letter.record
    return rest


def test_place_is_checked_anew_in_each_batch() -> None:
    data = b"".join(encode_batch(at, 5_000, [(at, ENTRIES[0][1])]) for at in (10, 11, 12))
    assert len(list(records(chunk(data)))) == 3
    assert len(columns().fold(chunk(data)).dead_letters) == 3


def test_names_of_headers_that_can_not_be_sent_on_are_mended() -> None:
    data = encode_batch(10, 5_000, [(10, (b"k", b"v", [("a\0b", None), ("\udcff", b"x")]))])
    [record] = records(chunk(data))
    assert record.headers == (("a\ufffdb", None), ("\ufffd", b"x"))


def test_batch_without_records() -> None:
    data = encode_batch(10, 5_000, [], next_offset=15)
    assert list(records(chunk(data))) == []
    [(_, header)] = headers_in(data)
    assert (header.record_count, header.next_offset) == (0, 15)


def test_empty_chunk() -> None:
    assert list(records(chunk(b""))) == []


def test_header_of_a_control_batch() -> None:
    data = encode_batch(10, 5_000, ENTRIES[:1], attributes=LOG_APPEND_TIME | CONTROL)
    [(at, header)] = headers_in(data)
    assert at == 0
    assert header.attributes & CONTROL
    assert (header.size, header.record_count) == (len(data), 1)


def test_clients_time_is_refused_with_the_remedy() -> None:
    data = encode_batch(10, 5_000, ENTRIES, attributes=0)
    with pytest.raises(ContractError, match=r"message\.timestamp\.type=LogAppendTime"):
        list(records(chunk(data)))


def test_old_message_format_is_refused() -> None:
    data = bytearray(encode_batch(10, 5_000, ENTRIES))
    data[16] = 1
    with pytest.raises(CorruptBatch, match="v1"):
        list(records(chunk(bytes(data))))


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_unknown_codec_is_corrupt(codec: int) -> None:
    data = bytearray(encode_batch(10, 5_000, ENTRIES))
    data[22] |= codec
    assert rest_of(bytes(data)) == Rest(10, rest_of(bytes(data)).detail)
    assert f"codec {codec} is unknown" in rest_of(bytes(data)).detail


def test_every_truncation_is_corrupt() -> None:
    data = encode_batch(10, 5_000, ENTRIES[:3])
    for size in range(1, len(data)):
        with pytest.raises(CorruptBatch):
            list(records(chunk(data[:size])))


def test_byte_after_the_records_is_corrupt() -> None:
    data = bytearray(encode_batch(10, 5_000, ENTRIES[:3]) + b"\x00")
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    assert "bytes follow the last record" in rest_of(bytes(data)).detail
    assert rest_of(bytes(data)).offset == 12
    assert len(list(records(chunk(bytes(data))))) == 3


def test_snappy_block_cut_short_is_corrupt() -> None:
    with pytest.raises(BadBatch, match="cut short"):
        Room(100).unpack(2, memoryview(XERIAL_HEADER + b"\x00\x00\x00\x09abc"))


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_batches_raise_nothing_else(codec: str) -> None:
    """The driver checks the CRC before; whatever passes it must not end in a stray exception."""
    seed = 7
    dice = random.Random(seed)
    good = encode_batch(10, 5_000, ENTRIES, codec=codec)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(data))
            match dice.randrange(3):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    data[at:at] = dice.randbytes(dice.randint(1, 8))
                case _:
                    del data[at : at + dice.randint(1, 8)]
        if dice.random() < 0.7 and len(data) > 61:
            data[8:12] = (len(data) - 12).to_bytes(4, "big")
        unpack_or_refuse(bytes(data))


@given(st.binary(max_size=120), st.integers(0, 4), st.integers(0, 5))
def test_any_records_are_read_or_refused(body: bytes, codec: int, count: int) -> None:
    data = bytearray(encode_batch(10, 5_000, []) + body)
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    data[22] |= codec
    data[57:61] = count.to_bytes(4, "big")
    unpack_or_refuse(bytes(data))


def unpack_or_refuse(data: bytes) -> None:
    """Unpack `data` as far as it goes; anything but CorruptBatch and ContractError fails."""
    unpacked = records(chunk(data))
    while True:
        try:
            next(unpacked)
        except (StopIteration, ContractError):
            return
