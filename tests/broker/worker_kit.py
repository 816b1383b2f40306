"""What the worker's tests share: workers as real processes, the log, and what it must lead to.

A `Deployment` has topics and an application id of its own. Its workers are processes that are
started, stopped, frozen and killed by pid; their logs are files, shown when a test fails. What the
totals and dead letters must be is worked out from the log itself by the independent oracle.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from durabill.deploy.local.stack import find_free_ports
from durabill.deploy.topics import create_topics
from durabill.producers.fleet.truth import LogRecord, LogTruth, read_log
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import PARTITIONER, WriterSchemas, decode_total
from durabill.schemas.topics import Topics
from durabill.stream_processors.core import order
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.kafka.group_offsets import read_committed_offsets
from tests.broker.opening_kit import source_of
from tests.broker.traffic_kit import Pair
from tests.waiting import HANG_S, wait_until

PROJECT_DIR = Path(__file__).resolve().parents[2]

_ENTRY = """
import os, sys
from durabill.deploy.commands.framing import totals_framing
from durabill.deploy.logs import set_up_logging
from durabill.schemas import WriterSchemas
from durabill.stream_processors.worker.app import run_worker
from durabill.stream_processors.worker.effect_order import ignore_step
from durabill.stream_processors.settings import load_settings
from tests.crash_at import kill_at
set_up_logging()
crash_at = os.environ.get("DURABILL_TEST_CRASH_AT", "")
on_step = kill_at(crash_at) if crash_at else ignore_step
settings, schemas = load_settings(os.environ), WriterSchemas()
partitions, port = int(sys.argv[1]), int(sys.argv[2])
framing = totals_framing(settings)
run_worker(settings, partitions, port, schemas, on_step, totals_framing=framing)
"""

Verdict = tuple[str, int, int]
"""Reason, source partition and source offset of a dead letter."""


_compiling = threading.Lock()


def _compile_kernel() -> None:
    """Fills the kernel's cache, once: a test's time limits are not for compiling in each worker."""
    with _compiling:
        ColumnTable(Place(0, 1), order.Policy(), WriterSchemas()).warm_up()


def send(
    bootstrap_servers: str,
    topic: str,
    records: Iterable[Pair],
    *,
    pause_s: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    **more: Any,
) -> None:
    """Publishes records in this order, `pause_s` between any two, and waits for Kafka's word."""
    errors: list[KafkaError | None] = []

    def note(error: KafkaError | None, _: Message) -> None:
        errors.extend([error] if error else [])

    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "partitioner": PARTITIONER, "linger.ms": 5}
    )
    for key, value in records:
        producer.produce(topic, value, key, on_delivery=note, **more)
        producer.poll(0)
        if pause_s:
            time.sleep(pause_s)
        if stop():
            break
    assert producer.flush(HANG_S) == 0
    assert not errors


def read_committed(bootstrap_servers: str, topic: str) -> list[Message]:
    """All records that the topic holds now, by partition and offset; no aborted ones."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "unused",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    records: list[Message] = []
    try:
        partitions = consumer.list_topics(topic, timeout=HANG_S).topics[topic].partitions
        assert partitions, f"no topic {topic}"
        consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions])
        ended: set[int | None] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(HANG_S)
            assert message is not None, f"{topic} can't be read to its end"
            error = message.error()
            if error is None:
                records.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, str(error)
                ended.add(message.partition())
    finally:
        consumer.close()
    return sorted(records, key=lambda each: (each.partition(), each.offset()))


def log_record(message: Message) -> LogRecord:
    """A record of the segments topic as the oracle takes it."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = tuple(message.headers() or ())
    append_ms, key, value = message.timestamp()[1], message.key(), message.value()
    return LogRecord(partition, offset, append_ms, key, value, headers)


class Worker:
    """A worker's process. Its log is a file; `port` is its web server's."""

    def __init__(
        self, partitions: int, environ: Mapping[str, str], log_path: Path, prelude: str
    ) -> None:
        self.port = find_free_ports(1)[0]
        self.log_path = log_path
        given = {name: value for name, value in os.environ.items() if "DURABILL" not in name}
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", prelude + _ENTRY, str(partitions), str(self.port)],
                cwd=PROJECT_DIR,
                env={**given, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to this very process."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = HANG_S) -> int:
        """Waits for its end; returns the exit code, negative for a signal."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Asks it to stop (SIGTERM) and returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def ends_as_told(self) -> bool:
        """Asks it to stop; tells whether it did: one that has just begun takes no signals yet."""
        code = self.stop()
        return code == 0 or (code == -signal.SIGTERM and "ready:" not in self.log())

    def kill(self) -> None:
        """Ends it at once (SIGKILL), also where it is frozen or has ended already."""
        self.process.kill()
        self.wait()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a page, the path sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S / 2)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            assert response.headers.get_content_subtype().endswith("json"), body
            return response.status, json.loads(body)
        finally:
            connection.close()

    def order(self, number: str) -> tuple[int, Any]:
        """Status and JSON of an order's page."""
        return self.get(f"/orders/{quote(number, safe='')}")

    def next_offsets(self) -> dict[int, int]:
        """Partition of its own -> the offset it waits for; none before its web server is there."""
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}"
        try:
            partitions = self.get("/status")[1]["partitions"]
        except OSError:
            return {}
        return {int(each): status["next_offset"] for each, status in partitions.items()}


@dataclass
class Deployment:
    """Topics, an application id and the workers on them. Times of the policy in seconds."""

    bootstrap_servers: str
    folder: Path
    partitions: int = 4
    settle_grace_s: float = 1.0
    idle_timeout_s: float = 2.0
    correction_window_s: float = 86_400.0
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    workers: list[Worker] = field(default_factory=list)
    _truth: tuple[int, int | None, LogTruth] | None = None

    def __post_init__(self) -> None:
        self.segments, self.totals = f"{self.name}.segments", f"{self.name}.totals"
        self.orders = f"{self.name}.orders"
        self.dead_letters = f"{self.name}.dead-letters"
        self.checkpoint = f"{self.name}-checkpoint-changelog"
        self.kafka: dict[str, Any] = {"bootstrap.servers": self.bootstrap_servers}
        self.policy = Policy(
            settle_grace_ms=round(self.settle_grace_s * 1000),
            idle_timeout_ms=round(self.idle_timeout_s * 1000),
            correction_window_ms=round(self.correction_window_s * 1000),
        )
        _compile_kernel()
        self.create_topics()

    def create_topics(self) -> None:
        """Makes those of the topics that are missing."""
        create_topics(self.kafka, self.topics, partitions=self.partitions)

    @property
    def topics(self) -> Topics:
        """All names."""
        return Topics(
            self.segments, self.totals, self.dead_letters, self.checkpoint, orders=self.orders
        )

    # -- workers ------------------------------------------------------------------------------

    def start(self, prelude: str = "", *, crash_at: str = "", **settings: object) -> Worker:
        """Starts a worker with further settings by their names, after the code in `prelude`.

        It kills itself once it has done a step n times, if `crash_at` says `step:n`.
        """
        chosen = {
            "bootstrap_servers": self.bootstrap_servers,
            "application_id": self.name,
            "segments_topic": self.segments,
            "totals_topic": self.totals,
            "orders_topic": self.orders,
            "dead_letters_topic": self.dead_letters,
            "settle_grace_s": self.settle_grace_s,
            "idle_timeout_s": self.idle_timeout_s,
            "correction_window_s": self.correction_window_s,
            "checkpoint_interval_s": 0.3,
            **settings,
        }
        environ = {f"DURABILL_{name.upper()}": str(value) for name, value in chosen.items()}
        environ["DURABILL_TEST_CRASH_AT"] = crash_at
        log_path = self.folder / f"{self.name}-worker-{len(self.workers)}.log"
        worker = Worker(self.partitions, environ, log_path, prelude)
        self.workers.append(worker)
        return worker

    def wait_for_owners(self, *workers: Worker) -> None:
        """Waits until these workers have shared out all partitions, none without any."""

        def shared_out() -> bool:
            owned = [worker.next_offsets() for worker in workers]
            return all(owned) and sorted(chain(*owned)) == [*range(self.partitions)]

        wait_until(shared_out, "the partitions have owners")

    def start_and_wait(self, prelude: str = "", **settings: Any) -> Worker:
        """Starts a worker and waits until all partitions are its own."""
        worker = self.start(prelude, **settings)
        self.wait_for_owners(worker)
        return worker

    def close(self) -> None:
        """Kills what still runs and deletes the topics."""
        for worker in self.workers:
            worker.kill()
        names = self.topics.by_role.values()
        admin = AdminClient(self.kafka)
        existing = set(admin.list_topics(timeout=HANG_S).topics)
        for future in admin.delete_topics([each for each in names if each in existing]).values():
            future.result(HANG_S)

    # -- the log and what came of it ------------------------------------------------------------

    def send(self, records: Iterable[Pair], **more: Any) -> None:
        """Publishes records on the segments topic."""
        send(self.bootstrap_servers, self.segments, records, **more)

    def log(self) -> list[LogRecord]:
        """The segments topic as it is now."""
        return [log_record(each) for each in read_committed(self.bootstrap_servers, self.segments)]

    def truth(self, until_ms: int | None = None) -> LogTruth:
        """What the log of now must lead to once the deadlines up to `until_ms` have passed."""
        log = self.log()
        if self._truth is None or self._truth[:2] != (len(log), until_ms):
            truth = read_log(log, self.policy, self.partitions, until_ms)
            self._truth = len(log), until_ms, truth
        return self._truth[2]

    def found_totals(self) -> list[Message]:
        """The records of the totals topic."""
        return read_committed(self.bootstrap_servers, self.totals)

    def found_openings(self) -> list[Message]:
        """The records of the orders topic."""
        return read_committed(self.bootstrap_servers, self.orders)

    def found_letters(self) -> list[Message]:
        """The records of the dead-letter topic."""
        return read_committed(self.bootstrap_servers, self.dead_letters)

    def committed(self) -> dict[int, int]:
        """Partition -> the group's committed offset, -1001 where there is none."""
        places = [TopicPartition(self.segments, each) for each in range(self.partitions)]
        found = read_committed_offsets(self.kafka, self.name, places)
        return {each.partition: each.offset for each in found}

    def ends(self) -> dict[int, int]:
        """Partition -> the offset after the last record of segments, markers included."""
        consumer = Consumer({**self.kafka, "group.id": "unused"})
        try:
            return {
                each: consumer.get_watermark_offsets(TopicPartition(self.segments, each), HANG_S)[1]
                for each in range(self.partitions)
            }
        finally:
            consumer.close()

    def differences(self) -> list[str]:
        """What is wrong or missing in totals, openings and dead letters by the log of now."""
        published = [decode_total(each.value()) for each in self.found_totals()]
        times = Counter((each.service_order_number, each.revision) for each in published)
        letters = {verdict(each) for each in self.found_letters()}
        truth = self.truth()
        expected = {total for of_order in truth.totals.values() for total in of_order}
        rejected = {(each.reason.value, *each[1:]) for each in truth.dead_letters}
        totals = set(published)
        opened = Counter(map(_opening, self.found_openings()))
        sources = {b"%d/%d" % (each.partition, each.offset): each for each in self.log()}
        openings = Counter((each, *sources[each][3:5]) for each in truth.opened)
        return [
            *(f"not passed on: {each}" for each in openings - opened),
            *(f"wrongly passed on, or twice: {each}" for each in opened - openings),
            *(f"missing: {each}" for each in sorted(expected - totals, key=str)),
            *(f"wrong: {each}" for each in sorted(totals - expected, key=str)),
            *(f"published {count} times: {each}" for each, count in times.items() if count > 1),
            *(f"no dead letter: {each}" for each in sorted(rejected - letters)),
            *(f"wrong dead letter: {each}" for each in sorted(letters - rejected)),
            *(f"not sent on: {each!r}" for each in sorted(truth.sent_on - truth.forwarded)),
        ]

    def wait_for_truth(self, timeout_s: float = HANG_S) -> None:
        """Waits until all is settled and every total and dead letter is as the oracle's."""
        until_s = time.monotonic() + timeout_s
        while differences := self.differences():
            for worker in self.workers:
                code = worker.process.poll()
                assert code in (None, 0, -signal.SIGKILL), f"a worker ended with {code}"
            shown = "\n".join(differences[:20])
            assert time.monotonic() < until_s, f"{len(differences)} differences:\n{shown}"
            time.sleep(0.3)


def _opening(message: Message) -> tuple[bytes, Any, Any]:
    """Where the opening of a record of the orders topic lies, its key and its value."""
    place = b"%d/%d" % (message.partition() or 0, source_of(message))
    return place, message.key(), message.value()


def verdict(message: Message) -> Verdict:
    """What a dead letter's headers say; the last of a name, as the record may have its own."""
    headers: Any = dict(message.headers() or ())
    partition, offset = int(headers["source_partition"]), int(headers["source_offset"])
    return headers["reason"].decode(), partition, offset


@contextmanager
def deployment(bootstrap_servers: str, folder: Path, **more: Any) -> Iterator[Deployment]:
    """A deployment around a block; whatever it started is killed, and its logs shown on failure."""
    made = Deployment(bootstrap_servers, folder, **more)
    try:
        yield made
    except BaseException:
        for worker in made.workers:
            sys.stderr.write(f"--- {worker.log_path.name}\n{worker.log()[-6000:]}\n")
        raise
    finally:
        made.close()
