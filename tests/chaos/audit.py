"""What must be found when the dust has settled, whatever was done to the cluster.

Theory of operation. A total is a function of the log, so the log is read back and everything is
worked out from it by the fleet's own oracle (`fleet.truth`), which shares no code with the
workers. What the topics, the ledger and the checkpoint hold must be that: every field of every
revision, `settled_at_ms` too; nothing else, nothing less, and nothing twice. And what the fleet
meant each order to come to, it must have come to, so nothing that was acknowledged is missing in
the log itself. Hostile orders are judged by the oracle in the same way; nobody meant them.

Works partition by partition, since a log of millions of records is large in Python.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from durabill.producers.fleet.truth import LogRecord, LogTruth, read_log
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import OrderTotal, Reason, decode_total, encode_total
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.kafka.reading import read_topic
from durabill.stream_processors.ledger.lookups import connected, read_totals
from durabill.stream_processors.ledger.lookups import status as ledger_status
from durabill.stream_processors.settings import Settings
from tests.chaos.checkpoint_audit import checkpoint_entries, differences
from tests.chaos.cluster import PARTITIONS
from tests.chaos.hostile import is_hostile
from tests.chaos.latency import Published
from tests.chaos.traffic import Sent

SHOWN_MAX = 8

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
        self.published: list[Published] = []
        """When totals of the fleet's orders had to come, and when they came."""
        self._latest: dict[int, dict[str, OrderTotal]] = {}
        self._clocks_ms: dict[int, int] = {}
        self._expected: dict[Name, bytes] = {}
        self._places: dict[Name, int] = {}
        self._rejected: set[Verdict] = set()
        self._garbage: Counter[tuple[bytes | None, bytes | None]] = Counter()
        self._of_fleet = 0
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
        if self._of_fleet < self._sent.records:
            self.audit.note(
                "acknowledged records that are not in the log",
                [f"{self._of_fleet} of the fleet in the log, {self._sent.records} sent"],
            )
        return len(self._expected)

    def _read_partition(self, partition: int) -> None:
        log = list(self._records(partition))
        truth = read_log(log, self._policy, self._partitions)
        self._expect(partition, truth)
        rejected = {(each.reason.value, partition, each.offset) for each in truth.dead_letters}
        self._rejected |= rejected
        self._sent_on |= truth.sent_on
        self.audit.records += sum(_origin(each) is None for each in log)
        self._copies.update(origin for each in log if (origin := _origin(each)) is not None)
        self._judge_fleet(log, {offset: reason for reason, _, offset in rejected})
        self._clocks_ms[partition] = max((each.append_ms for each in log), default=0)
        self.audit.orders += len(truth.totals)

    def _records(self, partition: int) -> Iterator[LogRecord]:
        topic = self._settings.segments_topic
        for _, offset, message in read_topic(self._kafka, topic, partitions=frozenset({partition})):
            headers: Any = tuple(message.headers() or ())
            append_ms, key, value = message.timestamp()[1], message.key(), message.value()
            yield LogRecord(partition, offset, append_ms, _bytes(key), _bytes(value), headers)

    def _judge_fleet(self, log: list[LogRecord], rejected: dict[int, str]) -> None:
        """Compare what the oracle says of the fleet's records with what the fleet planned."""
        for record in log:
            sent = record.key, record.value
            planned: Reason | None = self._sent.garbage.get(sent)
            if planned is not None:
                self._garbage[sent] += 1
            elif record.key is None or record.key not in self._sent.keys:
                continue  # hostile, or a mark of a worker's
            self._of_fleet += _origin(record) is None
            got = rejected.get(record.offset)
            if got != (None if planned is None else planned.value):
                where = f"{record.partition}/{record.offset}"
                self._wrongly_judged.append(f"{where}: {got}, planned as {planned}")

    def _expect(self, partition: int, truth: LogTruth) -> None:
        """Keep what must be published; it must agree with what the fleet intended."""
        unintended = []
        latest = self._latest[partition] = {}
        for number, own in truth.totals.items():
            latest[number] = own[-1]
            for total in own:
                self._expected[number, total.revision] = encode_total(total)
                self._places[number, total.revision] = partition
            if is_hostile(number.encode()):
                continue
            intended = self._sent.intended.get(number)
            got = [getattr(own[-1], name) for name in intended._fields] if intended else None
            if intended is None or got != list(intended):
                unintended.append(f"{number}: intended {intended}, got {got}")
        revisions = sum(map(len, truth.totals.values()))
        known = sum(place == partition for place in self._places.values())
        assert known == revisions, "an order was forgotten within the run"
        self.audit.note("orders that did not come to what the fleet intended", unintended)

    # -- what was really published ------------------------------------------------------------

    def check_totals(self) -> None:
        """Compare the totals topic: each (order, revision) once, byte for byte, in its place.

        Their bytes are those of the oracle's total, so every field of it is compared.
        """
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
            if not is_hostile(message.key()):
                came_ms = message.timestamp()[1]
                self.published.append(Published(name, total.settled_at_ms, came_ms))
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
        """Compare the checkpointed orders, as a worker would restore them, with the oracle's."""
        entries = checkpoint_entries(self._kafka, self._settings.checkpoint_topic)
        for partition, latest in self._latest.items():
            found = differences(
                self._settings,
                entries,
                (partition, self._partitions),
                latest,
                self._clocks_ms[partition],
                committed.get(partition),
            )
            for what, cases in found.items():
                self.audit.note(f"partition {partition}: {what} in the checkpoint", cases)
            self.audit.checkpointed_orders += len(latest)


def _origin(record: LogRecord) -> bytes | None:
    """Return where a copy that was sent on came from; None for an original, or a forged copy."""
    if is_hostile(record.key):
        return None
    return next((value for name, value in record.headers if name == "forwarded_from"), None)


def _bytes(content: Any) -> bytes | None:
    """Return a key or value as what it is; its type also allows text, which no consumer gives."""
    assert content is None or isinstance(content, bytes)
    return content
