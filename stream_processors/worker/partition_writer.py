"""Writes a partition's openings, totals and checkpoint, in transactions; only its owner can.

Each partition has one transactional producer (KIP-98), named after the application and the
partition. Opening it fences the previous owner: the broker refuses everything more from a worker
that was frozen and has lost the partition meanwhile, and aborts what it had not committed. Records
are written in the order in which they were put, cut into transactions: no block of a checkpoint can
be seen before the totals that it rests on, and no total before the opening of its order. A
transaction that the broker aborted is written again from its start. Every other failure is fatal,
and a recovery finds out from the topics what has been published (`reading.read_tails`).

Another application id has other transactional ids, so it is not fenced. `output_topic` tells of it:
then the transaction is aborted and the worker ends.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from durabill.schemas import TOTAL_HEADER, framed_total
from durabill.schemas.errors import OWN_APPLICATION_ID, FencedError, ForeignTotals, StallError
from durabill.schemas.headers import SEGMENTS_TOPIC_ID, SOURCE_OFFSET
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Total
from durabill.stream_processors.kafka.fencing import FENCED, close_producer
from durabill.stream_processors.worker.output_topic import OutputTopic
from durabill.stream_processors.worker.ports import Ends, Entry, WriterClosed

log = logging.getLogger("durabill.worker")

SPACING_S = 0.05
"""Between the starts of two transactions: each costs the broker five small writes."""

TRANSACTION_BYTES_MAX = 2 * 1024 * 1024
"""A transaction ends after this much, so that totals needn't wait for a large checkpoint."""

BACKLOG_BYTES_MAX = 64 * 1024 * 1024
COMMIT_PATIENCE_S = 1.0
GIVE_UP_S = 120.0
"""For how long brokers may be gone before a worker ends and leaves it to the next one."""

RETRY_PAUSE_S = 0.2
ATTEMPTS_MAX = 3
FULL_PAUSE_S = 0.005


class Run(NamedTuple):
    """Records for one topic that one call has put: they are never split over transactions."""

    topic: str
    messages: list[dict[str, Any]]
    size: int


class KafkaPartitionWriter:
    """The transactional producer of one partition, with a thread that commits what is put.

    Made and used on one event loop. The methods promise what `ports.PartitionWriter` says.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        partition: int,
        totals: OutputTopic,
        orders: OutputTopic,
        checkpoint_topic: str,
        on_fatal: Callable[[BaseException], None],
        totals_framing: bytes = TOTAL_HEADER,
        segments_topic_id: str = "",
    ) -> None:
        self.partition = partition
        self._producer = producer
        self._totals, self._orders = totals, orders
        self._outputs = {each.topic: each for each in (totals, orders)}
        self._totals_framing = totals_framing
        log_id = segments_topic_id.encode()
        self._log_headers = [(SEGMENTS_TOPIC_ID, log_id)] if log_id else []
        self._checkpoint_topic = checkpoint_topic
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._runs: deque[Run] = deque()
        self._put = self._committed = self._backlog_bytes = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._closing = False
        self._started_s = 0.0
        self._waiting_since_s: float | None = None
        name = f"partition-writer-{partition}"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def ends(self) -> Ends:
        """Return what follows the last total, and the last opening, known to have been written."""
        return Ends(self._totals.position, self._orders.position)

    @property
    def strays(self) -> int:
        """Return how many records of others in the outputs were met that are no results."""
        return self._totals.strays + self._orders.strays

    def put_openings(self, openings: Sequence[Opening]) -> None:
        """Queue openings, in their order."""
        self._put_output(
            self._orders,
            [
                {
                    "key": key,
                    "value": value,
                    "headers": [(SOURCE_OFFSET, str(offset).encode()), *self._log_headers],
                }
                for key, value, offset in openings
            ],
        )

    def put_totals(self, totals: Sequence[Total]) -> None:
        """Queue totals, in their order."""
        framing, of = self._totals_framing, self._log_headers
        self._put_output(
            self._totals,
            [
                {"key": key, "value": framed_total(total, framing), "headers": of}
                for key, total in totals
            ],
        )

    def _put_output(self, output: OutputTopic, messages: list[dict[str, Any]]) -> None:
        if messages:
            output.watch(messages)
            self._append(output.topic, messages)

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Queue entries of the checkpoint, in their order."""
        for key, content in entries:
            self._append(self._checkpoint_topic, [{"key": key, "value": content}])

    def _append(self, topic: str, messages: list[dict[str, Any]]) -> None:
        size = sum(len(each["key"]) + len(each["value"] or b"") for each in messages)
        with self._changed:
            self._runs.append(Run(topic, messages, size))
            self._put += 1
            self._backlog_bytes += size
            if self._waiting_since_s is None:
                self._waiting_since_s = time.monotonic()
            self._changed.notify()

    async def flushed(self) -> None:
        """Return once everything put so far is committed; raise WriterClosed if it can't be."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        with self._changed:
            if self._committed == self._put:
                return
            if self._closing:
                raise WriterClosed
            self._waiters.append((self._put, waiter))
        await waiter

    async def wait_for_room(self) -> None:
        """Return once little enough is queued: this holds the stream back where brokers are slow.

        A closed writer holds nobody back, though its queue stays full.
        """
        while self._backlog_bytes > BACKLOG_BYTES_MAX and not self._closing:
            await asyncio.sleep(FULL_PAUSE_S)

    def waiting_s(self) -> float:
        """Return for how long the oldest uncommitted record has been waiting."""
        since_s = self._waiting_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def close(self) -> None:
        """End the thread, without waiting for it; what has not been committed is aborted."""
        with self._changed:
            self._closing = True
            waiters, self._waiters = self._waiters, []
            self._changed.notify()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(WriterClosed())

    def starts_at(self, ends: Ends) -> None:
        """Note where the outputs ended when they were read: our first records go there."""
        self._totals.starts_at(ends.totals)
        self._orders.starts_at(ends.orders)

    async def closed(self) -> None:
        """Return once the thread has ended; that can take forever where no broker answers."""
        while self.is_at_work():
            await asyncio.sleep(FULL_PAUSE_S)

    def is_at_work(self) -> bool:
        """Tell whether the thread has not ended yet."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end; blocks."""
        self._thread.join(max(0.0, timeout_s))

    # -- the thread ---------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while runs := self._next():
                if not self._commit(runs):
                    break
                self._note_committed(runs)
        except BaseException as error:
            # A producer that failed can't end its transaction itself: the broker aborts it.
            if not self._closing:
                self._loop.call_soon_threadsafe(self._on_fatal, self._explain(error))
        else:
            self._close_producer()

    def _close_producer(self) -> None:
        """Give the producer back; its open transaction is aborted.

        Whoever took the partition over meanwhile has fenced it, and that is no fault: we were told
        to close, and the broker has aborted the transaction.
        """
        objection = close_producer(self._producer)
        if objection is not None:
            log.info("partition %d: its producer ended with: %s", self.partition, objection)

    def _next(self) -> list[Run]:
        """Return the runs of the next transaction, as soon as it is due; [] at the end."""
        with self._changed:
            while not self._runs and not self._closing:
                self._changed.wait()
        time.sleep(max(0.0, self._started_s + SPACING_S - time.monotonic()))
        self._started_s = time.monotonic()
        return [] if self._closing else self._take()

    def _take(self) -> list[Run]:
        """Return the runs of the next transaction; they stay queued until it is committed."""
        size, runs = 0, []
        with self._changed:
            for run in self._runs:
                runs.append(run)
                size += run.size
                if size >= TRANSACTION_BYTES_MAX:
                    break
        return runs

    def _commit(self, runs: Sequence[Run]) -> bool:
        """Commit the records in one transaction; return False if we were closed meanwhile."""
        aborted = 0
        while not self._closing:
            try:
                for output in self._outputs.values():
                    output.begin()
                self._producer.begin_transaction()
                for run in runs:
                    self._produce(run)
                if any(run.topic in self._outputs for run in runs):
                    self._refuse_foreign()
                return self._end_transaction(self._producer.commit_transaction)
            except KafkaException as error:
                aborted += 1
                if not error.args[0].txn_requires_abort() or aborted == ATTEMPTS_MAX:
                    raise
                # By the broker's word nothing of it can be seen, so it may be written again.
                self._end_transaction(self._producer.abort_transaction)
                time.sleep(RETRY_PAUSE_S)
        return False

    def _produce(self, run: Run) -> None:
        """Hand a run to the producer."""
        topic, messages, _ = run
        for each in messages:  # `produce_batch` takes no headers, and no less time
            self._producer.produce(topic, partition=self.partition, **each)

    def _refuse_foreign(self) -> None:
        """Raise ForeignTotals if another application has published since our last record."""
        until_s = time.monotonic() + GIVE_UP_S
        while self._flush() and not self._closing:
            if time.monotonic() > until_s:
                raise StallError(f"results of partition {self.partition} are not acknowledged")
        for output in self._outputs.values():
            if not self._closing and output.has_foreign():
                # What is not aborted now the broker aborts, a minute later.
                with contextlib.suppress(KafkaException):
                    self._producer.abort_transaction(COMMIT_PATIENCE_S)
                raise ForeignTotals(output.topic, self.partition)

    def _flush(self) -> int:
        """Wait for acknowledgements; return how many are still missing."""
        try:
            return self._producer.flush(COMMIT_PATIENCE_S)
        except SystemError as error:
            # A fatal error that is raised in a delivery report comes as its cause.
            if isinstance(error.__cause__, KafkaException):
                raise error.__cause__ from None
            raise

    def _end_transaction(self, end: Callable[[float], None]) -> bool:
        """Commit or abort, and retry until it is done; return False if we were closed meanwhile."""
        until_s = time.monotonic() + GIVE_UP_S
        while not self._closing:
            try:
                end(COMMIT_PATIENCE_S)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > until_s:
                    raise
            else:
                return True
        return False

    def _note_committed(self, runs: Sequence[Run]) -> None:
        for output in self._outputs.values():
            output.note_committed()
        with self._changed:
            for run in runs:
                assert self._runs.popleft() is run
                self._backlog_bytes -= run.size
            self._committed += len(runs)
            self._waiting_since_s = time.monotonic() if self._runs else None
            ready = [waiter for number, waiter in self._waiters if number <= self._committed]
            self._waiters = [each for each in self._waiters if each[0] > self._committed]
        for waiter in ready:
            self._loop.call_soon_threadsafe(_resolve, waiter)

    def _explain(self, error: BaseException) -> BaseException:
        fault = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(fault, KafkaError) and fault.code() in FENCED:
            return FencedError(
                f"partition {self.partition} has been taken over by another worker of this"
                " application id, while this one was frozen or cut off; it stops, nothing is lost."
                " If it happens all the time, two deployments share the application id."
                f" {OWN_APPLICATION_ID}"
            )
        return error


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
