"""The audit in plain SQL of docs/audit.md proves the core's totals, and finds falsified ones."""

import csv
import random
from pathlib import Path

import duckdb
import pytest

from durabill.schemas import OrderTotal, decode_total
from durabill.schemas.codec import SEGMENT_HEADER
from durabill.schemas.wire import zigzag
from durabill.stream_processors.audit.replay import Engine, PartitionTerms, Replay, chunk_of_rows
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.batch import Record
from durabill.stream_processors.engine.table import Place
from tests.unit.archive_kit import NOON_MS, OF, archive, mark
from tests.unit.documents import blocks

FIELDS = [name for name in OrderTotal.__slots__ if name not in ("intervals", "missing_numbers")]
POLICY = Policy()


def value(order: str, number: int, start_ms: int, end_ms: int, is_end: bool) -> bytes:
    """A value that may break the rules."""
    key = order.encode()
    body = zigzag(len(key)) + key + b"".join(map(zigzag, (number, start_ms, end_ms)))
    return SEGMENT_HEADER + body + bytes([is_end])


def random_log(seed: int) -> list[Record]:
    """Orders with overlaps, repeats, gaps, late and illegal records, and at last silence."""
    dice, records, now_ms = random.Random(seed), list[Record](), NOON_MS
    for offset in range(0, 800, 2):
        now_ms += dice.choice([0, 50, 1_000, 20_000, -3_000])
        order = f"SO-{dice.randrange(12)}" if dice.random() < 0.95 else dice.choice(["7", "Ä\x85"])
        start_ms = now_ms - dice.choice([0, 5_000, 5_000, 40_000, 86_500_000, -30_000])
        end_ms = start_ms + dice.choice([0, 1, 1_000, 5_000, 5_000, 90_000, 86_400_001, -5])
        number, is_end = dice.choice([1, 2, 3, 4, 5, 6, 7, 0]), dice.random() < 0.1
        key = order.encode() if dice.random() < 0.97 else b"another"
        content = value(order, number, start_ms, end_ms, is_end)
        if dice.random() < 0.03:
            content = content[:-1]
        records.append(Record(offset, now_ms, key, content, ()))
    end_ms = max(each.append_ms for each in records)
    return [*records, mark(800, end_ms + 10**7), mark(801, end_ms + 2 * 10**7)]


def totals_of(log: list[Record]) -> list[OrderTotal]:
    chunk = chunk_of_rows(log, 0, log[-1].offset + 1)
    replay = Replay(Place(0, 1), PartitionTerms.of_policy(POLICY), Engine.REFERENCE)
    found = [total for step in replay.fold(chunk) for total in step.effects.totals]
    return [decode_total(each.value) for each in found]


def audit(folder: Path, totals: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """Run the document's SQL, and return the rows of its last statement."""
    with (folder / "totals.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(totals)
    ((_, sql),) = [each for each in blocks("docs/audit.md", "sql") if each[0] == "audit"]
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def row(total: OrderTotal) -> dict[str, object]:
    return {name: getattr(total, name) for name in FIELDS}


@pytest.mark.parametrize("seed", range(4))
def test_it_proves_what_the_core_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    of = type(OF)(cluster_id="c", topic="t", topic_id="i", partitions=1, offsets_per_file=300)
    log = random_log(seed)
    archive(tmp_path / "archive", {0: log}, of=of)
    totals = totals_of(log)
    assert len(totals) >= 12
    assert sum(each.duplicates for each in totals) > 50
    assert audit(tmp_path, [row(each) for each in totals]) == []
    falsified = [row(each) for each in totals]
    falsified[3]["duration_ms"] = totals[3].duration_ms + 1
    falsified[5]["segments"] = totals[5].segments + 1
    falsified.append({**row(totals[0]), "service_order_number": "invented"})
    found = audit(tmp_path, falsified)
    wrong = {
        (each["service_order_number"], each["revision"]) for each in (falsified[3], falsified[5])
    }
    assert {each[:2] for each in found} == wrong | {("invented", totals[0].revision)}
    for order, revision, published_ms, proven_ms in found:
        known = [t for t in totals if (t.service_order_number, t.revision) == (order, revision)]
        assert proven_ms == (known[0].duration_ms if known else None)
        assert published_ms is not None
