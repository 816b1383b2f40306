"""What the ledger decides about a record and an offset, without Kafka and PostgreSQL."""

import pytest

from durabill.schemas import Interval, OrderTotal, Status, encode_total
from durabill.stream_processors.dead_letters.letters import split_headers
from durabill.stream_processors.kafka.options import ledger_consumer
from durabill.stream_processors.ledger.records import (
    OffsetOutOfRange,
    RawRecord,
    RecordedTotal,
    UnreadableRecord,
    check_range,
    read_record,
)

DIGEST = "a" * 64
TOTAL = OrderTotal(
    "SO1", 1, Status.COMPLETE, 9, 9, 1, 10, (Interval(1, 10),), 1, (),
    1, 0, 0, 0, 0, DIGEST, "", 0, 0, 10,
)  # fmt: skip
VALUE = encode_total(TOTAL)


def raw(key: bytes | None, value: bytes | None) -> RawRecord:
    return RawRecord(0, 7, 1_000, key, value)


def test_record_of_the_contract_is_a_total() -> None:
    read = read_record(raw(b"SO1", VALUE))
    assert RecordedTotal(TOTAL, raw(b"SO1", VALUE)) == read
    assert isinstance(read, RecordedTotal)
    assert read.key == ("SO1", 1)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"SO1", None, "NOT_A_TOTAL"),
        (b"SO1", b"", "NOT_A_TOTAL"),
        (b"SO1", VALUE[:-1], "NOT_A_TOTAL"),
        (b"SO1", VALUE + b"\0", "NOT_A_TOTAL"),
        (b"SO2", VALUE, "KEY_MISMATCH"),
        (None, VALUE, "KEY_MISMATCH"),
    ],
)
def test_record_against_the_contract_is_unreadable(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    read = read_record(raw(key, value))
    assert isinstance(read, UnreadableRecord)
    assert reason == read.reason


@pytest.mark.parametrize("next_offset", [3, 5, 9])
def test_offset_within_the_log_or_at_its_end_is_fine(next_offset: int) -> None:
    check_range("totals", 1, next_offset, 3, 9)


@pytest.mark.parametrize(("next_offset", "what"), [(2, "1 offsets that"), (10, "has lost records")])
def test_offset_outside_the_log_names_the_choices(next_offset: int, what: str) -> None:
    with pytest.raises(OffsetOutOfRange, match=rf"holds \[3, 9\).*{what}.*DELETE FROM"):
        check_range("totals", 1, next_offset, 3, 9)


def test_what_exactness_demands_cannot_be_configured_away() -> None:
    config = ledger_consumer(
        {
            "bootstrap.servers": "b:9092",
            "isolation.level": "read_uncommitted",
            "auto.offset.reset": "latest",
            "enable.auto.commit": "true",
            "session.timeout.ms": "7000",
        },
        "g",
    )
    assert (
        config["isolation.level"],
        config["auto.offset.reset"],
        config["enable.auto.commit"],
        config["session.timeout.ms"],
    ) == ("read_committed", "error", False, "7000")


def test_last_header_of_a_name_is_ours() -> None:
    ours, own = split_headers((("reason", b"own"), ("x", None), ("reason", b"TOO_LATE")))
    assert ours == {"reason": "TOO_LATE"}
    assert own == (("reason", b"own"), ("x", None))
