"""Appends the totals of a replay to a topic of their own, each exactly once, however often it runs.

A partition is written in transactions by the producer of one transactional id, so at most one run
writes at a time. What the topic has already is read after the run before has been fenced, and is
not written again. What it has and this replay doesn't give is another run's: that is refused.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from durabill.schemas.errors import ContractError
from durabill.schemas.headers import WHAT_IF_RUN, headers_in
from durabill.stream_processors.engine.table import Total
from durabill.stream_processors.kafka.appending import Appender, NewRecord
from durabill.stream_processors.kafka.reading import read_topic

TRANSACTION_BYTES_MAX = 2 * 1024 * 1024
TRANSACTION_RECORDS_MAX = 10_000

OUT_OF_ORDER_MAX = 1_000_000
"""So many new totals may come before all that is there has come again: two runs of one log differ
by the sequence in which a few orders settle at one instant, and no more."""

RecordHeaders = tuple[tuple[str, bytes], ...]


class Outcome:
    """One partition of a topic that one replay writes; `headers_of` gives a total's headers."""

    def __init__(
        self,
        kafka: Mapping[str, Any],
        topic: str,
        partition: int,
        transactional_id: str,
        headers_of: Callable[[Total], RecordHeaders] = lambda _: (),
        *,
        run_id: str = "",
    ) -> None:
        self.appended = 0
        self._topic = topic
        self._partition = partition
        self._headers_of = headers_of
        self._appender = Appender(kafka, transactional_id)
        self._there = self._read(kafka, run_id)
        self.already_there = self._there.total()
        """How many totals of an earlier run have not come again yet."""
        self._waiting: list[NewRecord] = []
        self._waiting_bytes = 0

    def _read(self, kafka: Mapping[str, Any], run_id: str) -> Counter[bytes]:
        """Return what is there already; raise ContractError if another run has written it."""
        there: Counter[bytes] = Counter()
        for _, offset, message in read_topic(kafka, self._topic, partitions={self._partition}):
            headers = headers_in(message)
            if run_id and (WHAT_IF_RUN, run_id.encode()) not in headers:
                raise ContractError(
                    f"{self._topic}/{self._partition} holds records of others, the first at offset"
                    f" {offset}: this replay publishes to a topic of its own alone. Name another"
                )
            there[_mark(message.key(), message.value(), headers)] += 1
        return there

    def put(self, totals: Sequence[Total]) -> None:
        """Take in totals as the replay gives them."""
        for total in totals:
            headers = self._headers_of(total)
            mark = _mark(total.key, total.value, headers)
            if self._there[mark] > 0:
                self._there[mark] -= 1
                self.already_there -= 1
                continue
            record = NewRecord(self._topic, self._partition, total.key, total.value, headers)
            self._waiting.append(record)
            self._waiting_bytes += record.size
            # Nothing is appended to what may turn out to be another run's.
            if self.already_there:
                if len(self._waiting) > OUT_OF_ORDER_MAX:
                    raise self._foreign()
            elif (
                self._waiting_bytes >= TRANSACTION_BYTES_MAX
                or len(self._waiting) >= TRANSACTION_RECORDS_MAX
            ):
                self._append()

    def _append(self) -> None:
        for first in range(0, len(self._waiting), TRANSACTION_RECORDS_MAX):
            some = self._waiting[first : first + TRANSACTION_RECORDS_MAX]
            self._appender.append(some)
            self.appended += len(some)
        self._waiting, self._waiting_bytes = [], 0

    def _foreign(self) -> ContractError:
        return ContractError(
            f"{self._topic}/{self._partition} holds {self.already_there:,} records that this"
            " replay doesn't give: they are of another run, log or policy. Nothing was appended to"
            " this partition. Name another topic"
        )

    def finish(self) -> None:
        """Append the rest. Raises ContractError if the topic has totals that never came.

        Those are of another log or another policy, so the topic as a whole is no outcome of ours.
        """
        if self.already_there:
            raise self._foreign()
        self._append()

    def close(self) -> None:
        """Give the producer back."""
        self._appender.close()


def _mark(key: Any, value: Any, headers: Sequence[tuple[str, Any]]) -> bytes:
    """Return what tells a record from all others; 32 bytes for each that is there."""
    digest = hashlib.sha256()
    parts = [key, value, *(part for name, content in headers for part in (name.encode(), content))]
    for part in parts:
        content = b"" if part is None else bytes(part)
        digest.update(len(content).to_bytes(8, "big", signed=False) + content)
    return digest.digest()
