"""Producers that nobody here wrote: three client libraries, five codecs, good records and bad.

The records are encoded here by the contract's bytes, not by our own codec; each library puts them
into batches, compresses them and chooses partitions (by its own murmur2) in its own way.
"""

import asyncio
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cramjam
import kafka.codec
import kafka.record.default_records
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from kafka import KafkaProducer

from durabill.schemas import Reason, Status, decode_total
from tests.broker.traffic_kit import now_ms
from tests.broker.worker_kit import deployment, verdict
from tests.waiting import HANG_S

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
MAX = 2**63 - 1
MIN = -(2**63)
DAY_MS = 86_400_000


class Sent(NamedTuple):
    """A record to be sent; without a partition the library chooses by the key."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None


Send = Callable[[str, str, str, Sequence[Sent]], None]
"""Sends records in their order: bootstrap servers, topic, codec, records."""


# -- the contract in bytes --------------------------------------------------------------------


def long(number: int) -> bytes:
    """An Avro long."""
    rest = number * 2 if number >= 0 else -number * 2 - 1
    out = []
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def segment(
    order: bytes, number: int, start_ms: int, end_ms: int, end: int = 0, tail: bytes = b""
) -> bytes:
    """A SegmentEvent in single-object encoding; `end` is the end identifier's byte."""
    body = long(len(order)) + order + long(number) + long(start_ms) + long(end_ms) + bytes([end])
    return bytes.fromhex("c301ba627070e049bb87") + body + tail


def test_worked_example_of_the_contract() -> None:
    expected = bytes.fromhex("c301ba627070e049bb8706534f3106c801900301")
    assert segment(b"SO1", 3, 100, 200, 1) == expected


def good(mark: str, base_ms: int) -> list[Sent]:
    """Orders that end in every way, with headers of any kind."""
    at = [base_ms + 1_000 * each for each in range(8)]
    whole, holey, open_, odd = (f"{mark}-{each}".encode() for each in ("a", "b", "c", "ü/😀 &%"))
    long_name = mark.encode().ljust(64, b"x")
    header: list[tuple[str, bytes | None]] = [("reason", b"mine"), ("", b""), ("ö", b"\x00\xff")]
    return [
        Sent(whole, segment(whole, 2, at[1], at[2]), header),
        Sent(whole, segment(whole, 1, at[0], at[1])),
        Sent(whole, segment(whole, 2, at[1], at[2]), [("same", b"1"), ("same", b"2")]),
        Sent(whole, segment(whole, 3, at[1] + 500, at[3], 1)),
        Sent(whole, segment(whole, 3, at[1] + 500, at[3], 1)),
        Sent(holey, segment(holey, 1, at[0], at[1])),
        Sent(holey, segment(holey, 4, at[5], at[5], 1)),
        Sent(holey, segment(holey, 9, at[6], at[7])),
        Sent(open_, segment(open_, 5, at[0], at[0] + 1)),
        Sent(odd, segment(odd, 1, at[0], at[1], 1)),
        Sent(long_name, segment(long_name, MAX, at[0], at[1], 1)),
        Sent(long_name, segment(long_name, 1, at[0], at[0] + 59_000 + now_ms() - at[0])),
        # In every partition, so in the wrong ones of all but one: sent on, and a repeat there.
        *(Sent(whole, segment(whole, 1, at[0], at[1]), header, each) for each in range(4)),
    ]


def bad(mark: str, base_ms: int) -> list[Sent]:
    """Records for each reason of a dead letter, and bytes on the border between two."""
    key = f"{mark}-bad".encode()
    start_ms, end_ms = base_ms, base_ms + 1_000
    fine = segment(key, 1, start_ms, end_ms)
    evolved = fine[:2] + bytes.fromhex("0123456789abcdef") + fine[10:]
    overlong = fine[:10] + long(len(key)) + key + b"\x81" * 10 + b"\x00" + b"\x02\x02\x00"
    bodies = [
        b"",
        b"\xc3",
        b"\xc3\x01",
        fine[:9],
        fine[:10],
        fine[:-1],
        fine + b"\x00",
        fine[:-1] + b"\x02",
        b"\x00\x00\x00\x00\x07" + fine[10:],
        evolved,
        overlong,
        fine[:10] + long(-1) + fine[11:],
        fine[:10] + long(MAX) + fine[11:],
        segment(key, 0, start_ms, end_ms),
        segment(key, MIN, start_ms, end_ms),
        segment(key, 1, end_ms, start_ms),
        segment(key, 1, MIN, MAX),
        segment(key, 1, MAX, MIN),
        segment(key, 1, -1, end_ms),
        segment(key, 1, start_ms, start_ms),
        segment(key, 1, start_ms, MAX),
        segment(key, 1, now_ms(), now_ms() + 120_000),
        segment(key, 1, end_ms - DAY_MS - 1, end_ms),
        segment(key, 1, 0, 1),
        segment(key + b"?", 1, start_ms, end_ms),
    ]
    names = [b"", b"x" * 65, b"a\nb", b"\x7f", b"\xc2\x85", b"\xff\xfe", b"\xed\xa0\x80", b"\x00"]
    # Bad in all partitions but its own, where nobody cares about the header.
    forged: list[tuple[str, bytes | None]] = [("forwarded_from", b"\xff not an offset")]
    return [
        Sent(None, b""),
        Sent(None, fine),
        Sent(key, None, [("null", b"value")]),
        Sent(b"", fine),
        *(Sent(key, body) for body in bodies),
        *(Sent(name, segment(name, 1, start_ms, end_ms)) for name in names),
        *(Sent(key, fine, forged, each) for each in range(4)),
    ]


# -- the libraries ----------------------------------------------------------------------------


def by_kafka_python(servers: str, topic: str, codec: str, records: Sequence[Sent]) -> None:
    """kafka-python, which is pure Python."""
    producer = KafkaProducer(
        bootstrap_servers=servers, compression_type=None if codec == "none" else codec, linger_ms=20
    )
    try:
        sent = [
            producer.send(topic, each.value, each.key, list(each.headers), each.partition)
            for each in records
        ]
        producer.flush(HANG_S)
        for each in sent:
            each.get(HANG_S)
    finally:
        producer.close(30)


def by_aiokafka(servers: str, topic: str, codec: str, records: Sequence[Sent]) -> None:
    """aiokafka."""

    async def run() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=servers,
            compression_type=None if codec == "none" else codec,
            linger_ms=20,
        )
        await producer.start()
        try:
            sent = [
                await producer.send(
                    topic, each.value, each.key, each.partition, headers=list(each.headers)
                )
                for each in records
            ]
            await asyncio.gather(*sent)
        finally:
            await producer.stop()

    asyncio.run(run())


def by_librdkafka(servers: str, topic: str, codec: str, records: Sequence[Sent]) -> None:
    """librdkafka, with the partitioner that the contract asks for."""
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "compression.type": codec,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
        }
    )
    for each in records:
        place: Any = {} if each.partition is None else {"partition": each.partition}
        producer.produce(topic, each.value, each.key, headers=list(each.headers), **place)
    assert producer.flush(HANG_S) == 0


CLIENTS: dict[str, Send] = {
    "kafka-python": by_kafka_python,
    "aiokafka": by_aiokafka,
    "librdkafka": by_librdkafka,
}


def lz4_encode(data: bytes) -> bytes:
    """LZ4 with blocks that stand alone, as Kafka wants them."""
    compressor = cramjam.lz4.Compressor(block_linked=False)
    compressor.compress(data)
    return bytes(compressor.finish())


@pytest.fixture
def _codecs_for_kafka_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lends kafka-python, whose own codec packages are not installed, those of cramjam."""
    snappy = types.SimpleNamespace(compress=cramjam.snappy.compress_raw)
    compressor = types.SimpleNamespace(compress=cramjam.zstd.compress)
    zstd = types.SimpleNamespace(ZstdCompressor=lambda: compressor)
    monkeypatch.setattr(kafka.codec, "snappy", snappy)
    monkeypatch.setattr(kafka.codec, "zstd", zstd)
    monkeypatch.setattr(kafka.codec, "lz4", cramjam.lz4)
    monkeypatch.setattr(kafka.record.default_records, "lz4_encode", lz4_encode)


@pytest.mark.usefixtures("_codecs_for_kafka_python")
def test_every_client_with_every_codec(bootstrap_servers: str, tmp_path: Path) -> None:
    # Longer than any of the libraries takes between two records of an order.
    slowly = deployment(bootstrap_servers, tmp_path, settle_grace_s=4, idle_timeout_s=6)
    with slowly as deployed:
        worker = deployed.start_and_wait()
        base_ms = now_ms() - 60_000
        cases = [(client, codec) for client in CLIENTS for codec in CODECS]
        for client, codec in cases:
            mark = f"{client}-{codec}"
            records = [*good(mark, base_ms), *bad(mark, base_ms)]
            CLIENTS[client](bootstrap_servers, deployed.segments, codec, records)
        deployed.wait_for_truth()
        assert worker.stop() == 0
        assert not deployed.differences()

        log = {(each.partition, each.offset): each for each in deployed.log()}
        letters = deployed.found_letters()
        for message in letters:
            reason, partition, offset = verdict(message)
            came = log[partition, offset]
            assert (message.key(), message.value()) == (came.key, came.value)
            headers: Any = message.headers()
            assert tuple(headers[:-5]) == came.headers
            assert headers[-5] == ("reason", reason.encode())
            assert headers[-3] == ("source_topic", deployed.segments.encode())
        # Nothing crashed, so nothing is there twice.
        assert max(Counter(map(verdict, letters)).values()) == 1
        totals = [decode_total(message.value()) for message in deployed.found_totals()]
        assert len(totals) == len(set(totals))
        statuses = Counter(each.status for each in totals if each.revision == 1)
        assert statuses == {
            Status.COMPLETE: 2 * len(cases),
            Status.INCOMPLETE: 2 * len(cases),
            Status.ABANDONED: 2 * len(cases),
        }
        # No client's library makes the first, and no single record the others.
        others = {Reason.BAD_BATCH, Reason.TOO_FRAGMENTED}
        others |= {Reason.ALREADY_OPENED, Reason.NOT_OPENED, Reason.BEFORE_OPENING}
        reasons = {each.value for each in set(Reason) - others}
        assert {verdict(message)[0] for message in letters} == reasons
