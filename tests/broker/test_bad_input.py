"""What nobody should send, and what Kafka lets in all the same: no millisecond is lost over it."""

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from durabill.deploy.topics import check_topics, create_topics
from durabill.schemas import OrderTotal, Reason, SegmentEvent, decode_total, partition_for
from durabill.schemas.errors import ContractError
from durabill.schemas.limits import LETTER_CUT_BYTES
from durabill.schemas.wire import zigzag
from durabill.stream_processors.dead_letters.letters import DeadLetterError, list_dead_letters
from durabill.stream_processors.dead_letters.resend import resend
from durabill.stream_processors.engine.batch import BATCH_UNPACKED_BYTES_MAX, headers_in
from tests.broker import raw_kit
from tests.broker.traffic_kit import now_ms, segment
from tests.broker.worker_kit import Deployment, deployment, verdict
from tests.property.batches import Entry, encode_record
from tests.waiting import HANG_S, wait_until

SEGMENTS_BYTES_MAX = 1_048_588
"""Kafka's default for a batch, as it is compressed."""


@pytest.fixture
def deployed(bootstrap_servers: str, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment for one test, without a worker."""
    with deployment(bootstrap_servers, tmp_path) as made:
        yield made


def away_from(deployed: Deployment, key: bytes) -> int:
    """A partition that is not the key's."""
    return (partition_for(key, deployed.partitions) + 1) % deployed.partitions


def filled(key: bytes, value: bytes, size: int) -> bytes:
    """A batch of this size with one record, which has a header that can't be compressed."""

    def with_header(count: int) -> bytes:
        header = ("h", random.Random(7).randbytes(count))
        return raw_kit.batch([encode_record(0, (key, value, (header,)))])

    about = 999_000
    return with_header(about + size - len(with_header(about)))


def test_records_of_any_size_stop_nobody(deployed: Deployment) -> None:
    """The greatest records that the topic takes, where each grows by the headers that it gets."""
    worker = deployed.start_and_wait()
    servers, topic = deployed.bootstrap_servers, deployed.segments
    base_ms = now_ms() - 10_000
    key, value = segment("misplaced", 1, base_ms, base_ms + 10, True)
    largest = filled(key, value, SEGMENTS_BYTES_MAX)
    assert len(largest) == SEGMENTS_BYTES_MAX
    assert raw_kit.append(servers, topic, away_from(deployed, key), largest) == 0
    smaller, value = segment("sent-on", 1, base_ms, base_ms + 20, True)
    data = filled(smaller, value, 1_000_000)
    assert raw_kit.append(servers, topic, away_from(deployed, smaller), data) == 0
    # One whose value takes little as zstd packs it, and too much as lz4 does.
    packed = bytes(random.Random(7).choices(b"abc", k=4_000_000))
    huge: Entry = (b"huge", packed, (("h", b"v"), ("h", None)))
    assert raw_kit.append(servers, topic, 0, raw_kit.batch([encode_record(0, huge)], "zstd")) == 0
    # One whose key, shown in the detail, would take four times as much.
    record = encode_record(0, (bytes(1_000_000), segment("other", 1, base_ms, base_ms + 1)[1], ()))
    assert raw_kit.append(servers, topic, 1, raw_kit.batch([record])) == 0
    deployed.send([segment("after", 1, base_ms, base_ms + 30, True)])
    deployed.wait_for_truth()
    assert worker.stop() == 0
    assert deployed.differences() == []

    totals = [decode_total(each.value()) for each in deployed.found_totals()]
    durations = {each.service_order_number: each.duration_ms for each in totals}
    assert durations == {"sent-on": 20, "after": 30}
    letters = {verdict(each)[0]: each for each in deployed.found_letters()}
    assert {*letters} == {
        each.value for each in (Reason.WRONG_PARTITION, Reason.NOT_AVRO, Reason.KEY_MISMATCH)
    }
    header: Any = letters["WRONG_PARTITION"].headers()
    assert len(header[0][1]) > 1_000_000
    cut = letters["NOT_AVRO"]
    told = f"{len(packed)} {hashlib.sha256(packed).hexdigest()}".encode()
    assert (cut.key(), cut.value()) == (b"huge", packed[:LETTER_CUT_BYTES])
    headers: Any = cut.headers()
    assert headers[:2] == [("cut_value", told), ("cut_headers", b"2")]
    check_what_can_be_sent_back(deployed)


def check_what_can_be_sent_back(deployed: Deployment) -> None:
    """Only what is there whole; a repaired segment can take the place of the other."""
    kafka, source = deployed.kafka, deployed.dead_letters
    letters = {each.reason: each for each in list_dead_letters(kafka, source)}
    cut, whole = letters["NOT_AVRO"], letters["WRONG_PARTITION"]
    with pytest.raises(DeadLetterError, match=f"the whole is {deployed.segments}/0/"):
        resend(kafka, source, cut.partition, cut.offset, segments_topic=deployed.segments)
    repaired = SegmentEvent("huge", 1, now_ms() - 10, now_ms(), True)
    for letter, segment_or_none, key in ((cut, repaired, b"huge"), (whole, None, b"misplaced")):
        at = resend(
            kafka,
            source,
            letter.partition,
            letter.offset,
            segments_topic=deployed.segments,
            repaired=segment_or_none,
        )
        assert at.partition == partition_for(key, deployed.partitions)
    sent = {(each.partition, each.offset): each for each in deployed.log()}
    record = sent[at.partition, at.offset]
    # Its own header leaves no room for the one that says where it is from.
    assert (record.value, [name for name, _ in record.headers]) == (whole.value, ["resent_from"])


FORGED = {"beyond": [0, 5], "same": [0, 0], "back": [1, 0], "before": [-1, 0]}


@pytest.mark.parametrize("shape", FORGED)
def test_compressed_batch_with_forged_offsets_is_refused_by_kafka(
    deployed: Deployment, shape: str
) -> None:
    """Those that are not compressed it lets in, see below."""
    records = [encode_record(each, (b"SO1", b"v", ())) for each in FORGED[shape]]
    data = raw_kit.batch(records, "lz4")
    assert raw_kit.append(deployed.bootstrap_servers, deployed.segments, 0, data) != 0


def test_batches_that_no_client_sends_stop_nobody(deployed: Deployment) -> None:
    """Records before the first bad one count, what follows is one dead letter, and all goes on."""
    base_ms = now_ms() - 10_000
    key, value = segment("SO1", 1, base_ms, base_ms + 10)
    partition = partition_for(key, deployed.partitions)
    bomb = encode_record(0, (key, bytes(2 * BATCH_UNPACKED_BYTES_MAX), ()))
    batches = [
        raw_kit.batch([encode_record(each, (key, value, ())) for each in FORGED["beyond"]]),
        raw_kit.batch([encode_record(each, (key, value, ())) for each in FORGED["before"]]),
        raw_kit.batch([bomb], "zstd"),
        raw_kit.batch(
            [encode_record(0, (key, value, ())), encode_record(5, (key, bytes(100_000), ()))]
        ),
    ]
    for data in batches:
        assert raw_kit.append(deployed.bootstrap_servers, deployed.segments, partition, data) == 0
    worker = deployed.start_and_wait()
    deployed.send([segment("SO1", 2, base_ms + 10, base_ms + 30, True)])

    def totals() -> list[OrderTotal]:
        """It may have been abandoned in between."""
        return [decode_total(each.value()) for each in deployed.found_totals()]

    wait_until(lambda: any(each.end_number == 2 for each in totals()), "the order ends")
    assert worker.stop() == 0
    total = totals()[-1]
    # Of the first batch and of the last one record each counted.
    assert (total.duration_ms, total.segments, total.duplicates) == (30, 2, 1)
    letters: list[Any] = sorted(deployed.found_letters(), key=lambda each: verdict(each)[2])
    assert [("BAD_BATCH", each) for each in (1, 2, 4, 6)] == [
        verdict(each)[::2] for each in letters
    ]
    logged = dict(headers_of_batches(deployed, partition))
    for letter, base_offset in zip(letters, (0, 2, 4, 5), strict=True):
        data = logged[base_offset]
        assert (letter.key(), letter.value()) == (None, data[:LETTER_CUT_BYTES])
        told = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
        assert letter.headers()[0] == ("cut_batch", told)
    found = list_dead_letters(deployed.kafka, deployed.dead_letters)
    first = next(each for each in found if each.source_offset == 1)
    with pytest.raises(DeadLetterError, match=f"the whole is {deployed.segments}/{partition}/1"):
        resend(
            deployed.kafka,
            deployed.dead_letters,
            first.partition,
            first.offset,
            segments_topic=deployed.segments,
        )


def headers_of_batches(deployed: Deployment, partition: int) -> Iterator[tuple[int, bytes]]:
    """(base offset, bytes) of each batch as the broker has it."""
    data = raw_kit.fetch(deployed.bootstrap_servers, deployed.segments, partition)
    for at, header in headers_in(data):
        yield header.base_offset, data[at : at + header.size]


def record_with(delta: int, key: bytes, value: bytes | None, *headers: bytes) -> bytes:
    """A record with headers by their raw names, all of null content."""
    record = b"\0\0" + zigzag(delta) + zigzag(len(key)) + key
    record += zigzag(-1) if value is None else zigzag(len(value)) + value
    record += zigzag(len(headers))
    for name in headers:
        record += zigzag(len(name)) + name + zigzag(-1)
    return zigzag(len(record)) + record


def test_headers_with_names_that_are_no_text(deployed: Deployment) -> None:
    """The oracle's client can't read such names at all, so this says itself what must come."""
    worker = deployed.start_and_wait()
    base_ms = now_ms() - 10_000
    names = (b"\xff\xfe", b"", b"forwarded_from\0", b"same", b"same")
    sent = {b"SO1": 10, b"SO2": 20, b"SO3": 30}
    for key, duration_ms in sent.items():
        _, value = segment(key.decode(), 1, base_ms, base_ms + duration_ms, True)
        data = raw_kit.batch(
            [record_with(0, key, value, *names), record_with(1, key, None, *names)], "gzip"
        )
        for partition in range(deployed.partitions):
            code = raw_kit.append(deployed.bootstrap_servers, deployed.segments, partition, data)
            assert code == 0
    wait_until(lambda: len(deployed.found_totals()) == len(sent), "all are settled")
    wait_until(lambda: deployed.committed() == deployed.ends(), "copies are read as well")
    assert worker.stop() == 0
    totals = [decode_total(each.value()) for each in deployed.found_totals()]
    assert {each.service_order_number.encode(): each.duration_ms for each in totals} == sent
    mended = ("\ufffd\ufffd", "", "forwarded_from\ufffd", "same", "same")
    letters = deployed.found_letters()
    assert [each.value() for each in letters] == [None] * len(sent) * deployed.partitions
    for letter in letters:
        headers: Any = letter.headers()
        assert headers[:-5] == [(name, None) for name in mended]


def alter(deployed: Deployment, topic: str, **settings: str) -> None:
    """Changes settings of a topic, dots as underscores, and waits until the broker has them."""
    wanted = {key.replace("_", "."): value for key, value in settings.items()}
    entries = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        for key, value in wanted.items()
    ]
    resource = ConfigResource("topic", topic, incremental_configs=entries)
    admin = AdminClient(deployed.kafka)  # without a name it would be gone before its answer
    admin.incremental_alter_configs([resource])[resource].result(HANG_S)

    def are_known() -> bool:
        asked = ConfigResource("topic", topic)
        found = admin.describe_configs([asked])[asked].result(HANG_S)
        return all(found[key].value == value for key, value in wanted.items())

    wait_until(are_known, "the broker has the topic's settings")


def test_compacted_segments(deployed: Deployment) -> None:
    """The command starts no worker on such a topic; what is left in one counts all the same."""
    alter(
        deployed,
        deployed.segments,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.001",
        max_compaction_lag_ms="1",
    )
    with pytest.raises(ContractError, match=r"has cleanup\.policy=compact; it must be delete"):
        check_topics(deployed.kafka, deployed.topics)
    base_ms = now_ms() - 60_000

    def send_round(number: int) -> None:
        at_ms = base_ms + 100 * number
        names = ["again", f"once-{number}", "and-again"]
        deployed.send(segment(each, number, at_ms, at_ms + 100, True) for each in names * 4)
        time.sleep(0.15)  # so that the next ones go into a log file of their own

    for number in range(1, 6):
        send_round(number)

    def has_gaps() -> bool:
        send_round(6)  # the last file is never compacted
        return sum(each.key == b"again" for each in deployed.log()) < 5 * 4

    wait_until(has_gaps, "Kafka compacts the topic", 90)
    worker = deployed.start_and_wait()
    # A compacted topic takes no clock marks, so time goes on by segments alone.
    time.sleep(1.1 * deployed.idle_timeout_s)
    for partition in range(deployed.partitions):
        names = (f"last-{each}" for each in range(1000))
        name = next(each for each in names if partition_for(each.encode(), 4) == partition)
        deployed.send([segment(name, 1, base_ms, base_ms + 1, True)])
    deployed.wait_for_truth()
    assert worker.stop() == 0
    assert deployed.differences() == []
    totals = [decode_total(each.value()) for each in deployed.found_totals()]
    assert {f"once-{each}" for each in range(1, 7)} < {each.service_order_number for each in totals}


SIZES = (1_048_588, 16 << 20, 1_048_588, 2 << 20, 16 << 20)
"""Of segments, totals, orders, dead letters and checkpoint."""


def test_topics_too_small_for_what_a_worker_has_to_write(deployed: Deployment) -> None:
    names = deployed.topics.by_role
    for name in names.values():
        alter(deployed, name, max_message_bytes="1000000")
    with pytest.raises(ContractError) as caught:
        check_topics(deployed.kafka, deployed.topics)
    for name, size in zip(names.values(), SIZES, strict=True):
        assert f"{name} has max.message.bytes=1000000" in str(caught.value)
        assert f"{name} --add-config max.message.bytes={size}" in str(caught.value)
    alter(deployed, deployed.segments, max_message_bytes="5000000")
    create_topics(deployed.kafka, deployed.topics, partitions=deployed.partitions, alter=True)
    resource = ConfigResource("topic", deployed.segments)
    admin = AdminClient(deployed.kafka)
    kept = admin.describe_configs([resource])[resource].result(HANG_S)["max.message.bytes"]
    assert kept.value == "5000000"
