"""The records of one upload on their way into Kafka, followed by few reports.

Theory: an upload's records have one key, so they lie in one partition, in the order in which they
were produced. A report that Python sees costs a third as much as all else that a record costs here.
So only the last record's is a function of ours; those of the others go into a dictionary by their
error: `reports.setdefault(error, message)`, C all the way. Under None it keeps the first record
that was delivered, under anything else it tells that some record was not.

Why that loses nothing. Claim: when record j of a partition is acknowledged, each record i that this
producer queued before it for that partition is in the log, or its failure was reported before the
success of j. The producer is idempotent, so within one epoch of its id the broker takes a record
only if it has all those with lower sequence numbers: the same epoch for i and j means that i is in
the log, whatever was reported of it. librdkafka begins another epoch only after it has settled what
is under way: a record that is given up by then (its time was over, the broker refused its batch) is
reported there and then, and what is left gets new numbers in the same order. So either i was
reported as failed before j was sent again, or it was renumbered along with j, and the claim holds
in the new epoch. Reports come in the order in which librdkafka learns: one queue for all of them.
Therefore: a last report without an error, and no error in the dictionary by then, and the whole
upload is in the log. Otherwise none of it is acknowledged: the client sends all of it again, and
repeats do no harm.
"""

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from durabill.producers.sdk.stored import Stored, stored_at


class Delivery:
    """The records of one key, and where Kafka has them once `SegmentProducer.deliver` returned.

    With an empty key they have none. `is_stored` tells whether all of them are acknowledged;
    `error` says why not. `first` is where the first of them lies, `last` the last one; others'
    records may lie between them. With `wants_each`, `each` says it of every record.
    """

    __slots__ = ("_on_done", "_reports", "each", "error", "first", "key", "last", "values")

    def __init__(self, key: bytes, values: Sequence[bytes], *, wants_each: bool = False) -> None:
        assert values
        self.key, self.values = key, values
        self.each: list[Stored] | None = [] if wants_each else None
        self.first: Stored | None = None
        self.last: Stored | None = None
        self.error: object = None
        self._reports: dict[object, Message] = {}
        self._on_done: Callable[[], None] = _nothing

    @property
    def is_stored(self) -> bool:
        """Whether every record of it is in the log."""
        return self.last is not None

    def produce(self, producer: Producer, topic: str, on_done: Callable[[], None]) -> None:
        """Queue all records; `on_done` is called once, when it is known what became of them."""
        self._on_done = on_done
        produce, key = producer.produce, self.key or None
        report: Any = self._reports.setdefault if self.each is None else self._report
        try:
            for value in self.values[:-1]:
                produce(topic, value, key, _BY_KEY, report)
            produce(topic, self.values[-1], key, _BY_KEY, self._finish)
        except (BufferError, KafkaException) as error:
            # What was queued before it may get there. Nobody is told so, and it is sent again.
            self.error = error
            on_done()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        self._reports.setdefault(error, message)
        if error is None and self.each is not None and (stored := stored_at(message)) is not None:
            self.each.append(stored)

    def _finish(self, error: KafkaError | None, message: Message) -> None:
        reports = self._reports
        self._report(error, message)
        failed = [each for each in reports if each is not None]
        if failed:
            self.error = failed[0]
        else:
            first, last = stored_at(reports[None]), stored_at(message)
            count = len(self.values)
            is_known = (
                first is not None
                and last is not None
                and first.partition == last.partition
                and last.offset - first.offset >= count - 1
                and (self.each is None or len(self.each) == count)
            )
            if is_known:
                self.first, self.last = first, last
            else:  # it was a repeat inside librdkafka, or the topic got more partitions
                self.error = _NO_PLACE
        reports.clear()
        self._on_done()


_BY_KEY = -1  # librdkafka's word for "let the partitioner say"
_NO_PLACE = "stored, but it is not known where"


def _nothing() -> None:
    """Nobody waits."""
