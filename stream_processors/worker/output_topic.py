"""A partition of an output topic that nobody but us may write to, as its writer knows it.

Another application id has other transactional ids, so Kafka doesn't fence it. But we know the
offset that our next record must get. Before a transaction is committed, its first offset in each
output is compared with that one. If records of others lie between, they have published as well: of
two applications at most one can publish a result, and the next to start reads what the other has
published. A record that is no worker's is no result of another: it is passed over, and told.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message

from durabill.stream_processors.kafka.reading import read_bounds, tail_messages
from durabill.stream_processors.kafka.results import IsResult
from durabill.stream_processors.worker.strays import tell_strays

LookForOthers = Callable[[int, int], Sequence[int] | None]
"""Is asked for [start, end) of a partition: None if others have published there, else the strays'
offsets."""


class OutputTopic:
    """How far one partition of an output topic is known, and where our next record must go.

    `position` is the offset that follows the last record of ours known to have been written.
    """

    def __init__(self, topic: str, look_for_others: LookForOthers) -> None:
        self.topic = topic
        self.position = 0
        self.strays = 0
        """How many records of others are no results, as far as we have met them."""
        self._look_for_others = look_for_others
        self._expected: int | None = None
        self._first: int | None = None

    def starts_at(self, end: int) -> None:
        """Note where the topic ended when it was read: our first record goes there."""
        self.position = self._expected = end

    def watch(self, messages: list[dict[str, Any]]) -> None:
        """Have the deliveries of a run's first and last message noted; `messages` isn't empty."""
        messages[-1]["callback"] = self._note_position
        messages[0]["callback"] = self._note_first if len(messages) > 1 else self._note_only

    def begin(self) -> None:
        """Note that a transaction begins."""
        self._first = None

    def has_foreign(self) -> bool:
        """Tell whether others have written since our last record; all of ours is delivered."""
        first, expected = self._first, self._expected
        if first is None:
            return False  # nothing of ours, or not delivered: the commit will raise the reason
        # Markers and our own aborted records take offsets as well, so a gap alone is no proof.
        if expected is not None and first != expected:
            strays = self._look_for_others(expected, first)
            if strays is None:
                return True
            self.strays += len(strays)
        self._expected = first
        return False

    def note_committed(self) -> None:
        """Note that the transaction is committed."""
        if self._first is not None:
            self._expected = self.position + 1  # our marker takes one

    def _note_position(self, error: KafkaError | None, message: Message) -> None:
        offset = message.offset()
        if error is None and offset is not None:
            self.position = offset + 1

    def _note_first(self, error: KafkaError | None, message: Message) -> None:
        if error is None and self._first is None:
            self._first = message.offset()

    def _note_only(self, error: KafkaError | None, message: Message) -> None:
        self._note_first(error, message)
        self._note_position(error, message)


def looks_for_others(
    kafka: Mapping[str, Any],
    group: str,
    topic: str,
    partition: int,
    is_result: IsResult,
) -> LookForOthers:
    """Return a function that tells whether others have published to [start, end) of a partition.

    It blocks. Records that are committed there count if `is_result` says so, and so does an open
    transaction, which hides its records. That one may have begun before `start`: between our last
    record and its marker. Strays are told.
    """

    def find(start: int, end: int) -> list[int] | None:
        if read_bounds(kafka, group, topic, [partition])[partition][1] < start:
            return None
        strays: list[int] = []
        for _, offset, message in tail_messages(kafka, group, topic, {partition: start}):
            if message is None:
                if offset < end:
                    return None
            elif offset < end:
                if is_result(message):
                    return None
                strays.append(offset)
        tell_strays(f"{topic}/{partition}", strays)
        return strays

    return find
