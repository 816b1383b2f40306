"""Kafka as the engine sees it: logs, transactions with their markers, requests that take time.

Only what the engine's promises rest on: append times, offsets (markers take one), producer epochs,
read_committed up to the last stable offset, and that a transaction's end is decided at one moment
and seen in each partition at another. A request reaches the broker some time after it was made,
also if whoever made it is dead by then, and its answer takes time again.
"""

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any, TypeVar

from tests.property.batches import Entry
from tests.sim.faults import Plan
from tests.sim.loop import HOST, Host, SimLoop
from tests.sim.segments import Batch, SegmentLog
from tests.sim.traffic import BASE_MS, GRAIN_MS

T = TypeVar("T")
TRANSACTION_TIMEOUT_S = 60.0
ASK_AGAIN_S = 0.05


class Again(Exception):
    """The broker's word for: not yet, ask again."""


class GaveUp(Exception):
    """The broker has aborted the transaction; its producer may write everything again."""


class Fenced(Exception):
    """A newer producer of the same transactional id is there."""


class Outcome(Enum):
    """What has been decided of a transaction."""

    OPEN = 0
    COMMITTED = 1
    ABORTED = 2


@dataclass(eq=False, slots=True)
class Transaction:
    """One transaction, and the logs that its markers have yet to reach."""

    outcome: Outcome = Outcome.OPEN
    logs: list["TopicLog"] = field(default_factory=list)
    began_s: float = 0.0


class TopicLog:
    """A partition that is written in transactions."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.records: list[tuple[Transaction, bytes, bytes | None] | None] = []
        """None is a marker."""
        self._open: dict[Transaction, int] = {}

    def append(self, transaction: Transaction, key: bytes, value: bytes | None) -> int:
        """Append a record; return its offset."""
        if self not in transaction.logs:
            transaction.logs.append(self)
            self._open[transaction] = len(self.records)
        self.records.append((transaction, key, value))
        return len(self.records) - 1

    def mark(self, transaction: Transaction) -> None:
        """Append the marker of a transaction."""
        self.records.append(None)
        del self._open[transaction]

    def stable_end(self) -> int:
        """Return the offset up to which read_committed reads."""
        return min(self._open.values(), default=len(self.records))

    def committed(self, start: int) -> list[tuple[int, bytes, bytes | None]]:
        """Return what read_committed reads from an offset on."""
        found = []
        for offset, record in enumerate(self.records[start : self.stable_end()], start):
            if record is not None and record[0].outcome is Outcome.COMMITTED:
                found.append((offset, record[1], record[2]))
        return found


class Coordinator:
    """The transactions of one transactional id."""

    def __init__(self, broker: "Broker", partition: int) -> None:
        self._broker = broker
        self.partition = partition
        self.epoch = 0
        self.current: Transaction | None = None
        self._ending: Transaction | None = None

    def init(self) -> int:
        """Return a new epoch, once nothing of an older one is undecided or on its way."""
        if self.current is not None:
            self.epoch += 1
            self._end(Outcome.ABORTED)
        if self._ending is not None:
            raise Again
        self.epoch += 1
        return self.epoch

    def append(self, epoch: int, log: TopicLog, key: bytes, value: bytes | None) -> int:
        """Append a record in the producer's transaction, which begins with its first."""
        self._check(epoch)
        if self._ending is not None:
            raise Again
        if self.current is None:
            self.current = Transaction(began_s=self._broker.loop.time())
        return log.append(self.current, key, value)

    def commit(self, epoch: int) -> None:
        """Decide that the transaction counts; its markers follow."""
        self._check(epoch)
        broker = self._broker
        if broker.dice.random() < broker.gave_up and self.current is not None:
            self._end(Outcome.ABORTED)
            raise GaveUp
        self._end(Outcome.COMMITTED)

    def _check(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced

    def _end(self, outcome: Outcome) -> None:
        transaction, self.current = self.current, None
        if transaction is None:
            return
        transaction.outcome = outcome
        self._ending = transaction
        if outcome is Outcome.COMMITTED:
            self._broker.on_commit(self.partition, transaction)
        for log in list(transaction.logs):
            self._broker.later(self._mark, transaction, log)

    def _mark(self, transaction: Transaction, log: TopicLog) -> None:
        log.mark(transaction)
        transaction.logs.remove(log)
        if not transaction.logs and self._ending is transaction:
            self._ending = None

    def is_quiet(self) -> bool:
        """Tell whether nothing is undecided or on its way."""
        return self.current is None and self._ending is None

    def expire(self) -> None:
        """Abort a transaction that has been open for too long, and fence its producer."""
        now_s = self._broker.loop.time()
        if self.current is not None and now_s > self.current.began_s + TRANSACTION_TIMEOUT_S:
            self.epoch += 1
            self._end(Outcome.ABORTED)


class AckedAppend:
    """A produce request with acks=all: done when all replicas have it, again if it gets lost."""

    def __init__(self, broker: "Broker", partition: int, entry: Entry) -> None:
        self._broker = broker
        self._partition = partition
        self._entry = entry
        self._batch: Batch | None = None

    def __call__(self) -> int:
        """Return the append time."""
        batch = self._batch
        if batch is None or batch.is_lost:
            batch = self._batch = self._broker.append_segments(self._partition, (self._entry,))
        if batch.after > self._broker.segments[self._partition].high_watermark:
            raise Again
        return batch.append_ms


class Broker:
    """All brokers together, and the network before them."""

    def __init__(self, loop: SimLoop, plan: Plan, dice: Random) -> None:
        partitions = range(plan.partitions)
        self.loop = loop
        self.dice = dice
        self.segments = [SegmentLog(each) for each in partitions]
        self.totals = [TopicLog("totals", each) for each in partitions]
        self.orders = [TopicLog("orders", each) for each in partitions]
        self.changelog = [TopicLog("changelog", each) for each in partitions]
        self.coordinators = [Coordinator(self, each) for each in partitions]
        self.letters: list[Entry] = []
        self.appends_on_the_way = 0
        """Copies and clock marks that somebody has sent, dead or alive, and that will be there."""
        self.skew_ms = [0] * plan.partitions
        """Of each partition's append clock."""
        self.stalled_until_s = [0.0] * plan.partitions
        """Until when a follower of each partition lags, in the ISR: nothing new can be seen."""
        self.down_until_s = 0.0
        self.cut_off_until_s: dict[Host, float] = {}
        self.slow = plan.faults.slow
        self.gave_up = plan.faults.gave_up * 0.3
        self.on_commit: Callable[[int, Transaction], None] = lambda partition, transaction: None
        self.on_request: Callable[[Host, str], None] = lambda host, what: None
        self.trace: Callable[[str], None] | None = None
        self._world = Context()

    def append_segments(
        self, partition: int, entries: tuple[Entry, ...], *, is_open: bool = False
    ) -> Batch:
        """Append a batch of segments, with the time of the partition's leader."""
        log = self.segments[partition]
        if self.trace is not None:
            fate = " in a transaction" if is_open else ""
            self.trace(f"segments/{partition}@{log.log_end}: {len(entries)} records{fate}")
        batch = log.append(entries, self._append_ms(partition), is_open=is_open)
        self._replicate_later(log)
        return batch

    def end_transaction(self, partition: int, batch: Batch, *, is_aborted: bool) -> None:
        """End a client's transaction of one batch."""
        log = self.segments[partition]
        if self.trace is not None:
            how = "aborted" if is_aborted else "committed"
            self.trace(f"segments/{partition}@{batch.first} is {how}")
        if not batch.is_lost:
            log.append_marker(batch, self._append_ms(partition), is_aborted=is_aborted)
            self._replicate_later(log)

    def _append_ms(self, partition: int) -> int:
        now_ms = BASE_MS + round(self.loop.time() * 1000) + self.skew_ms[partition]
        return now_ms - now_ms % GRAIN_MS

    def _replicate_later(self, log: SegmentLog) -> None:
        self.later(self._replicate, log, log.log_end)

    def _replicate(self, log: SegmentLog, to: int) -> None:
        wait_s = self.stalled_until_s[log.partition] - self.loop.time()
        if wait_s > 0:
            self.loop.call_later(wait_s, self._replicate, log, to, context=self._world)
        else:
            log.replicate(to)

    def change_leader(self, partition: int, *, keeps: bool) -> list[Batch]:
        """Have another replica lead; return what is lost: nothing that was acknowledged."""
        log = self.segments[partition]
        self.stalled_until_s[partition] = 0.0
        if keeps:
            log.replicate(log.log_end)
            return []
        lost = log.cut_off()
        for batch in lost:
            # A marker is written again by the coordinator, until it has been acknowledged.
            if batch.ends is not None and not batch.ends.is_lost:
                self.end_transaction(partition, batch.ends, is_aborted=batch.ends.is_aborted)
        return [batch for batch in lost if batch.ends is None]

    # -- requests -----------------------------------------------------------------------------

    def latency_s(self) -> float:
        """Draw how long something takes on its way."""
        dice = self.dice
        if dice.random() < self.slow:
            return dice.random() * 3.0
        return dice.random() * 0.03

    def later(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Have the broker do something in a while."""
        self.loop.call_later(self.latency_s(), action, *arguments, context=self._world)

    async def sleep(self, delay_s: float) -> None:
        """Sleep; asyncio's own asks the system for the process's id each time."""
        over = self.loop.create_future()
        self.loop.call_later(delay_s, _settle, over, None, None)
        await over

    def unreachable_s(self, host: Host) -> float:
        """Return for how long no request of a host will arrive."""
        until_s = max(self.down_until_s, self.cut_off_until_s.get(host, 0.0))
        return max(0.0, until_s - self.loop.time())

    async def ask(self, what: str, action: Callable[..., T], *arguments: Any) -> T:
        """Have the broker do something; return its answer, or raise it."""
        host = HOST.get()
        assert host is not None
        self.on_request(host, what)
        self.appends_on_the_way += isinstance(action, AckedAppend)
        answer = self.loop.create_future()
        self.later(self._arrive, what, action, arguments, answer, host, copy_context())
        result: T = await answer
        return result

    def _arrive(
        self,
        what: str,
        action: Callable[..., Any],
        arguments: tuple[Any, ...],
        answer: Any,
        host: Host,
        context: Context,
    ) -> None:
        again = (what, action, arguments, answer, host, context)
        wait_s = self.unreachable_s(host)
        if wait_s > 0:
            delay_s = wait_s + self.latency_s()
            self.loop.call_later(delay_s, self._arrive, *again, context=self._world)
            return
        error: Exception | None = None
        result: Any = None
        try:
            result = action(*arguments)
        except Again:
            self.loop.call_later(ASK_AGAIN_S, self._arrive, *again, context=self._world)
            return
        except (GaveUp, Fenced) as refusal:
            error = refusal
        self.appends_on_the_way -= isinstance(action, AckedAppend)
        if self.trace is not None and what != "fetch":
            self.trace(
                f"  {what} of {host.name}: {error!r}" if error else f"  {what} of {host.name}"
            )
        self.loop.call_later(self.latency_s(), _settle, answer, result, error, context=context)


def _settle(answer: Any, result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
