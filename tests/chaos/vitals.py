"""Watches the log from outside while faults hit, so that each can be proven to have hit.

A thread asks the broker, directly and not through the proxy, a few times a second: where the
topics end, and how far the workers' group has committed. What the broker doesn't answer in time
is missing from a sample, which is a proof of its own.
"""

import contextlib
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from durabill.deploy.local.stack import StackError
from durabill.stream_processors.settings import Settings
from tests.chaos.cluster import PARTITIONS
from tests.chaos.traffic import Pump

SAMPLE_S = 0.4
_ANSWER_S = 2.0
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: sums over partitions; the first three are None when the broker was silent."""

    at_s: float
    segments: int | None
    totals: int | None
    committed: int | None
    backlog: int

    @property
    def answered(self) -> bool:
        """Tell whether the broker answered everything."""
        return None not in (self.segments, self.totals, self.committed)

    @property
    def lag(self) -> int:
        """Return how many offsets of segments the group had not committed; 0 if unknown."""
        if self.segments is None or self.committed is None:
            return 0
        return max(0, self.segments - self.committed)


class Vitals(threading.Thread):
    """Takes samples until closed."""

    def __init__(self, settings: Settings, kafka: dict[str, str], pump: Pump) -> None:
        super().__init__(name="vitals", daemon=True)
        self.samples: list[Sample] = []
        self._settings = settings
        self._pump = pump
        self._end = threading.Event()
        # So that the end of an outage is seen at once, and that a partition has another leader: who
        # leads is kept for 15 minutes otherwise, where nothing is subscribed.
        eager = {**kafka, "reconnect.backoff.max.ms": "500", "metadata.max.age.ms": "1000"}
        eager["topic.metadata.refresh.interval.ms"] = "1000"
        self._consumer = Consumer({**eager, "group.id": "chaos-vitals"})
        # It never subscribes, so it is no member of the group. The same question by an AdminClient
        # crashes the process while a coordinator loads.
        name = settings.application_id
        self._group = Consumer({**eager, "group.id": name, "enable.auto.commit": False})

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self.ident is not None:
            self.join()
        self._consumer.close()
        self._group.close()

    def run(self) -> None:
        """Take samples."""
        while not self._end.wait(SAMPLE_S):
            self.samples.append(self.look())

    def look(self) -> Sample:
        """Take one sample."""
        segments = totals = committed = None
        try:
            segments = self._end_of(self._settings.segments_topic)
            totals = self._end_of(self._settings.totals_topic)
            committed = sum(self.committed().values())
        except (KafkaException, TimeoutError):
            # A silent broker is what the sample then says; or the leaders are others by now.
            with contextlib.suppress(KafkaException):
                self._consumer.list_topics(timeout=_ANSWER_S)
        return Sample(time.monotonic(), segments, totals, committed, self._pump.backlog())

    def committed(self) -> dict[int, int]:
        """Return the next offset of each partition by the workers' group, 0 where it has none."""
        topic = self._settings.segments_topic
        places = [TopicPartition(topic, each) for each in range(PARTITIONS)]
        found = self._group.committed(places, timeout=_ANSWER_S)
        return {each.partition: max(0, each.offset) for each in found}

    def ends(self, topic: str) -> dict[int, int]:
        """Return the offset after the last record of each partition."""
        found = {}
        for partition in range(PARTITIONS):
            place = TopicPartition(topic, partition)
            answer = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)
            if answer is None:
                raise TimeoutError(f"{topic}/{partition}")
            found[partition] = answer[1]
        return found

    def at_rest(self) -> tuple[int, dict[int, int]]:
        """Return the group's lag, and the next offset of each partition by it.

        Patient, unlike the rest: raises StackError if Kafka doesn't answer for a long time.
        """
        give_up_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                ends, committed = self.ends(self._settings.segments_topic), self.committed()
            except (KafkaException, TimeoutError) as error:
                if time.monotonic() > give_up_s:
                    raise StackError(f"Kafka doesn't say how far the group is: {error}") from error
            else:
                return sum(ends.values()) - sum(committed.values()), committed

    def _end_of(self, topic: str) -> int:
        return sum(self.ends(topic).values())

    # -- what happened in a window ------------------------------------------------------------

    def between(self, from_s: float, until_s: float) -> list[Sample]:
        """Return the samples taken in [from_s, until_s)."""
        samples = self.samples
        times = [each.at_s for each in samples]
        return samples[bisect_left(times, from_s) : bisect_left(times, until_s)]

    def gained(self, field: str, from_s: float, until_s: float) -> int:
        """Return how much `segments`, `totals` or `committed` grew over the window's samples."""
        known = [getattr(each, field) for each in self.between(from_s, until_s)]
        known = [each for each in known if each is not None]
        return max(known) - min(known) if known else 0

    def lag_max(self, from_s: float, until_s: float) -> int:
        """Return the greatest lag in the window."""
        return max((each.lag for each in self.between(from_s, until_s)), default=0)

    def backlog_max(self, from_s: float, until_s: float) -> int:
        """Return the most records that the fleet had not got acknowledged in the window."""
        return max((each.backlog for each in self.between(from_s, until_s)), default=0)

    def silences(self, from_s: float, until_s: float) -> int:
        """Return how many samples of the window the broker didn't answer."""
        return sum(not each.answered for each in self.between(from_s, until_s))
