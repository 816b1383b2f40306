"""Reading topics to their ends, against real Kafka."""

import uuid

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.deploy.local.stack import HOST, find_free_ports
from durabill.schemas.errors import AccessError, StateError, UnreachableError
from durabill.stream_processors.kafka.reading import (
    partition_count,
    read_one,
    read_tails,
    read_topic,
    topic_ends,
)
from tests.conftest import Topics
from tests.waiting import HANG_S


@pytest.fixture
def kafka(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers}


def fill(kafka: dict[str, str], topic: str, *values: bytes, partition: int = 0) -> None:
    producer = Producer(kafka)
    for value in values:
        producer.produce(topic, value, b"key", partition)
    assert producer.flush(HANG_S) == 0


def fill_by_transaction(
    kafka: dict[str, str], topic: str, value: bytes, partition: int, *, committed: bool
) -> None:
    producer = Producer({**kafka, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(HANG_S)
    producer.begin_transaction()
    producer.produce(topic, value, b"key", partition)
    producer.flush(HANG_S)
    end = producer.commit_transaction if committed else producer.abort_transaction
    end(HANG_S)


def drop_before(kafka: dict[str, str], topic: str, offset: int) -> None:
    place = TopicPartition(topic, 0, offset)
    admin = AdminClient({**kafka})
    admin.delete_records([place])[place].result(HANG_S)


def test_what_is_committed_is_read_once_up_to_markers_at_the_end(
    kafka: dict[str, str], topics: Topics
) -> None:
    topic = topics.totals
    fill(kafka, topic, *(b"%d" % each for each in range(1_000)))
    fill_by_transaction(kafka, topic, b"committed", 0, committed=True)
    fill_by_transaction(kafka, topic, b"aborted", 1, committed=False)
    fill(kafka, topic, b"other", partition=2)
    told: list[tuple[str, int, int]] = []
    found = list(read_topic(kafka, topic, progress=lambda *each: told.append(each)))
    values = [message.value() for partition, _, message in found if partition == 0]
    assert [*(b"%d" % each for each in range(1_000)), b"committed"] == values
    assert list(range(1_001)) == [offset for partition, offset, _ in found if partition == 0]
    assert {0, 2} == {partition for partition, _, _ in found}
    assert (f"reading {topic}", 1_002, 1_005) == told[-1]  # markers and the aborted one count too
    only = [partition for partition, _, _ in read_topic(kafka, topic, partitions={2, 3})]
    assert only == [2]
    assert topic_ends(kafka, topic) == {0: 1_002, 1: 2, 2: 1, 3: 0}
    assert partition_count(kafka, topic) == topics.partitions


def test_one_record_is_found_where_it_lies(kafka: dict[str, str], topics: Topics) -> None:
    fill(kafka, topics.totals, b"first", b"second")
    fill_by_transaction(kafka, topics.totals, b"aborted", 0, committed=False)
    found = read_one(kafka, topics.totals, 0, 1)
    assert found is not None
    assert found.value() == b"second"
    for partition, offset in ((0, 2), (0, 3), (0, 99), (1, 0), (99, 0), (0, -1)):
        assert read_one(kafka, topics.totals, partition, offset) is None


def test_tails_begin_where_they_are_asked_for_or_where_the_log_does(
    kafka: dict[str, str], topics: Topics
) -> None:
    fill(kafka, topics.totals, b"a", b"b", b"c", b"d")
    tails = read_tails(kafka, "group", topics.totals, {0: 2, 1: 0, 2: None})
    assert tails[0].records == [(2, b"key", b"c"), (3, b"key", b"d")]
    assert tuple(tails[each].end for each in range(3)) == (4, 0, 0)
    drop_before(kafka, topics.totals, 3)
    tails = read_tails(kafka, "group", topics.totals, {0: 0})
    assert tails[0] == ([(3, b"key", b"d")], 4)
    with pytest.raises(StateError, match=r"up to offset 5, but it ends at 4.*DURABILL_PREVIOUS"):
        read_tails(kafka, "group", topics.totals, {0: 5})


def test_a_topic_that_is_not_there_and_a_kafka_that_is_silent_are_told(
    kafka: dict[str, str],
) -> None:
    for read in (partition_count, topic_ends, lambda *each: list(read_topic(*each))):
        with pytest.raises(AccessError, match="no topic durabill-no-such-topic, or hides it"):
            read(kafka, "durabill-no-such-topic")
    absent = f"{HOST}:{find_free_ports(1)[0]}"
    with pytest.raises(UnreachableError, match=f"Kafka at {absent} .* hasn't answered for 1 s"):
        list(read_topic({"bootstrap.servers": absent}, "any", patience_s=1.0))
