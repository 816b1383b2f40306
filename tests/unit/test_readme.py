"""What the README promises in bytes and numbers: somebody's producer is written from it alone."""

import hashlib
import re
from pathlib import Path

import pytest

from durabill.schemas import (
    SEGMENT_HEADER,
    TOTAL_HEADER,
    OrderTotal,
    Reason,
    SegmentEvent,
    decode_segment,
    encode_segment,
    partition_for,
)
from durabill.schemas.partitioner import murmur2
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.order import evidence_digest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def python_block(start: str) -> str:
    """Return the README's Python example that begins with `start`."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    return next(block for block in blocks if block.startswith(start))


def test_the_example_in_bytes() -> None:
    line = re.search(r"^c3 01 .*$", README, re.M)
    assert line is not None
    event = SegmentEvent("SO1", 3, 100, 200, True)
    assert bytes.fromhex(line[0]) == encode_segment(event)
    assert event == decode_segment(bytes.fromhex(line[0]))


def test_the_fingerprints() -> None:
    assert SEGMENT_HEADER[2:].hex(" ").upper() in README
    assert TOTAL_HEADER[2:].hex(" ").upper() in README


def test_the_partitions_of_the_example_keys() -> None:
    rows = re.findall(r"^\| `(.+?)` \| `([0-9a-f]{8})` \| (\d+) \| (\d+) \| (\d+) \|", README, re.M)
    assert len(rows) == 5
    for key, hashed, *partitions in rows:
        assert int(hashed, 16) == murmur2(key.encode())
        for count, partition in zip((4, 12, 100), partitions, strict=True):
            assert int(partition) == partition_for(key.encode(), count)
    assert any(int(row[1], 16) >> 31 for row in rows), "one must show the masked top bit"


def test_the_digest_example() -> None:
    example = re.search(r"^printf '(.*)' \| sha256sum\n# ([0-9a-f]{64})$", README, re.M)
    assert example is not None
    text = example[1].replace("\\n", "\n")
    assert hashlib.sha256(text.encode()).hexdigest() == example[2]
    intervals, numbers = IntervalSet([(100, 200), (300, 450)]), IntervalSet([(1, 3), (4, 5)])
    assert evidence_digest("SO1", intervals, numbers, 4) == example[2]


def test_the_reasons_in_their_order() -> None:
    assert re.findall(r"^\| \d+ \| `([A-Z_]+)` \|", README, re.M) == [each.value for each in Reason]


def test_the_fields_of_a_total_in_their_order() -> None:
    section = README.partition("## The contract for consumers")[2].partition("**Digest**")[0]
    cells = re.findall(r"^\| (`.+?) \| ", section, re.M)
    names = [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)]
    assert names == list(OrderTotal.__slots__)


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
    assert expected == segment("日本-7", number, start_ms, end_ms, end)
