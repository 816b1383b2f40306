"""What must be found when the dust has settled, whatever was done to the cluster.

Theory of operation. A total is a function of the log, so the log is read back and everything is
worked out from it twice: by the plain `IntervalTable`, the product's specification, which gives the
very bytes that an undisturbed run gives, and by the fleet's own oracle (`producers.truth`), which
shares no code with it. What the topics, the ledger and the checkpoint hold must be that: nothing
else, nothing less, and nothing twice. And what the fleet meant each order to come to, it must have
come to, so nothing that was acknowledged is missing in the log itself.

Works partition by partition, since a log of millions of records is large in Python.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from deploy.commands_read import read_topic
from producers.truth import LogRecord, LogTruth, read_log
from producers.truth_order import Policy
from schemas import OrderTotal, Reason, WriterSchemas, decode_total
from stream_processors.batch import Record
from stream_processors.blocks import decode_block
from stream_processors.checkpoint import META, Origin, entry_key, marks_of, restore_lane
from stream_processors.columns import ColumnTable
from stream_processors.dead_letters import list_dead_letters
from stream_processors.ledger_lookups import connected, read_totals
from stream_processors.ledger_lookups import status as ledger_status
from stream_processors.outlet import Tail
from stream_processors.settings import Settings
from stream_processors.table import Effects, IntervalTable, Place
from tests.chaos.cluster import PARTITIONS
from tests.chaos.traffic import Sent

SHOWN_MAX = 8
_END_OF_TIME_MS = 1 << 60

Name = tuple[str, int]
"""Order number and revision of a total."""

Verdict = tuple[str, int, int]
"""Reason, source partition and source offset of a dead letter."""


@dataclass(slots=True)
class Audit:
    """What was found, in numbers; `violations` is empty where everything was right."""

    records: int = 0
    orders: int = 0
    totals: int = 0
    totals_repeated: int = 0
    dead_letters: int = 0
    dead_letters_repeated: int = 0
    sent_on: int = 0
    sent_on_repeated: int = 0
    ledger_rows: int = 0
    checkpointed_orders: int = 0
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def note(self, what: str, found: Iterable[object]) -> None:
        """Take down a violation: how many cases there are, and the first few of them."""
        cases = [str(each) for each in found]
        if cases:
            shown = [f"  {each[:300]}" for each in cases[:SHOWN_MAX]]
            self.violations.append("\n".join([f"{what}: {len(cases)}", *shown]))


class Replay(IntervalTable):
    """The plain table, fed with records that an ordinary client has read."""

    def take(self, record: Record, effects: Effects) -> None:
        """Take in one record of the log."""
        self.clock_ms = max(self.clock_ms, record.append_ms)
        self._fold_record(record, effects)

    def forwarded(self) -> dict[str, dict[int, int]]:
        """Return what each order with copies that were sent on remembers of them."""
        return {name: order.forwarded for name, order in self._orders.items() if order.forwarded}


class Auditor:
    """Audits one deployment; the steps of `audit` may look at the topics at rest only."""

    def __init__(
        self,
        settings: Settings,
        kafka: dict[str, str],
        sent: Sent,
        partitions: int = PARTITIONS,
    ) -> None:
        self.audit = Audit()
        self._partitions = partitions
        self._settings = settings
        self._kafka = kafka
        self._sent = sent
        policy = settings.policy
        self._policy = Policy(
            settle_grace_ms=policy.settle_grace_ms,
            idle_timeout_ms=policy.idle_timeout_ms,
            correction_window_ms=policy.correction_window_ms,
            interim_interval_ms=policy.interim_interval_ms,
        )
        self._replays: dict[int, Replay] = {}
        self._expected: dict[Name, bytes] = {}
        self._places: dict[Name, int] = {}
        self._rejected: set[Verdict] = set()
        self._garbage: Counter[tuple[bytes | None, bytes | None]] = Counter()
        self._wrongly_judged: list[str] = []
        self._sent_on: set[bytes] = set()
        self._copies: Counter[bytes] = Counter()

    def read_log(self, progress: Callable[[int], None]) -> int:
        """Work out from the log what must be; return how many totals that is."""
        for partition in range(self._partitions):
            progress(partition)
            self._read_partition(partition)
        copied = set(self._copies)
        self.audit.sent_on = len(self._sent_on)
        self.audit.sent_on_repeated = self._copies.total() - len(copied)
        self.audit.note("records in a wrong partition never sent on", self._sent_on - copied)
        self.audit.note("copies of records that needn't be sent on", copied - self._sent_on)
        self.audit.note("records judged otherwise than planned", self._wrongly_judged)
        lost = self._sent.garbage.keys() - self._garbage.keys()
        self.audit.note("acknowledged records that are not in the log", lost)
        if self.audit.records < self._sent.records:
            self.audit.note(
                "acknowledged records that are not in the log",
                [f"{self.audit.records} records in the log, {self._sent.records} sent"],
            )
        return len(self._expected)

    def _read_partition(self, partition: int) -> None:
        replay = Replay(Place(partition, self._partitions), self._settings.policy, WriterSchemas())
        effects = Effects()
        log: list[LogRecord] = []
        for record in self._records(partition):
            log.append(record)
            append_ms, key, value, headers = record[2:]
            replay.take(Record(record.offset, append_ms, key, value, headers), effects)
        clock_ms = replay.clock_ms
        due = replay.tick(_END_OF_TIME_MS)
        replay.clock_ms = clock_ms
        totals = [each.value for each in (*effects.totals, *due.totals)]
        truth = read_log(log, self._policy, self._partitions)
        self._check_oracle(partition, totals, truth)
        rejected = {
            (each.reason.value, partition, each.record.offset) for each in effects.dead_letters
        }
        oracle = {(each.reason.value, each.partition, each.offset) for each in truth.dead_letters}
        self.audit.note("dead letters on which the two oracles differ", rejected ^ oracle)
        self._rejected |= rejected
        self._sent_on |= truth.sent_on
        self.audit.records += sum(_origin(each) is None for each in log)
        self._copies.update(origin for each in log if (origin := _origin(each)) is not None)
        self._note_garbage(log, {offset: reason for reason, _, offset in rejected})
        self._replays[partition] = replay
        self.audit.orders += len(replay)

    def _records(self, partition: int) -> Iterator[LogRecord]:
        topic = self._settings.segments_topic
        for _, offset, message in read_topic(self._kafka, topic, partitions=frozenset({partition})):
            headers: Any = tuple(message.headers() or ())
            append_ms, key, value = message.timestamp()[1], message.key(), message.value()
            yield LogRecord(partition, offset, append_ms, _bytes(key), _bytes(value), headers)

    def _note_garbage(self, log: list[LogRecord], rejected: dict[int, str]) -> None:
        for record in log:
            sent = record.key, record.value
            planned: Reason | None = self._sent.garbage.get(sent)
            if planned is not None:
                self._garbage[sent] += 1
            got = rejected.get(record.offset)
            if got != (None if planned is None else planned.value):
                where = f"{record.partition}/{record.offset}"
                self._wrongly_judged.append(f"{where}: {got}, planned as {planned}")

    def _check_oracle(self, partition: int, totals: list[bytes], truth: LogTruth) -> None:
        """The replay and the fleet's oracle must agree, and with what the fleet intended."""
        replayed = {}
        for value in totals:
            total = decode_total(value)
            replayed[total.service_order_number, total.revision] = total
            self._expected[total.service_order_number, total.revision] = value
            self._places[total.service_order_number, total.revision] = partition
        assert len(replayed) == len(totals), "an order was forgotten within the run"
        judged = {
            (number, each.revision): each for number, own in truth.totals.items() for each in own
        }
        names = sorted(replayed.keys() | judged.keys())
        differing = [name for name in names if replayed.get(name) != judged.get(name)]
        self.audit.note("totals on which replay and oracle differ", differing)
        unintended = []
        for number, own in truth.totals.items():
            intended = self._sent.intended.get(number)
            got = [getattr(own[-1], name) for name in intended._fields] if intended else None
            if intended is None or got != list(intended):
                unintended.append(f"{number}: intended {intended}, got {got}")
        self.audit.note("orders that did not come to what the fleet intended", unintended)

    # -- what was really published ------------------------------------------------------------

    def check_totals(self) -> None:
        """Compare the totals topic: each (order, revision) once, byte for byte, in its place."""
        orders = {number for number, _ in self._expected}
        lost = self._sent.intended.keys() - orders
        self.audit.note("orders of the fleet that have no total at all", lost)
        found: Counter[Name] = Counter()
        wrong, unordered = [], []
        latest: dict[str, int] = {}
        for partition, offset, message in read_topic(self._kafka, self._settings.totals_topic):
            value = _bytes(message.value())
            total = decode_total(value)
            name = total.service_order_number, total.revision
            right = (self._expected.get(name), self._places.get(name), name[0].encode())
            if (value, partition, message.key()) != right:
                wrong.append(f"{partition}/{offset}: {total}")
            if not found[name] and latest.get(name[0], 0) != total.revision - 1:
                unordered.append(f"{partition}/{offset}: {name} after {latest.get(name[0])}")
            latest[name[0]] = max(total.revision, latest.get(name[0], 0))
            found[name] += 1
        self.audit.totals = len(found)
        repeated = [f"{name}: {times} times" for name, times in found.items() if times > 1]
        self.audit.totals_repeated = found.total() - len(found)
        self.audit.note("totals that are wrong or must not be", wrong)
        self.audit.note("totals that are missing", self._expected.keys() - found.keys())
        self.audit.note("totals that a read_committed consumer sees more than once", repeated)
        self.audit.note("revisions out of their order", unordered)

    @property
    def expected(self) -> dict[Name, bytes]:
        """Return the totals that must be, once the log has been read."""
        return self._expected

    def ledger_is_complete(self) -> bool:
        """Tell whether the ledger has as many totals as there must be."""
        return ledger_status(self._settings.ledger_dsn).totals >= len(self._expected)

    def check_ledger(self) -> None:
        """Compare the ledger's rows with the totals that must be; nothing may be set aside."""
        with connected(self._settings.ledger_dsn) as connection:
            rows = read_totals(connection, "", ())
        self.audit.ledger_rows = len(rows)
        kept: dict[Name, OrderTotal] = {(r.service_order_number, r.revision): r for r in rows}
        wrong = [
            name
            for name, row in kept.items()
            if name not in self._expected or decode_total(self._expected[name]) != row
        ]
        self.audit.note("rows of the ledger that are wrong or must not be", wrong)
        self.audit.note("totals that the ledger has not", self._expected.keys() - kept.keys())
        status = ledger_status(self._settings.ledger_dsn)
        self.audit.note("totals set aside by the ledger", [status.set_aside][: status.set_aside])
        self.audit.note("totals unreadable for it", [status.unreadable][: status.unreadable])

    def check_dead_letters(self) -> None:
        """Compare the dead letters by their origin; there may be repeats, of the same verdict."""
        found: Counter[Verdict] = Counter()
        strange = []
        for letter in list_dead_letters(
            self._kafka, self._settings.dead_letters_topic, repeats=True
        ):
            if letter.origin is None or letter.origin[0] != self._settings.segments_topic:
                strange.append(f"{letter.partition}/{letter.offset}: {letter.reason}")
                continue
            found[letter.reason, letter.origin[1], letter.origin[2]] += 1
        self.audit.dead_letters = len(found)
        self.audit.dead_letters_repeated = found.total() - len(found)
        self.audit.note("dead letters without an origin", strange)
        self.audit.note("dead letters that are missing", self._rejected - found.keys())
        self.audit.note("dead letters that must not be", found.keys() - self._rejected)

    def check_checkpoint(self, committed: dict[int, int]) -> None:
        """Compare the checkpointed table, as a worker would restore it, with the replayed one."""
        entries = self._entries()
        origin = Origin(self._settings.segments_topic, "", self._partitions)
        for partition, replay in self._replays.items():
            table = ColumnTable(replay.place, self._settings.policy, WriterSchemas())
            marks = marks_of(entries, partition, origin, committed.get(partition))
            if marks is None or marks.next_offset != committed.get(partition):
                place = f"{marks}, committed {committed.get(partition)}"
                self.audit.note(f"partition {partition}: the checkpoint's marks", [place])
                continue
            # At rest nothing has been said since the checkpoint, so there is no tail to it.
            nothing = Tail([], marks.totals_offset or 0)
            restore_lane(table, entries, origin, marks, first_offset=0, tail=nothing)
            names = {number for number, _ in self._expected if replay.describe(number)}
            assert len(names) == len(replay), "every order has a total by now"
            different = [
                f"{name}: {table.describe(name)}, must be {replay.describe(name)}"
                for name in sorted(names)
                if table.describe(name) != replay.describe(name)
            ]
            self.audit.note(f"partition {partition}: orders wrong in the checkpoint", different)
            if len(table) != len(replay):
                counts = f"{len(table)}, must be {len(replay)}"
                self.audit.note(f"partition {partition}: orders in the checkpoint", [counts])
            clocks = f"{table.clock_ms}, must be {replay.clock_ms}"
            if table.clock_ms < replay.clock_ms:
                self.audit.note(f"partition {partition}: the checkpoint's clock", [clocks])
            kept = _forwarded(entries, partition)
            if kept != replay.forwarded():
                self.audit.note(f"partition {partition}: copies remembered", [kept])
            self.audit.checkpointed_orders += len(table)

    def _entries(self) -> dict[bytes, bytes]:
        """Return the changelog's entries, the last of each key, as read_committed."""
        entries: dict[bytes, bytes] = {}
        for _, _, message in read_topic(self._kafka, self._settings.checkpoint_topic):
            key, value = _bytes(message.key()), _bytes(message.value())
            assert key is not None
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = value
        return entries


def _forwarded(entries: dict[bytes, bytes], partition: int) -> dict[str, dict[int, int]]:
    """Return what the checkpoint's orders with copies that were sent on remember of them."""
    own = entry_key(partition, "")
    marks = entry_key(partition, META)
    return {
        order.service_order_number: order.forwarded
        for key, block in entries.items()
        if key.startswith(own) and key != marks
        for _, order in decode_block(block).orders
        if order.forwarded
    }


def _origin(record: LogRecord) -> bytes | None:
    """Return where a copy that was sent on came from, None for an original."""
    return next((value for name, value in record.headers if name == "forwarded_from"), None)


def _bytes(content: Any) -> bytes | None:
    """Return a key or value as what it is; its type also allows text, which no consumer gives."""
    assert content is None or isinstance(content, bytes)
    return content
