"""Runs a planned fleet against a real topic, and works out what must come of it.

Theory of operation, in steps:
1. plan, and note where the topic ends now;
2. publish wave 1, keeping each record's receipt;
3. wait until every order of wave 1 has settled by the broker's time, and a margin more;
4. publish wave 2: what comes late, comes again, comes back;
5. read the topic back with a plain consumer until the copies of all records that were sent to
   a wrong partition are there too (a worker must be running for that);
6. work out the truth from the log, and check it against the plan: each planned record must lie
   at its receipt, be judged as planned, and each order must come to what was intended. So the
   truth rests on what was meant, and only the instants come from the broker;
7. write the truth file.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from durabill.producers.fleet.plan import Fault, FleetPlan, OrderPlan, Send, in_publishing_order
from durabill.producers.fleet.publish import FleetError, Progress, Publisher, Receipt
from durabill.producers.fleet.truth import (
    FORWARDED_FROM,
    LogRecord,
    LogTruth,
    forwarded_from,
    read_log,
)
from durabill.producers.fleet.truth_file import (
    Comparison,
    compare,
    compare_dead_letters,
    write_truth,
)
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas.text import shown

__all__ = [
    "Comparison",
    "FleetError",
    "FleetReport",
    "Progress",
    "compare",
    "compare_dead_letters",
    "run_fleet",
]

MARGIN_S = 1.0
"""Time between the last deadline of wave 1 and the first record of wave 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What a run did. Times in seconds, or ms since the epoch by the broker.

    `segments` are the good records published, of which `repeats` brought a number again and
    `sent_over_http` went through the gateway. `sent_on` lay in a wrong partition, of which
    `not_forwarded` had no copy in the right one in time. `unexplained` lie in the log though
    they were sent once: a lost answer was asked for again. `publish_s` is the time spent in
    publishing, without the pause. All deadlines have passed at `settled_by_ms`.
    """

    orders: int
    segments: int
    records: int
    repeats: int
    sent_on: int
    not_forwarded: int
    unexplained: int
    totals: int
    final_statuses: dict[str, int]
    dead_letters: dict[str, int]
    publish_s: float
    records_per_s: float
    first_append_ms: int
    last_append_ms: int
    settled_by_ms: int
    sent_over_http: int = 0
    wall_s: float = 0.0
    truth_path: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def run_fleet(
    plan: FleetPlan,
    kafka: Mapping[str, str],
    topic: str,
    policy: Policy,
    *,
    truth_path: Path,
    rate: float | None = None,
    compression: str = "lz4",
    gateway_url: str | None = None,
    http_share: float = 0.0,
    forwarding_timeout_s: float = 30.0,
    progress: Progress = lambda phase, done, total: None,
) -> FleetReport:
    """Publish the plan to `topic`, write the truth to `truth_path`, and report.

    `policy` must be the workers'. `rate` limits the records a second, `http_share` (0 to 1) of
    the orders go through the gateway. The copies of records in wrong partitions are waited for
    up to `forwarding_timeout_s`; without a worker give 0.
    Raises FleetError when a record can't be delivered, or the log isn't what was planned.
    """
    if policy.correction_window_ms != plan.window_ms:
        raise ValueError("the plan's window_ms is not the policy's correction window")
    began_s = time.monotonic()
    progress("plan", 0, plan.orders)
    log = _Log(kafka, topic)
    try:
        orders = plan.order_plans(random.Random, int(time.time() * 1000), log.partitions)
        sends = in_publishing_order(orders)
        publisher = Publisher(
            kafka,
            topic,
            rate=rate,
            compression=compression,
            gateway_url=gateway_url,
            http_orders=_http_orders(plan, orders, http_share if gateway_url else 0.0),
        )
        try:
            publish_s = _publish(publisher, sends, policy, progress)
        finally:
            publisher.close()
        receipts = publisher.all_receipts()
        log.read(_wrongly_placed(sends, receipts), forwarding_timeout_s, progress)
    finally:
        log.close()
    progress("truth", 0, len(log.records))
    truth = _truth(log, policy, orders, sends, receipts)
    write_truth(
        truth_path,
        _settings(plan, policy, topic, log.partitions),
        ((order, truth.totals.get(order.number, [])) for order in orders),
        truth.dead_letters,
    )
    return replace(
        _report(plan, log, truth, sends, receipts, publish_s),
        sent_over_http=publisher.sent_over_http,
        wall_s=round(time.monotonic() - began_s, 3),
        truth_path=str(truth_path),
    )


def _report(
    plan: FleetPlan,
    log: "_Log",
    truth: LogTruth,
    sends: Sequence[Send],
    receipts: Sequence[Receipt],
    publish_s: float,
) -> FleetReport:
    segments = sum(send.segment is not None for send in sends)
    totals = [total for revisions in truth.totals.values() for total in revisions]
    return FleetReport(
        orders=plan.orders,
        segments=segments,
        records=len(sends),
        repeats=segments - len({_identity(send) for send in sends if send.segment is not None}),
        sent_on=len(truth.sent_on),
        not_forwarded=len(truth.sent_on - truth.forwarded),
        unexplained=_unexplained(log.records, receipts, plan.order_prefix),
        totals=len(totals),
        final_statuses=dict(Counter(each[-1].status.value for each in truth.totals.values())),
        dead_letters=dict(Counter(letter.reason.value for letter in truth.dead_letters)),
        publish_s=round(publish_s, 3),
        records_per_s=round(len(sends) / publish_s, 1),
        first_append_ms=min((receipt.append_ms for receipt in receipts), default=0),
        last_append_ms=max((record.append_ms for record in log.records), default=0),
        settled_by_ms=max((total.settled_at_ms for total in totals), default=0),
    )


def _settings(plan: FleetPlan, policy: Policy, topic: str, partitions: int) -> dict[str, Any]:
    own = {**asdict(plan), "order_prefix": plan.order_prefix, "policy": asdict(policy)}
    return {**own, "topic": topic, "partitions": partitions}


def _identity(send: Send) -> tuple[str, int]:
    assert send.segment is not None
    return send.order_number, send.segment.business_data_number


def _http_orders(plan: FleetPlan, orders: Sequence[OrderPlan], share: float) -> frozenset[str]:
    roll = random.Random(f"{plan.order_prefix}http")
    return frozenset(order.number for order in orders if roll.random() < share)


def _publish(
    publisher: Publisher, sends: Sequence[Send], policy: Policy, progress: Progress
) -> float:
    """Publish wave after wave with the pause between them; return the seconds of publishing."""
    spent_s = 0.0
    for wave in sorted({send.wave for send in sends}):
        if wave > 1:
            # Delivery reports come after the append, so from here on the broker's time is later.
            _pause(max(policy.settle_grace_ms, policy.idle_timeout_ms) / 1000 + MARGIN_S, progress)
        of_wave = [send for send in sends if send.wave == wave]
        began_s = time.monotonic()

        def tick(done: int, wave: int = wave, total: int = len(of_wave)) -> None:
            progress(f"wave {wave}", done, total)

        publisher.publish(of_wave, tick)
        spent_s += time.monotonic() - began_s
    return max(spent_s, 0.001)


def _pause(seconds: float, progress: Progress) -> None:
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        progress("settling", int(passed_s * 1000), int(seconds * 1000))
        time.sleep(min(0.2, seconds - passed_s))


def _wrongly_placed(sends: Sequence[Send], receipts: Sequence[Receipt]) -> set[bytes]:
    return {
        b"%d/%d" % (receipt.partition, receipt.offset)
        for send, receipt in zip(sends, receipts, strict=True)
        if send.fault is Fault.WRONG_PARTITION
    }


class _Log:
    """The part of the topic that was written since this object was made."""

    def __init__(self, kafka: Mapping[str, str], topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": "durabill-fleet",  # required by librdkafka; nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "error",  # records that are gone must not go unnoticed
                "allow.auto.create.topics": False,
            }
        )
        try:
            found = self._consumer.list_topics(topic, timeout=15).topics[topic]
            if found.error is not None:
                raise FleetError(f"topic {topic}: {found.error.str()}")
            self.partitions = len(found.partitions)
            self._next = self._ends()
        except KafkaException as error:
            self._consumer.close()
            raise FleetError(f"topic {topic}: {error.args[0].str()}") from error
        except FleetError:
            self._consumer.close()
            raise
        self.records: list[LogRecord] = []

    def read(self, wrongly_placed: set[bytes], timeout_s: float, progress: Progress) -> None:
        """Read on to the end, and on until the copies of all wrongly placed records are there."""
        assignment = [TopicPartition(self._topic, *place) for place in self._next.items()]
        self._consumer.assign(assignment)
        give_up_s = time.monotonic() + timeout_s
        while True:
            self._read_to_end(progress)
            missing = len(wrongly_placed - self.copies())
            if not missing or time.monotonic() >= give_up_s:
                return
            progress("forwarding", len(wrongly_placed) - missing, len(wrongly_placed))
            time.sleep(0.2)

    def copies(self) -> set[bytes]:
        """Return the origins of the copies that were sent on to their right partition."""
        origins = (
            forwarded_from(record.headers, record.partition, self.partitions)
            for record in self.records
            if record.headers
        )
        return {origin for origin in origins if origin is not None}

    def close(self) -> None:
        self._consumer.close()

    def _ends(self) -> dict[int, int]:
        places = [TopicPartition(self._topic, each) for each in range(self.partitions)]
        return {place.partition: self._end(place) for place in places}

    def _end(self, place: TopicPartition) -> int:
        give_up_s = time.monotonic() + 15
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(place, timeout=15)[1])
            except KafkaException:  # a topic's leaders are known a moment after it was made
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.2)

    def _read_to_end(self, progress: Progress) -> None:
        ends = self._ends()
        total = sum(ends.values()) - sum(self._next.values()) + len(self.records)
        silent_since_s = time.monotonic()
        while any(self._next[partition] < end for partition, end in ends.items()):
            messages = self._consumer.consume(10_000, timeout=0.2)
            for message in messages:
                if message.error() is not None:
                    raise FleetError(f"reading {self._topic} back: {message.error()}")
                record = _log_record(message)
                self.records.append(record)
                self._next[record.partition] = record.offset + 1
            progress("read back", len(self.records), total)
            if messages:
                silent_since_s = time.monotonic()
            elif time.monotonic() - silent_since_s > 30:
                raise FleetError(f"{self._topic} gives nothing, though its end is at {ends}")


def _log_record(message: Message) -> LogRecord:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = message.headers()  # its type says str or bytes, a consumer gives bytes
    key, value, append_ms = message.key(), message.value(), message.timestamp()[1]
    return LogRecord(partition, offset, append_ms, key, value, tuple(headers or ()))


def _truth(
    log: _Log,
    policy: Policy,
    orders: Sequence[OrderPlan],
    sends: Sequence[Send],
    receipts: Sequence[Receipt],
) -> LogTruth:
    """Return the truth of our part of the log; raise FleetError if the log isn't the plan."""
    truth = read_log(log.records, policy, log.partitions)
    ours = {order.number for order in orders}
    truth.totals = {number: totals for number, totals in truth.totals.items() if number in ours}
    places = {(receipt.partition, receipt.offset) for receipt in receipts}
    truth.dead_letters = [letter for letter in truth.dead_letters if letter[1:] in places]
    truth.sent_on &= {b"%d/%d" % place for place in places}
    problems = _misplaced(log.records, sends, receipts)
    problems += _misjudged(truth, sends, receipts)
    problems += _unintended(truth, orders)
    if problems:
        first = "\n  ".join(problems[:10])
        raise FleetError(f"{len(problems)} contradictions between plan and log:\n  {first}")
    return truth


def _unexplained(
    records: Sequence[LogRecord], receipts: Sequence[Receipt], order_prefix: str
) -> int:
    places = {receipt[:2] for receipt in receipts}
    return sum(
        (record.partition, record.offset) not in places
        and FORWARDED_FROM not in dict(record.headers)
        and (record.key or b"").startswith(order_prefix.encode())
        for record in records
    )


def _misplaced(
    records: Sequence[LogRecord], sends: Sequence[Send], receipts: Sequence[Receipt]
) -> list[str]:
    """Each planned record must lie where its receipt says, and no two at one place."""
    by_place = {(record.partition, record.offset): record for record in records}
    problems = []
    if len({receipt[:2] for receipt in receipts}) != len(sends):
        problems.append("two records have the same receipt")
    for send, receipt in zip(sends, receipts, strict=True):
        record = by_place.get(receipt[:2])
        if record is None or (record.key, record.value) != (send.key, send.value):
            problems.append(
                f"{receipt}: not the record of {shown(send.order_number)} that was sent"
            )
        elif record.append_ms != receipt.append_ms:
            problems.append(f"{receipt}: appended at {record.append_ms} by the log")
    return problems


def _misjudged(truth: LogTruth, sends: Sequence[Send], receipts: Sequence[Receipt]) -> list[str]:
    """Garbage must be rejected for its reason, all else accepted or sent on."""
    rejected = {letter[1:]: letter.reason for letter in truth.dead_letters}
    problems = []
    for send, receipt in zip(sends, receipts, strict=True):
        got = rejected.get(receipt[:2])
        if got is not send.expected:
            what = f"{shown(send.order_number)} {send.kind or send.segment}"
            problems.append(f"{receipt}: {what} is judged {got}, planned as {send.expected}")
        sent_on = b"%d/%d" % receipt[:2] in truth.sent_on
        if sent_on != (send.fault is Fault.WRONG_PARTITION):
            problems.append(f"{receipt}: {shown(send.order_number)} lies in an unplanned partition")
    return problems


def _unintended(truth: LogTruth, orders: Sequence[OrderPlan]) -> list[str]:
    """Each order must come to what was intended, unless a copy of its records is still due."""
    problems = []
    all_forwarded = truth.sent_on <= truth.forwarded
    for order in orders:
        if not all_forwarded and Fault.WRONG_PARTITION in order.faults:
            continue
        intended = order.intended()
        last = truth.totals.get(order.number, [None])[-1]
        if (intended is None) != (last is None):
            problems.append(f"{shown(order.number)}: intended {intended}, got {last}")
        elif intended is not None and last is not None:
            got: Sequence[object] = [getattr(last, name) for name in intended._fields]
            if got != list(intended):
                problems.append(f"{shown(order.number)}: intended {intended}, got {got}")
    return problems
