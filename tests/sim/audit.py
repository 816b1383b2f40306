"""The auditor: what a history must have led to, worked out from the log alone.

Truth is `fleet.truth`, which shares no code with the engine. What must hold at every moment is
checked whenever a transaction is committed, an offset moves or a record is appended; the rest when
all is over. Problems are collected as text, in the order in which they were found.
"""

from collections import defaultdict
from random import Random
from typing import Any

import msgspec
import numpy as np

from durabill.producers.fleet import truth, truth_opening, truth_order
from durabill.producers.fleet.truth import LogRecord, LogTruth
from durabill.schemas import OWN_SCHEMA_ONLY, Reason, decode_total, encode_total
from durabill.schemas.errors import DurabillError
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.blocks import decode_block
from durabill.stream_processors.engine.kernel import rows
from durabill.stream_processors.engine.policies import decode_history, split
from durabill.stream_processors.engine.table import Place
from durabill.stream_processors.worker.ports import PublishedOpening
from tests.sim.broker import Broker, TopicLog, Transaction
from tests.sim.drill import PolicyHistory, drill, history_in, policy_at, settle_all, short
from tests.sim.faults import Plan
from tests.sim.ports import openings_in
from tests.sim.tables import PIECES_MAX, empty_table

DRILLS = 0.3
"""Of the transactions with a part of a checkpoint, those from which a recovery is tried."""

META = b"meta"
POLICY = b"policy"
NO_BLOCKS = (META, POLICY, b"schemas")
NEXT_OFFSET, CLOCK, TOTALS_OFFSET, ORDERS_OFFSET = 2, 3, 4, 8
"""Where a checkpoint's meta has these; read apart from the engine's own class of it."""

NEVER_BACK = {
    NEXT_OFFSET: "offset",
    CLOCK: "clock",
    TOTALS_OFFSET: "totals",
    ORDERS_OFFSET: "orders",
}


class Auditor:
    """Watches the brokers of one history."""

    def __init__(self, plan: Plan, broker: Broker) -> None:
        self.problems: list[str] = []
        self._plan = plan
        self._broker = broker
        self._histories: dict[int, PolicyHistory] = {}
        """Partition -> what is recorded of the policies that it was billed by."""
        self._arrival_ms: dict[int, int] = {}
        self._unjudged: dict[int, list[tuple[LogRecord, int]]] = defaultdict(list)
        """Partition -> (record, arrival) that no checkpoint has passed yet."""
        self._letters_due: dict[int, list[int]] = defaultdict(list)
        """Partition -> offsets of records that must become dead letters."""
        self._copies_due: dict[int, list[int]] = defaultdict(list)
        self._letters_seen: set[bytes] = set()
        self._letters_read = 0
        self._copies_seen: set[bytes | None] = set()
        self._metas: dict[int, list[Any]] = {}
        self._dice = Random(plan.seed)
        self._published: set[tuple[bytes, int, int]] = set()
        self._revisions: set[tuple[bytes, int]] = set()
        self._openings: dict[tuple[int, int], PublishedOpening] = {}
        """Partition and offset in the log -> what was published of the opening there."""

    def _blame(self, problem: str) -> None:
        self.problems.append(f"{self._broker.loop.time():.3f} s: {problem}")

    # -- at every moment ----------------------------------------------------------------------

    def on_append(self, record: LogRecord) -> None:
        """Take note of what a segment's record asks for."""
        arrival_ms = max(record.append_ms, self._arrival_ms.get(record.partition, 0))
        self._arrival_ms[record.partition] = arrival_ms
        if not truth.is_clock_mark(record):
            self._unjudged[record.partition].append((record, arrival_ms))

    def policy_of(self, partition: int, offset: int) -> truth_order.Policy:
        """Return the policy that is recorded for a record."""
        return policy_at(self._histories[partition], offset)

    def _judge(self, partition: int, next_offset: int) -> None:
        """Find out which records before an offset ask for a dead letter or a copy."""
        while (waiting := self._unjudged[partition]) and waiting[0][0].offset < next_offset:
            record, arrival_ms = waiting.pop(0)
            policy = self.policy_of(partition, record.offset)
            self._note_judged(record, arrival_ms, policy)

    def _note_judged(self, record: LogRecord, arrival_ms: int, policy: truth_order.Policy) -> None:
        judged: Any
        if truth_opening.claims_to_open(record):
            judged = truth.judge_opening_there(record, arrival_ms, self._plan.partitions)
        else:
            judged = truth.judge(record, arrival_ms, policy, self._plan.partitions)
            if judged is Reason.TOO_LATE and self._plan.opened:
                return  # unless its order was opened: this is seen when all is over
        if judged is Reason.WRONG_PARTITION and truth.may_be_sent_on(record):
            self._copies_due[record.partition].append(record.offset)
        elif isinstance(judged, Reason):
            self._letters_due[record.partition].append(record.offset)

    def on_commit(self, partition: int, transaction: Transaction) -> None:
        """Check what a transaction makes visible, as it is decided."""
        entries, totals = [], []
        for log in transaction.logs:
            for key, value in records_of(log, transaction):
                if log.topic == "totals":
                    totals.append((key, value))
                elif log.topic == "orders":
                    self._on_opening(partition, key, value)
                else:
                    entries.append((key, value))
        for key, value in totals:
            self._on_total(key, value)
        for key, value in entries:
            if key.endswith(POLICY):
                self._on_policy(partition, value or b"[]")
            elif key.endswith(META):
                self._on_meta(partition, msgspec.msgpack.decode(value or b""))
            elif value is not None and not key.endswith(NO_BLOCKS):
                for name, revision in revisions_in(value):
                    if revision and (name, revision) not in self._revisions:
                        self._blame(
                            f"{key!r} holds revision {revision} of {name!r}, not published yet"
                        )
        if entries and self._dice.random() < DRILLS:
            self._drill(partition)

    def _drill(self, partition: int) -> None:
        try:
            found = drill(self._plan, self._broker, partition, self._histories)
        except (DurabillError, AssertionError) as error:
            found = [repr(error)]
        for each in found:
            self._blame(f"a recovery of partition {partition} from here: {each}")

    def _on_total(self, key: bytes, value: bytes | None) -> None:
        total = decode_total(value)
        identity = (key, total.revision, total.source_offset)
        if identity in self._published:
            self._blame(
                f"published twice: {key!r} revision {total.revision} at {total.source_offset}"
            )
        self._published.add(identity)
        self._revisions.add((key, total.revision))

    def _on_opening(self, partition: int, key: bytes, value: bytes | None) -> None:
        (opening,) = openings_in([(0, key, value)])
        if (partition, opening.source_offset) in self._openings:
            self._blame(f"published twice: the opening at {partition}/{opening.source_offset}")
        if any(each[0] == key and each[2] > opening.source_offset for each in self._published):
            self._blame(f"{key!r} was opened at {opening.source_offset}, and had a total before")
        self._openings[partition, opening.source_offset] = opening

    def _on_policy(self, partition: int, value: bytes) -> None:
        """Check that what was recorded stays, and that nothing was judged by another policy."""
        before, now = self._histories.get(partition, []), history_in(value)
        if now[: len(before)] != before:
            now = before
            self._blame(f"the policies of {partition} were {before}, and are {value!r}")
        self._histories[partition] = now
        for from_offset, _ in now[len(before) :]:
            meta = self._metas.get(partition)
            if meta is not None and from_offset < meta[NEXT_OFFSET]:
                self._blame(f"a policy of {partition} holds from {from_offset}, before {meta}")

    def _on_meta(self, partition: int, meta: list[Any]) -> None:
        before = self._metas.get(partition)
        self._metas[partition] = meta
        for at, name in NEVER_BACK.items():
            if before is not None and meta[at] < before[at]:
                self._blame(f"the meta of {partition}: the {name} goes back, {before} to {meta}")
        if meta[NEXT_OFFSET] > self._broker.segments[partition].visible_end:
            self._blame(f"the meta of {partition} is ahead of the log: {meta}")
        if meta[TOTALS_OFFSET] > len(self._broker.totals[partition].records):
            self._blame(f"the meta of {partition} is ahead of the totals: {meta}")
        if meta[ORDERS_OFFSET] > len(self._broker.orders[partition].records):
            self._blame(f"the meta of {partition} is ahead of the orders: {meta}")
        self._judge(partition, meta[NEXT_OFFSET])
        self._read_letters()
        self._find_copies()
        for due, seen, what in (
            (self._letters_due, self._letters_seen, "dead letter"),
            (self._copies_due, self._copies_seen, "copy"),
        ):
            for offset in due[partition]:
                if offset < meta[NEXT_OFFSET] and b"%d/%d" % (partition, offset) not in seen:
                    self._blame(f"the meta passes {partition}/{offset}, whose {what} is not there")

    def _find_copies(self) -> None:
        """See which copies are in the log for good, hidden by a transaction before them or not."""
        for log in self._broker.segments:
            for batch in log.batches:
                if batch.after <= log.high_watermark:
                    of = log.partition, self._plan.partitions
                    self._copies_seen |= {
                        truth.forwarded_from(tuple(each[2]), *of) for each in batch.entries
                    }

    def _read_letters(self) -> None:
        for _, _, headers in self._broker.letters[self._letters_read :]:
            self._letters_seen.add(dict(headers)["source"] or b"")
        self._letters_read = len(self._broker.letters)

    def on_move(self, offsets: dict[int, int]) -> None:
        """Check that the group's offsets follow the meta."""
        for partition, offset in offsets.items():
            meta = self._metas.get(partition)
            if meta is None or offset > meta[NEXT_OFFSET]:
                self._blame(f"partition {partition} is committed at {offset}, its meta: {meta}")

    # -- when all is over ---------------------------------------------------------------------

    def check_end(self, offsets: dict[int, int]) -> None:
        """Check the whole history; all workers have stopped of themselves."""
        records = [record for log in self._broker.segments for record in log.records]
        partitions = self._plan.partitions
        found = truth.read_log(records, self.policy_of, partitions, pieces_max=PIECES_MAX)
        self._check_totals(found)
        self._check_letters(found, {(each.partition, each.offset): each for each in records})
        self._check_openings(found, records)
        if found.sent_on - found.forwarded:
            self._blame(f"never sent on: {sorted(found.sent_on - found.forwarded)}")
        if found.forwarded - found.sent_on:
            self._blame(f"sent on for nothing: {sorted(found.forwarded - found.sent_on)}")
        for log in self._broker.segments:
            if offsets.get(log.partition, 0) != log.log_end:
                at = offsets.get(log.partition)
                self._blame(f"partition {log.partition}: read to {at} of {log.log_end}")
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
                    f"  expected  {short(encoded)}\n  published {short(raw[number])}"
                )

    def _check_openings(self, found: LogTruth, records: list[LogRecord]) -> None:
        expected = {
            (each.partition, each.offset): (each.key, each.value)
            for each in records
            if b"%d/%d" % (each.partition, each.offset) in found.opened
        }
        passed_on = {place: (each.key, each.value) for place, each in self._openings.items()}
        if expected != passed_on:
            self._blame(f"openings: {sorted(expected)} expected, {sorted(passed_on)} passed on")

    def _check_letters(self, found: LogTruth, records: dict[tuple[int, int], LogRecord]) -> None:
        expected = set()
        for letter in found.dead_letters:
            record = records[letter.partition, letter.offset]
            source = b"%d/%d" % (letter.partition, letter.offset)
            ours = (("reason", letter.reason.value.encode()), ("source", source))
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
        blocks = [value for key, value in latest.items() if value and not key.endswith(NO_BLOCKS)]
        policy = self._plan.settings.policy
        history = decode_history(latest[b"%d/" % partition + POLICY])
        clock_ms = self._metas[partition][CLOCK]
        kept = empty_table(self._plan.columns, place, policy, OWN_SCHEMA_ONLY)
        kept.restore(blocks, clock_ms)
        plain = empty_table(False, place, policy, OWN_SCHEMA_ONLY)
        log = self._broker.segments[partition]
        for terms, piece in split(Chunk(0, log.log_end, log.data()), history):
            if terms is not None:
                plain.set_policy(terms.policy)
            plain.fold(piece)
        plain.set_policy(history[-1].terms.policy)
        settle_all(plain)
        names = {each.key.decode("utf-8", "replace") for each in log.records if each.key}
        for name in sorted(names):
            expected, state = plain.describe(name), kept.describe(name)
            if state is None and expected is not None and expected.deadline_ms < clock_ms:
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
