"""The auditor: what a history must have led to, worked out from the log alone.

Truth is `producers.truth`, which shares no code with the engine. What must hold at every moment is
checked whenever a transaction is committed, an offset moves or a record is appended; the rest when
all is over. Problems are collected as text, in the order in which they were found.
"""

from collections import defaultdict
from random import Random
from typing import Any

import msgspec
import numpy as np

from producers import truth, truth_order
from producers.truth import LogRecord, LogTruth
from schemas import OWN_SCHEMA_ONLY, Reason, decode_total, encode_total
from stream_processors.batch import Chunk
from stream_processors.blocks import decode_block
from stream_processors.errors import DurabillError
from stream_processors.kernel import rows
from stream_processors.table import Place
from tests.sim.broker import Broker, TopicLog, Transaction
from tests.sim.drill import drill, settle_all, short
from tests.sim.faults import Plan
from tests.sim.tables import PIECES_MAX, empty_table

DRILLS = 0.3
"""Of the transactions with a part of a checkpoint, those from which a recovery is tried."""

META = b"meta"
NEXT_OFFSET, CLOCK, TOTALS_OFFSET = 2, 3, 4
"""Where a checkpoint's marks have these; read apart from the engine's own class of them."""


class Auditor:
    """Watches the brokers of one history."""

    def __init__(self, plan: Plan, broker: Broker) -> None:
        self.problems: list[str] = []
        policy = plan.settings.policy
        self._plan = plan
        self._broker = broker
        self._policy = truth_order.Policy(
            settle_grace_ms=policy.settle_grace_ms,
            idle_timeout_ms=policy.idle_timeout_ms,
            correction_window_ms=policy.correction_window_ms,
            interim_interval_ms=policy.interim_interval_ms,
        )
        self._arrival_ms: dict[int, int] = {}
        self._letters_due: dict[int, list[int]] = defaultdict(list)
        """Partition -> offsets of records that must become dead letters."""
        self._copies_due: dict[int, list[int]] = defaultdict(list)
        self._letters_seen: set[bytes] = set()
        self._letters_read = 0
        self._copies_seen: set[bytes | None] = set()
        self._marks: dict[int, list[Any]] = {}
        self._dice = Random(plan.seed)
        self._said: set[tuple[bytes, int, int]] = set()
        self._revisions: set[tuple[bytes, int]] = set()

    def _blame(self, problem: str) -> None:
        self.problems.append(f"{self._broker.loop.time():.3f} s: {problem}")

    # -- at every moment ----------------------------------------------------------------------

    def on_append(self, record: LogRecord) -> None:
        """Take note of what a segment's record asks for."""
        arrival_ms = max(record.append_ms, self._arrival_ms.get(record.partition, 0))
        self._arrival_ms[record.partition] = arrival_ms
        judged = truth.judge(record, arrival_ms, self._policy, self._plan.partitions)
        origin = truth.forwarded_from(record.headers, record.partition, self._plan.partitions)
        self._copies_seen.add(origin)
        if judged is Reason.WRONG_PARTITION and truth.may_be_sent_on(record):
            self._copies_due[record.partition].append(record.offset)
        elif isinstance(judged, Reason):
            self._letters_due[record.partition].append(record.offset)

    def on_commit(self, partition: int, transaction: Transaction) -> None:
        """Check what a transaction makes visible, as it is decided."""
        entries = []
        for log in transaction.logs:
            for key, value in records_of(log, transaction):
                if log.topic == "totals":
                    self._on_total(key, value)
                else:
                    entries.append((key, value))
        for key, value in entries:
            if key.endswith(META):
                self._on_marks(partition, msgspec.msgpack.decode(value or b""))
            elif value is not None:
                for name, revision in revisions_in(value):
                    if revision and (name, revision) not in self._revisions:
                        self._blame(f"{key!r} holds revision {revision} of {name!r}, not said yet")
        if entries and self._dice.random() < DRILLS:
            self._drill(partition)

    def _drill(self, partition: int) -> None:
        try:
            found = drill(self._plan, self._broker, partition, self._policy)
        except (DurabillError, AssertionError) as error:
            found = [repr(error)]
        for each in found:
            self._blame(f"a recovery of partition {partition} from here: {each}")

    def _on_total(self, key: bytes, value: bytes | None) -> None:
        total = decode_total(value)
        identity = (key, total.revision, total.source_offset)
        if identity in self._said:
            self._blame(f"said twice: {key!r} revision {total.revision} at {total.source_offset}")
        self._said.add(identity)
        self._revisions.add((key, total.revision))

    def _on_marks(self, partition: int, marks: list[Any]) -> None:
        before = self._marks.get(partition)
        self._marks[partition] = marks
        for at, name in ((NEXT_OFFSET, "offset"), (CLOCK, "clock"), (TOTALS_OFFSET, "totals")):
            if before is not None and marks[at] < before[at]:
                self._blame(f"marks of {partition}: the {name} goes back, {before} to {marks}")
        if marks[NEXT_OFFSET] > self._broker.segments[partition].next_offset:
            self._blame(f"marks of {partition} lead the log: {marks}")
        if marks[TOTALS_OFFSET] > len(self._broker.totals[partition].records):
            self._blame(f"marks of {partition} lead the totals: {marks}")
        self._read_letters()
        for due, seen, what in (
            (self._letters_due, self._letters_seen, "dead letter"),
            (self._copies_due, self._copies_seen, "copy"),
        ):
            for offset in due[partition]:
                if offset < marks[NEXT_OFFSET] and b"%d/%d" % (partition, offset) not in seen:
                    self._blame(f"marks pass {partition}/{offset}, whose {what} is not there")

    def _read_letters(self) -> None:
        for _, _, headers in self._broker.letters[self._letters_read :]:
            self._letters_seen.add(dict(headers)["origin"] or b"")
        self._letters_read = len(self._broker.letters)

    def on_move(self, offsets: dict[int, int]) -> None:
        """Check that the group's offsets follow the marks."""
        for partition, offset in offsets.items():
            marks = self._marks.get(partition)
            if marks is None or offset > marks[NEXT_OFFSET]:
                self._blame(f"partition {partition} is committed at {offset}, its marks: {marks}")

    # -- when all is over ---------------------------------------------------------------------

    def check_end(self, offsets: dict[int, int]) -> None:
        """Check the whole history; all workers have stopped of themselves."""
        records = [record for log in self._broker.segments for record in log.records]
        partitions = self._plan.partitions
        found = truth.read_log(records, self._policy, partitions, pieces_max=PIECES_MAX)
        self._check_totals(found)
        self._check_letters(found, {(each.partition, each.offset): each for each in records})
        if found.sent_on - found.forwarded:
            self._blame(f"never sent on: {sorted(found.sent_on - found.forwarded)}")
        if found.forwarded - found.sent_on:
            self._blame(f"sent on for nothing: {sorted(found.forwarded - found.sent_on)}")
        for log in self._broker.segments:
            if offsets.get(log.partition, 0) != log.next_offset:
                at = offsets.get(log.partition)
                self._blame(f"partition {log.partition}: read to {at} of {log.next_offset}")
            else:
                self._check_checkpoint(log.partition)

    def _check_totals(self, found: LogTruth) -> None:
        raw: dict[str, list[bytes | None]] = defaultdict(list)
        for log in self._broker.totals:
            for _, key, value in log.committed(0):
                total = decode_total(value)
                raw[key.decode()].append(value)
                if total.source_partition != log.partition:
                    self._blame(f"{key!r} is in totals/{log.partition}")
        for number in sorted(found.totals.keys() | raw.keys()):
            expected = found.totals.get(number, [])
            encoded = [encode_total(each) for each in expected]
            if encoded != raw[number]:
                self._blame(
                    f"totals of {number}:\n"
                    f"  expected {short(encoded)}\n  said     {short(raw[number])}"
                )

    def _check_letters(self, found: LogTruth, records: dict[tuple[int, int], LogRecord]) -> None:
        expected = set()
        for letter in found.dead_letters:
            record = records[letter.partition, letter.offset]
            origin = b"%d/%d" % (letter.partition, letter.offset)
            ours = (("reason", letter.reason.value.encode()), ("origin", origin))
            expected.add((record.key, record.value, (*record.headers, *ours)))
        letters = {(key, value, tuple(headers)) for key, value, headers in self._broker.letters}
        if letters - expected:
            self._blame(f"wrong dead letters: {letters - expected}")
        if expected - letters:
            self._blame(f"missing dead letters: {expected - letters}")

    def _check_checkpoint(self, partition: int) -> None:
        """Compare the checkpoint with a plain table that has read the log in one go."""
        place = Place(partition, self._plan.partitions)
        latest = {key: value for _, key, value in self._broker.changelog[partition].committed(0)}
        blocks = [value for key, value in latest.items() if value and not key.endswith(META)]
        policy = self._plan.settings.policy
        clock_ms = self._marks[partition][CLOCK]
        kept = empty_table(self._plan.columns, place, policy, OWN_SCHEMA_ONLY)
        kept.restore(blocks, clock_ms)
        plain = empty_table(False, place, policy, OWN_SCHEMA_ONLY)
        log = self._broker.segments[partition]
        plain.fold(Chunk(0, log.next_offset, b"".join(data for _, _, data in log.batches)))
        settle_all(plain)
        names = {each.key.decode("utf-8", "replace") for each in log.records if each.key}
        for name in sorted(names):
            expected, state = plain.describe(name), kept.describe(name)
            if state is None and expected is not None and expected["deadline_ms"] < clock_ms:
                continue  # forgotten, and its slot given back
            if state != expected:
                self._blame(f"checkpoint of {name}:\n  expected {expected}\n  found    {state}")


def records_of(log: TopicLog, transaction: Transaction) -> list[tuple[bytes, bytes | None]]:
    """Return what a transaction has written to a log."""
    return [each[1:] for each in log.records if each is not None and each[0] is transaction]


def revisions_in(block: bytes) -> list[tuple[bytes, int]]:
    """Return (order number, revision) of the orders in a checkpoint's block."""
    content = decode_block(block)
    found = [(each.service_order_number.encode(), each.revision) for _, each in content.orders]
    for row in np.frombuffer(content.rows, rows.ORDER):
        words = b"".join(row[f"k{at}"].tobytes() for at in range(rows.KEY_BYTES_MAX // 8))
        found.append((words[: int(row["key_size"])], int(row["revision"])))
    return found
