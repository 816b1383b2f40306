"""Writes the ledger's rows and offsets in one transaction, under a fence.

Theory of operation. A batch of the totals or of the orders topic becomes one transaction:

1. the batch's offset rows are locked and compared with where the batch starts (the fence: of two
   ledgers that both believe they own a partition, the second finds that it is behind);
2. totals are inserted, ON CONFLICT DO NOTHING, so a recorded revision is never written over;
3. what met a recorded revision is compared with it: an equal one is a repeat and leaves no trace,
   a different one is set aside; openings are inserted and compared likewise (`openings`);
4. what is no total or opening is kept as it came;
5. the offset rows move, and the transaction commits.

So a crash anywhere leaves all of a batch or nothing of it, and reading a stretch again changes
nothing. Inserts go through unnest of one array a column, for small and for large batches alike: one
statement, no temporary table, and catching up takes the same path as keeping up.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from durabill.schemas import encode_total
from durabill.stream_processors.ledger.lookups import TOTAL_FIELDS, Connection, read_totals
from durabill.stream_processors.ledger.openings import RecordedOpening, insert_openings
from durabill.stream_processors.ledger.records import (
    AGAINST_RULES,
    Fenced,
    Key,
    LedgerError,
    RecordedTotal,
    TopicReplaced,
    UnreadableRecord,
)

_JSON_FIELDS = ("intervals", "missing_numbers")
_SQL_TYPES = {
    "service_order_number": "text",
    "revision": "int",
    "status": "text",
    "intervals": "text",
    "missing_numbers": "text",
    "digest": "text",
    "previous_digest": "text",
    "source_partition": "int",
    "totals_topic": "text",
    "totals_partition": "int",
}
_PLACE_FIELDS = ("totals_topic", "totals_partition", "totals_offset", "totals_append_ms")
_WRITTEN_FIELDS = tuple(name for name in TOTAL_FIELDS if name != "gap_ms")
"""The tables work out the gap from the others, also of totals that were written without it."""

_COLUMNS = (*_WRITTEN_FIELDS, *_PLACE_FIELDS)
_SELECTED = ", ".join(f"{name}::jsonb" if name in _JSON_FIELDS else name for name in _COLUMNS)
_ARRAYS = ", ".join(f"%s::{_SQL_TYPES.get(name, 'bigint')}[]" for name in _COLUMNS)

_INSERT_TOTALS = f"""
    INSERT INTO order_totals ({", ".join(_COLUMNS)})
    SELECT {_SELECTED} FROM unnest({_ARRAYS}) AS batch ({", ".join(_COLUMNS)})
    ON CONFLICT (service_order_number, revision) DO NOTHING
    RETURNING service_order_number, revision
"""
_INSERT_SET_ASIDE = f"""
    INSERT INTO set_aside_totals ({", ".join(_COLUMNS)}, content_sha256)
    VALUES ({", ".join(["%s"] * (len(_COLUMNS) + 1))}) ON CONFLICT DO NOTHING
"""
_INSERT_UNREADABLE = """
    INSERT INTO unreadable_totals (totals_topic, totals_partition, totals_offset, totals_append_ms,
                                   key, value, reason, detail, content_sha256)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_MOVE_OFFSET = """
    UPDATE ledger_offsets SET next_offset = %s, updated_at = now()
    WHERE topic = %s AND partition = %s AND next_offset = %s
"""


@dataclass(frozen=True)
class Batch:
    """What one transaction writes.

    `moves` maps a partition to (the offset the batch starts from, the next one to read). `totals`
    are in the order of their offsets in each partition: of two that differ the first stands.
    """

    topic: str
    moves: Mapping[int, tuple[int, int]]
    totals: Sequence[RecordedTotal]
    unreadable: Sequence[UnreadableRecord] = ()
    openings: Sequence[RecordedOpening] = ()


@dataclass(frozen=True)
class Written:
    """What a batch has changed. `repeated` left no trace; `set_aside`, `unreadable`: new ones."""

    recorded: int
    repeated: int
    set_aside: tuple[RecordedTotal, ...]
    unreadable: tuple[UnreadableRecord, ...]
    opened: int = 0
    """How many openings are new; those that are not count as repeated."""


class LedgerStore:
    """Writes batches over one connection, which it owns and sets up."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        conn.autocommit = True  # transactions are opened explicitly
        # A ledger that is stopped in mid-transaction must not hold the fence against its successor,
        # and every wait must end well before the consumer group gives the member up.
        conn.execute("SET idle_in_transaction_session_timeout = '20s'")
        conn.execute("SET lock_timeout = '10s'")
        conn.execute("SET statement_timeout = '60s'")
        # The fence and step 3 read what another ledger has committed while this one waited.
        conn.execute("SET default_transaction_isolation = 'read committed'")
        ready = conn.execute("SELECT to_regclass('ledger_offsets') IS NOT NULL").fetchone()
        if ready != (True,):
            raise LedgerError("the ledger's tables are missing: apply deploy/migrations first")

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back by the server."""
        self._conn.close()

    def open_partitions(
        self, topic: str, topic_id: str | None, starts: Mapping[int, int]
    ) -> dict[int, int]:
        """Return the next offset of each partition in `starts`.

        A partition that the ledger has never seen starts at the log's first offset, which is
        recorded. Raises TopicReplaced when the stored offsets belong to another topic of that name.
        """
        offsets: dict[int, int] = {}
        with self._conn.transaction():
            for partition, start in sorted(starts.items()):
                self._conn.execute(
                    "INSERT INTO ledger_offsets (topic, partition, next_offset, topic_id) "
                    "VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (topic, partition, start, topic_id),
                )
                row = self._conn.execute(
                    "SELECT next_offset, topic_id FROM ledger_offsets "
                    "WHERE topic = %s AND partition = %s FOR UPDATE",
                    (topic, partition),
                ).fetchone()
                if row is None:
                    raise Fenced(f"the offset of {topic}/{partition} was removed at this moment")
                offsets[partition], stored_id = row
                if topic_id is not None and stored_id not in (None, topic_id):
                    raise TopicReplaced(_replaced(topic, stored_id, topic_id))
        return offsets

    def write(self, batch: Batch) -> Written:
        """Write a batch wholly or not at all; raise Fenced where the offsets are elsewhere."""
        with self._conn.transaction():
            self._lock_offsets(batch)
            recorded, candidates, refused = self._insert_totals(batch.topic, batch.totals)
            repeated, set_aside, misfits = self._set_aside(batch.topic, candidates)
            opened = 0
            if batch.openings:
                opened, again, odd = insert_openings(self._conn, batch.topic, batch.openings)
                repeated, misfits = repeated + again, [*misfits, *odd]
            unreadable = self._keep_unreadable(batch.topic, [*batch.unreadable, *refused, *misfits])
            self._move_offsets(batch)
        return Written(recorded, repeated, tuple(set_aside), tuple(unreadable), opened)

    def _lock_offsets(self, batch: Batch) -> None:
        """Step 1: lock, in the order of partitions, so that no two ledgers await each other."""
        rows = self._conn.execute(
            "SELECT partition, next_offset FROM ledger_offsets "
            "WHERE topic = %s AND partition = ANY(%s) ORDER BY partition FOR UPDATE",
            (batch.topic, sorted(batch.moves)),
        ).fetchall()
        found: dict[int, int] = dict(rows)
        for partition, (expected, _) in batch.moves.items():
            if found.get(partition) != expected:
                raise Fenced(
                    f"{batch.topic}/{partition}: this ledger is at offset {expected}, "
                    f"the database at {found.get(partition)}"
                )

    def _insert_totals(
        self, topic: str, totals: Sequence[RecordedTotal]
    ) -> tuple[int, list[RecordedTotal], list[UnreadableRecord]]:
        """Step 2: insert. Return how many are new, those to compare, and the refused.

        One row a key in a statement: the first of a key is inserted, the others are compared. Where
        the tables refuse the first, the next of its key gets its turn.
        """
        recorded, compare, refused = 0, list[RecordedTotal](), list[UnreadableRecord]()
        waiting = list(totals)
        while waiting:
            firsts: dict[Key, RecordedTotal] = {}
            others = []
            for each in waiting:
                if firsts.setdefault(each.key, each) is not each:
                    others.append(each)
            new, turned_down = self._insert_distinct(topic, [firsts[key] for key in sorted(firsts)])
            recorded += len(new)
            refused += turned_down
            without_row = {id(each.record) for each in turned_down}
            failed = {key for key, each in firsts.items() if id(each.record) in without_row}
            settled = new | failed
            compare += [each for key, each in firsts.items() if key not in settled]
            compare += [each for each in others if each.key not in failed]
            waiting = [each for each in others if each.key in failed]
        return recorded, compare, refused

    def _insert_distinct(
        self, topic: str, totals: Sequence[RecordedTotal]
    ) -> tuple[set[Key], list[UnreadableRecord]]:
        """Insert totals of distinct keys; halve a batch that is refused, to find the bad."""
        if not totals:
            return set(), []
        columns = zip(_COLUMNS, *(_row(topic, each) for each in totals), strict=True)
        arrays = [
            array_literal(values, quoted=_SQL_TYPES.get(name) == "text")
            for name, *values in columns
        ]
        try:
            with self._conn.transaction():  # a savepoint
                rows = self._conn.execute(_INSERT_TOTALS, arrays).fetchall()
                return {(number, revision) for number, revision in rows}, []
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(totals) == 1:
                return set(), [UnreadableRecord(totals[0].record, AGAINST_RULES, str(error))]
        middle = len(totals) // 2
        new_left, refused_left = self._insert_distinct(topic, totals[:middle])
        new_right, refused_right = self._insert_distinct(topic, totals[middle:])
        return new_left | new_right, refused_left + refused_right

    def _set_aside(
        self, topic: str, candidates: Sequence[RecordedTotal]
    ) -> tuple[int, list[RecordedTotal], list[UnreadableRecord]]:
        """Step 3: compare. Return how many are repeats, what is newly set aside, the refused."""
        keys = sorted({each.key for each in candidates})
        stands = {
            (total.service_order_number, total.revision): total
            for total in read_totals(
                self._conn,
                "WHERE (service_order_number, revision) IN "
                "(SELECT * FROM unnest(%s::text[], %s::int[]))",
                ([number for number, _ in keys], [revision for _, revision in keys]),
            )
        }
        different = [each for each in candidates if stands[each.key] != each.total]
        set_aside, refused = [], []
        for each in different:
            sha256 = hashlib.sha256(encode_total(each.total)).digest()
            try:
                with self._conn.transaction():  # a savepoint
                    row = (*_row(topic, each), sha256)
                    if self._conn.execute(_INSERT_SET_ASIDE, row).rowcount:
                        set_aside.append(each)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                refused.append(UnreadableRecord(each.record, AGAINST_RULES, str(error)))
        return len(candidates) - len(different), set_aside, refused

    def _keep_unreadable(
        self, topic: str, unreadable: Iterable[UnreadableRecord]
    ) -> list[UnreadableRecord]:
        """Step 4: keep what is no total. Return what was not kept already."""
        new = []
        for each in unreadable:
            record = each.record
            content = repr((record.key, record.value)).encode()
            place = (topic, record.partition, record.offset, record.append_ms)
            detail = each.detail.replace("\0", "?").encode(errors="replace").decode()
            row = (*place, record.key, record.value, each.reason, detail)
            sha256 = hashlib.sha256(content).digest()
            if self._conn.execute(_INSERT_UNREADABLE, (*row, sha256)).rowcount:
                new.append(each)
        return new

    def _move_offsets(self, batch: Batch) -> None:
        """Step 5: move the offsets, before the commit."""
        for partition, (expected, following) in sorted(batch.moves.items()):
            moved = self._conn.execute(
                _MOVE_OFFSET, (following, batch.topic, partition, expected)
            ).rowcount
            assert moved == 1, "the offset row was locked in step 1"


def array_literal(values: Sequence[object], *, quoted: bool) -> str:
    """Return PostgreSQL's literal of a non-empty array; `quoted` where the elements are text.

    Several times as fast as handing psycopg a list, which would take much of a batch's time.
    """
    if quoted:
        texts = (str(each).replace("\\", "\\\\").replace('"', '\\"') for each in values)
        return '{"' + '","'.join(texts) + '"}'
    return "{" + ",".join("NULL" if each is None else str(each) for each in values) + "}"


def _row(topic: str, recorded: RecordedTotal) -> tuple[object, ...]:
    """Return the values of `_COLUMNS`."""
    total, record = recorded.total, recorded.record
    values: dict[str, Any] = {name: getattr(total, name) for name in _WRITTEN_FIELDS}
    values["status"] = total.status.value
    for name in _JSON_FIELDS:
        values[name] = json.dumps([each._asdict() for each in values[name]])
    return (*values.values(), topic, record.partition, record.offset, record.append_ms)


def _replaced(topic: str, stored_id: str, topic_id: str) -> str:
    return (
        f"topic {topic} is not the one the ledger has read: its id is {topic_id}, the ledger "
        f"knows {stored_id}. Either point the ledger at the right cluster, or, if the topic was "
        f"recreated on purpose, let it be read from the start: DELETE FROM ledger_offsets WHERE "
        f"topic = '{topic}'; what is recorded stays and repeats change nothing."
    )
