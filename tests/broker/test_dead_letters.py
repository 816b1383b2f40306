"""Listing dead letters and sending them back, against real Kafka."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from durabill.schemas import SegmentEvent, decode_segment, encode_segment, partition_for
from durabill.schemas.errors import AccessError
from durabill.stream_processors.dead_letters.letters import (
    DeadLetterError,
    find_dead_letter,
    list_dead_letters,
)
from durabill.stream_processors.dead_letters.resend import Resent, resend
from tests.conftest import Topics
from tests.waiting import HANG_S

SEGMENT = SegmentEvent("SO1", 3, 100, 200, True)


@pytest.fixture
def kafka(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers}


def bury(
    kafka: dict[str, str],
    topic: str,
    source_offset: int,
    *,
    reason: str = "NOT_AVRO",
    partition: int = 0,
    own_headers: Sequence[tuple[str, bytes | None]] = (),
    value: bytes | None = b"garbage",
    times: int = 1,
) -> None:
    """Writes a dead letter as a worker does."""
    headers: list[tuple[str, str | bytes | None]] = [
        *own_headers,
        ("reason", reason.encode()),
        ("detail", "späte Post".encode()),
        ("source_topic", b"segments"),
        ("source_partition", b"3"),
        ("source_offset", str(source_offset).encode()),
    ]
    producer = Producer(kafka)
    for _ in range(times):
        producer.produce(topic, value, b"SO1", partition, headers=headers)
    assert producer.flush(HANG_S) == 0


def read_one(kafka: dict[str, str], at: Resent) -> Message:
    consumer = Consumer({**kafka, "group.id": "read-one"})
    consumer.assign([TopicPartition(at.topic, at.partition, at.offset)])
    message = consumer.poll(HANG_S)
    consumer.close()
    assert message is not None
    assert message.error() is None
    return message


def test_every_letter_is_listed_once_with_its_own_headers(
    kafka: dict[str, str], topics: Topics
) -> None:
    own = (("trace", b"\xff\x00"), ("reason", b"the record's own"), ("empty", None))
    bury(kafka, topics.dead_letters, 10, own_headers=own, times=2)
    bury(kafka, topics.dead_letters, 11, partition=2, reason="TOO_LATE", value=None)
    letters = {each.source_offset: each for each in list_dead_letters(kafka, topics.dead_letters)}
    assert {10, 11} == set(letters)
    first, second = letters[10], letters[11]
    assert (
        first.partition,
        first.offset,
        first.reason,
        first.detail,
    ) == (0, 0, "NOT_AVRO", "späte Post")
    assert first.origin == ("segments", 3, 10)
    assert own == first.headers
    assert (first.key, first.value) == (b"SO1", b"garbage")
    assert (second.partition, second.reason, second.value) == (2, "TOO_LATE", None)
    assert len(list(list_dead_letters(kafka, topics.dead_letters, repeats=True))) == 3


def test_limit_reason_and_since_pick(kafka: dict[str, str], topics: Topics) -> None:
    for offset, reason in enumerate(["NOT_AVRO", "TOO_LATE", "NOT_AVRO", "TOO_LONG"]):
        bury(kafka, topics.dead_letters, offset, reason=reason, partition=offset % 2)
    middle_ms = find_dead_letter(kafka, topics.dead_letters, 0, 1).append_ms

    def offsets(**choice: Any) -> list[int]:
        letters = list_dead_letters(kafka, topics.dead_letters, **choice)
        return sorted(each.source_offset or 0 for each in letters)

    assert offsets(reason="NOT_AVRO") == [0, 2]
    assert offsets(reason="WRONG_PARTITION") == []
    assert len(offsets(limit=3)) == 3
    assert offsets(limit=0) == []
    assert {2, 3} <= set(offsets(since_ms=middle_ms))
    assert offsets(since_ms=int(time.time() * 1000) + 3_600_000) == []


def test_markers_at_the_end_do_not_hang_and_aborted_letters_are_none(
    kafka: dict[str, str], topics: Topics
) -> None:
    producer = Producer({**kafka, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(HANG_S)
    for partition, end in ((0, producer.commit_transaction), (1, producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topics.dead_letters, b"x", b"SO1", partition)
        producer.flush(HANG_S)
        end(HANG_S)
    letters = list(list_dead_letters(kafka, topics.dead_letters, answer_s=HANG_S))
    assert [(e.partition, e.offset, e.reason, e.origin) for e in letters] == [(0, 0, "", None)]
    with pytest.raises(DeadLetterError, match="no record at offset 1"):
        find_dead_letter(kafka, topics.dead_letters, 0, 1)


def test_empty_topic_has_none_and_a_missing_one_is_an_error(
    kafka: dict[str, str], topics: Topics
) -> None:
    assert list(list_dead_letters(kafka, topics.dead_letters)) == []
    with pytest.raises(AccessError, match="no topic durabill-no-such-topic, or hides it"):
        list(list_dead_letters(kafka, "durabill-no-such-topic"))


def test_repaired_segment_goes_to_its_orders_partition(
    kafka: dict[str, str], topics: Topics
) -> None:
    own = (("trace", b"1"), ("resent_from", b"earlier"))
    bury(kafka, topics.dead_letters, 5, partition=1, own_headers=own)
    at = resend(kafka, topics.dead_letters, 1, 0, segments_topic=topics.segments, repaired=SEGMENT)
    assert partition_for(b"SO1", topics.partitions) == at.partition
    message = read_one(kafka, at)
    assert message.key() == b"SO1"
    assert decode_segment(message.value()) == SEGMENT
    sent_from = f"{topics.dead_letters}/1/0".encode()
    assert [("trace", b"1"), ("resent_from", sent_from)] == message.headers()


def test_original_goes_back_byte_for_byte(kafka: dict[str, str], topics: Topics) -> None:
    value = encode_segment(SEGMENT)
    bury(kafka, topics.dead_letters, 5, reason="WRONG_PARTITION", value=value)
    at = resend(kafka, topics.dead_letters, 0, 0, segments_topic=topics.segments)
    message = read_one(kafka, at)
    assert (b"SO1", value) == (message.key(), message.value())


@pytest.mark.parametrize(("partition", "offset"), [(0, 1), (0, -1), (3, 0), (99, 0)])
def test_letter_that_is_not_there_is_not_sent(
    kafka: dict[str, str], topics: Topics, partition: int, offset: int
) -> None:
    bury(kafka, topics.dead_letters, 5)
    with pytest.raises(DeadLetterError, match="has no"):
        resend(kafka, topics.dead_letters, partition, offset, segments_topic=topics.segments)
    assert list(list_dead_letters(kafka, topics.segments)) == []
