"""What `docs/contract.md` promises in bytes and numbers: producers are written from it alone."""

import hashlib
import re

import pytest

from durabill.schemas import (
    CLOCK_MARK_HEADER,
    OPENING_HEADER,
    SEGMENT_HEADER,
    TOTAL_HEADER,
    TOTAL_SCHEMA_V1,
    OrderOpened,
    OrderTotal,
    Reason,
    SegmentEvent,
    decode_segment,
    encode_opening,
    encode_segment,
    limits,
    partition_for,
    read_opening,
    schema_fingerprint,
)
from durabill.schemas.partitioner import murmur2
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import evidence_digest
from durabill.stream_processors.engine import batch
from tests.unit.documents import python_block, rows_of, section, text_of

CONTRACT = text_of("docs/contract.md")


def test_the_example_in_bytes() -> None:
    line = re.search(r"^c3 01 .*$", CONTRACT, re.M)
    assert line is not None
    event = SegmentEvent("SO1", 3, 100, 200, True)
    assert bytes.fromhex(line[0]) == encode_segment(event)
    assert event == decode_segment(bytes.fromhex(line[0]))


def test_the_opening_in_bytes() -> None:
    example = re.search(r"^c3 01  a7 ee .*\n .*$", CONTRACT, re.M)
    assert example is not None
    attributes, times_ms = (("plan", "gold"),), (1_700_000_000_000, 10_000, 1_700_086_400_000)
    opened = OrderOpened("SO1", "acme", "meter-7", "gpu", attributes, *times_ms)
    assert bytes.fromhex(example[0]) == encode_opening(opened)
    assert opened == read_opening(b"SO1", bytes.fromhex(example[0]))


def test_the_fingerprints() -> None:
    given = re.findall(r"`((?:[0-9A-F]{2} ){7}[0-9A-F]{2})`", CONTRACT)
    old = schema_fingerprint(TOTAL_SCHEMA_V1)
    headers = (SEGMENT_HEADER, OPENING_HEADER, CLOCK_MARK_HEADER, TOTAL_HEADER)
    own = [each[2:] for each in headers]
    assert given == [each.hex(" ").upper() for each in (*own, old)]


def test_the_partitions_of_the_example_keys() -> None:
    rows = re.findall(
        r"^\| `(.+?)` \| `([0-9a-f]{8})` \| (\d+) \| (\d+) \| (\d+) \|", CONTRACT, re.M
    )
    assert len(rows) == 5
    for key, hashed, *partitions in rows:
        assert int(hashed, 16) == murmur2(key.encode())
        for count, partition in zip((4, 12, 100), partitions, strict=True):
            assert int(partition) == partition_for(key.encode(), count)
    assert any(int(row[1], 16) >> 31 for row in rows), "one must show the masked top bit"


def test_the_digest_example() -> None:
    example = re.search(r"^printf '(.*)' \| sha256sum\n# ([0-9a-f]{64})$", CONTRACT, re.M)
    assert example is not None
    text = example[1].replace("\\n", "\n")
    assert hashlib.sha256(text.encode()).hexdigest() == example[2]
    intervals, numbers = IntervalSet([(100, 200), (300, 450)]), IntervalSet([(1, 3), (4, 5)])
    assert evidence_digest("SO1", intervals, numbers, 4) == example[2]


def test_the_reasons_in_their_order() -> None:
    assert re.findall(r"^\| \d+ \| `([A-Z_]+)` \|", CONTRACT, re.M) == [
        each.value for each in Reason
    ]


def names_in(heading: str) -> list[str]:
    """The fields in the first column of the table below a heading, in their order."""
    cells = [row[0] for row in rows_of(section("docs/contract.md", heading))]
    return [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)]


def test_the_fields_of_a_segment_in_their_order() -> None:
    assert names_in("### Schema") == list(SegmentEvent.__slots__)


def test_the_fields_of_a_total_in_their_order() -> None:
    own_part = section("docs/contract.md", "## Consumers: totals").partition("### Digest")[0]
    cells = [row[0] for row in rows_of(own_part)]
    names = [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)]
    assert names == list(OrderTotal.__slots__)


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (limits.ORDER_NUMBER_BYTES_MAX, "1 to {} UTF-8 bytes"),
        (limits.FUTURE_TOLERANCE_MS, "`end_ms` > arrival + {}"),
        (limits.SEGMENT_LENGTH_MAX_MS, "`end_ms` - `start_ms` > {}"),
        (limits.FORWARD_BYTES_MAX, "header or a size over {}"),
        (limits.ORDER_PIECES_MAX, "more than {} intervals, or more than {} ranges"),
        (limits.GRACE_FACTOR_MAX, "2^(n - 1), at most x {}"),
        (limits.FUTURE_TOLERANCE_MS, "`ended_ms` - {}) + `correction_window` + {},"),
        (limits.LETTER_BYTES_MAX, "A record of a size over {}"),
        (limits.LETTER_CUT_BYTES, "the first {} bytes each of its key and value"),
        (limits.LETTER_CUT_BYTES, "the first {} bytes of the batch"),
        (batch.HEADERS_MAX, "more than {} headers"),
        (batch.BATCH_UNPACKED_BYTES_MAX, "unpacks to more than {} bytes"),
    ],
)
def test_the_contract_names_each_limit(limit: int, shown: str) -> None:
    plain = CONTRACT.replace("\N{MINUS SIGN}", "-").replace("\N{MULTIPLICATION SIGN}", "x")
    assert shown.replace("{}", f"{limit:,}") in " ".join(plain.split())


@pytest.mark.parametrize(
    ("number", "start_ms", "end_ms", "end"),
    [(3, 100, 200, True), (1, 0, 1, False), (2**63 - 1, 2**62, 2**63 - 1, True)],
)
def test_the_producer_example_encodes_as_we_do(
    number: int, start_ms: int, end_ms: int, end: bool
) -> None:
    names: dict[str, object] = {}
    exec(python_block("from kafka import"), names)
    segment = names["segment"]
    assert callable(segment)
    expected = encode_segment(SegmentEvent("日本-7", number, start_ms, end_ms, end))
    assert segment("日本-7", number, start_ms, end_ms, end) == expected
