"""The sealer's loop: the totals topic into sealed logs, a log a partition.

Theory of operation. The folder alone says how far the sealer is: the checkpoint of a log names the
offset that comes next. Partitions are assigned at these offsets; no group is joined, nothing is
committed to Kafka. What is read is kept in memory until it is sealed, in this order: read records;
ask Kafka for the topic's id; if it is the one from the start, all that was read is of this topic;
then write and sign (see `folder`), then publish. A topic that was recreated shows before anything
of it is signed into the old topic's log.

A checkpoint that was published earlier, by the topic of checkpoints, must come out again if the
folder is behind it (it was lost, or an old copy was restored). Until then nothing is published.

Planned states, told in the log: an empty partition, a recreated topic, records that are gone before
they were sealed, new partitions, a new key. Each ends one log and begins another by signed lines.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.schemas.errors import AccessError, UnreachableError
from durabill.stream_processors.audit.seal.folder import (
    HAND_OVERS,
    OnStep,
    locked,
    write_files,
)
from durabill.stream_processors.audit.seal.growing import GrowingLog
from durabill.stream_processors.audit.seal.opening import SealPlan, expect, open_partition
from durabill.stream_processors.audit.seal.publish import Publisher, published_checkpoints
from durabill.stream_processors.audit.seal.source import TopicState, look_at_topic
from durabill.stream_processors.kafka.errors import Right, judged, passes
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet, seal_consumer
from durabill.stream_processors.kafka.reading import read_bounds

_AT_ONCE = 10_000
_POLL_S = 0.2
_PATIENCE_S = 2.0
_SILENCE_S = 30.0
_WAITING_MAX = 65_536
_WAITING_BYTES_MAX = 32 * 1024 * 1024
_log = logging.getLogger(__name__)


@dataclass
class SealStats:
    """Counters since the start: records sealed, checkpoints signed, logs kept and closed."""

    sealed: int = 0
    checkpoints: int = 0
    logs: int = 0
    closed: int = 0


def run_sealer(
    plan: SealPlan,
    *,
    stop: threading.Event,
    once: bool = False,
    on_ready: Callable[[], None] | None = None,
    on_step: OnStep = lambda step: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> SealStats:
    """Seal until `stop` is set; with `once`, until all is sealed that was there at the start.

    Raises SealBusy where another sealer has the folder, SealError for what trying again can't
    repair. With `once` also UnreachableError where something can't be read or published.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(plan.folder))
        sealer = Sealer(plan, on_step)
        stack.callback(sealer.close)
        sealer.open()
        if on_ready is not None:
            on_ready()
        if once:
            sealer.run_once(stop, progress)
        else:
            sealer.run(stop)
        return sealer.stats


class Sealer:
    """One sealer: see the module's theory of operation."""

    def __init__(self, plan: SealPlan, on_step: OnStep) -> None:
        self.plan, self._on_step = plan, on_step
        self.stats = SealStats()
        self._admin = AdminClient(quiet(plan.kafka))
        self._consumer = Consumer(seal_consumer(plan.kafka, LOOK_GROUP))
        self._publisher = Publisher(plan.kafka, plan.checkpoints_topic, plan.dsn)
        self._logs: dict[int, GrowingLog] = {}
        self._ends: dict[int, int] = {}
        self._ended: set[int] = set()
        self._state: TopicState | None = None
        self._due_s = 0.0

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()

    def open(self, patience_s: float | None = None) -> None:
        """Open the logs of the topic as it is now, and read on where they end."""
        plan = self.plan
        self._consumer.unassign()
        self._state = None  # until all of this has gone through
        state = self._look(patience_s)
        bounds = read_bounds(plan.kafka, LOOK_GROUP, plan.totals_topic, range(state.partitions))
        notes = published_checkpoints(plan.kafka, plan.checkpoints_topic)
        if plan.keys.hand_overs:
            write_files(plan.folder, {HAND_OVERS: plan.keys.hand_overs.encode()})
        self._publisher.owe_hand_overs(plan.keys.hand_overs)
        self._logs, self._ended = {}, set()
        for partition, (first, end) in bounds.items():
            log, closed = open_partition(plan, state, partition, first, self._on_step)
            for each in closed:
                self._publisher.owe(each.checkpoint, each.note)
            self.stats.closed += len(closed)
            expect(plan, log, notes.get(str(log.origin)))
            log.check_reach(first, end)
            self._logs[partition] = log
            if log.expected is None:
                self._publisher.owe(log.checkpoint, log.note)
        self._ends = {each: end for each, (_, end) in bounds.items()}
        self.stats.logs = len(self._logs)
        places = [
            TopicPartition(plan.totals_topic, each, max(log.next_offset, bounds[each][0]))
            for each, log in self._logs.items()
        ]
        self._consumer.assign(places)
        self._state = state
        self._due_s = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Seal until `stop` is set, whatever comes and goes."""
        while not stop.is_set():
            try:
                if self._state is None:
                    self.open(_PATIENCE_S)
                self._read()
                if self._is_due():
                    self._seal()
            except (UnreachableError, AccessError) as error:
                _log.warning("waiting: %s", str(error).splitlines()[0])
                stop.wait(_PATIENCE_S)
        try:
            self._seal()
        except (UnreachableError, AccessError) as error:
            _log.warning("what came last is sealed at the next start: %s", error)

    def run_once(
        self, stop: threading.Event, progress: Callable[[str, int, int], None] | None
    ) -> None:
        """Seal what was there at the start."""
        begun = {each: log.next_offset for each, log in self._logs.items()}
        while True:
            self._read_to_end(stop, begun, progress)
            self._seal()
            if self._state is not None or stop.is_set():
                break
            self.open()  # the topic was recreated meanwhile, or got partitions
        if troubles := self._publisher.deliver():
            raise UnreachableError("; ".join(troubles) + ". The folder has all of them")

    def _read_to_end(
        self,
        stop: threading.Event,
        begun: Mapping[int, int],
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        topic = self.plan.totals_topic
        total = sum(max(0, end - begun.get(each, 0)) for each, end in self._ends.items())
        silent_since_s = time.monotonic()
        while not (stop.is_set() or self._state is None or self._has_all()):
            if self._read():
                silent_since_s = time.monotonic()
            elif time.monotonic() > silent_since_s + _SILENCE_S:
                raise UnreachableError(
                    f"{topic}: Kafka sends nothing more for {_SILENCE_S:g} s, before the end"
                )
            if any(self._is_full(each) for each in self._logs.values()):
                self._seal()
            if progress is not None:
                done = sum(log.next_offset - begun.get(each, 0) for each, log in self._logs.items())
                progress(f"sealing {topic}", min(done, total), total)

    def _read(self) -> int:
        """Take what Kafka has; return how many records that were, or ends of partitions."""
        messages = self._consumer.consume(_AT_ONCE, _POLL_S)
        for message in messages:
            self._take(message)
        return len(messages)

    def _take(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            self._judge(error)
            return
        assert partition is not None, "records and ends have a place"
        assert offset is not None, "records and ends have a place"
        log = self._logs.get(partition)
        if log is None:
            return  # of a partition that a smaller topic of this name hasn't
        if error is not None:
            self._ended.add(partition)
            return
        self._ended.discard(partition)
        value = message.value()
        assert not isinstance(value, str), "no decoder is set"
        if offset >= log.next_offset:
            log.append(offset, value)

    def _judge(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._state = None  # records are gone, or the topic is another one: look again
        elif not passes(error) and not _is_of_topic(error):
            raise judged(error, self.plan.kafka, Right("Read", "topic", self.plan.totals_topic))

    def _has_all(self) -> bool:
        return all(
            log.next_offset >= self._ends[each] or each in self._ended
            for each, log in self._logs.items()
        )

    def _is_due(self) -> bool:
        full = any(self._is_full(each) for each in self._logs.values())
        return full or time.monotonic() >= self._due_s

    @staticmethod
    def _is_full(log: GrowingLog) -> bool:
        return log.waiting >= _WAITING_MAX or log.bytes_waiting >= _WAITING_BYTES_MAX

    def _seal(self) -> None:
        """Sign what was read, once Kafka has said of which topic it is; then publish."""
        self._due_s = time.monotonic() + self.plan.interval_s
        if self._state is None:
            return
        state = self._look(_PATIENCE_S)
        if (state.cluster, state.topic_id) == (self._state.cluster, self._state.topic_id):
            self._commit()
        if state != self._state:
            _log.warning("%s was recreated, or has more partitions", self.plan.totals_topic)
            self._state = None
        self._publisher.deliver()

    def _commit(self) -> None:
        for log in self._logs.values():
            waiting = log.waiting
            if log.commit():
                self.stats.sealed += waiting
                self.stats.checkpoints += 1
                if log.expected is None:
                    self._publisher.owe(log.checkpoint, log.note)

    def _look(self, patience_s: float | None) -> TopicState:
        return look_at_topic(self._admin, self.plan.kafka, self.plan.totals_topic, patience_s)


def _is_of_topic(error: KafkaError) -> bool:
    """Tell whether an error only says that the topic isn't there just now."""
    return error.code() in (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    )
