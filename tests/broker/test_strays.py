"""What others write among the results, or give headers that are no text: no process stops.

Workers alone should have the right to write there. Who has it all the same is told of, and costs
neither an opening nor a total.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import psycopg
import pytest

from durabill.deploy.commands.fleet import in_topic
from durabill.deploy.commands.leakage import _openings
from durabill.deploy.commands.order_log import read_story
from durabill.schemas import decode_total
from durabill.schemas.errors import BadTotal
from durabill.schemas.headers import SOURCE_OFFSET
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.rebuild_checkpoint import rebuild_checkpoint
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.dead_letters.review import review
from tests.broker import raw_kit
from tests.broker.audit_kit import Record, audited, settings_of, write
from tests.broker.ledger_kit import RunningLedger, new_ledger_dsn, running_ledger
from tests.broker.opening_kit import opening
from tests.broker.test_bad_input import record_with
from tests.broker.traffic_kit import Pair, now_ms, segment
from tests.broker.worker_kit import Deployment, deployment, read_committed
from tests.waiting import wait_until

PARTITIONS = 2
NO_TEXT = b"\xff\xfe"


@pytest.fixture
def deployed(bootstrap_servers: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(bootstrap_servers, tmp_path, partitions=PARTITIONS) as made:
        yield made


def orders(*names: str) -> list[Pair]:
    """An opening and the one segment of each."""
    at_ms = now_ms() - 10_000
    found = ([opening(name), segment(name, 1, at_ms, at_ms + 9, True)] for name in names)
    return [pair for pairs in found for pair in pairs]


def strays() -> list[Record]:
    """What is no result, in each partition."""
    key, value = segment("SO-0", 1, 1, 2)
    pairs = [(None, None), (key, None), (None, value), (key, value), (b"\xff", b"junk"), (b"", b"")]
    pairs += [opening("SO-0")]
    sound = [(SOURCE_OFFSET, b"0")]
    found: list[Record] = []
    for partition in range(PARTITIONS):
        found += [(partition, *pair, []) for pair in pairs]
        found += [(partition, key, b"junk", [*sound]), (partition, None, b"junk", [*sound])]
        for text in (b"", b"-1", b"x", b"9" * 40):
            found.append((partition, *opening("SO-0"), [(SOURCE_OFFSET, text)]))
    return found


def spoil(deployed: Deployment) -> None:
    """Writes them to the results, and to all topics a record whose header's name is no text."""
    for topic in (deployed.totals, deployed.orders):
        write(deployed.kafka, topic, strays())
    for topic in (deployed.totals, deployed.orders, deployed.dead_letters, deployed.segments):
        data = raw_kit.batch([record_with(0, b"SO-0", b"v", NO_TEXT)])
        for partition in range(PARTITIONS):
            assert raw_kit.append(deployed.bootstrap_servers, topic, partition, data) == 0


def settled(deployed: Deployment) -> set[str]:
    found = set()
    for message in read_committed(deployed.bootstrap_servers, deployed.totals):
        try:
            found.add(decode_total(message.value()).service_order_number)
        except BadTotal:
            continue
    return found


def test_nobody_stops_and_nothing_is_lost(deployed: Deployment, postgres_dsn: str) -> None:
    dsn = new_ledger_dsn(postgres_dsn)
    ledger = RunningLedger(
        *(deployed.kafka, deployed.totals, dsn, f"{deployed.name}-ledger", 100),
        orders_topic=deployed.orders,
    )
    names = [f"SO-{at}" for at in range(8)]
    worker = deployed.start_and_wait()
    with running_ledger(deployed.kafka, deployed.totals, dsn, ledger=ledger):
        deployed.send(orders(*names[:4]))
        wait_until(lambda: settled(deployed) == {*names[:4]}, "the first are settled")
        spoil(deployed)
        deployed.send(orders(*names[4:6]))
        wait_until(lambda: settled(deployed) == {*names[:6]}, "a running worker goes on")
        told = worker.get("/status")[1]["partitions"]
        assert sum(each["strays"] for each in told.values()) > 0
        worker.kill()
        assert "records that are no worker's" in worker.log()
        spoil(deployed)
        worker = deployed.start_and_wait()
        deployed.send(orders(*names[6:]))
        wait_until(lambda: settled(deployed) == {*names}, "so does one that starts")
        assert worker.stop() == 0
        wait_until(lambda: ledger.stats.opened == len(names), "the ledger goes on")
        wait_until(lambda: ledger.stats.recorded == len(names), "the ledger goes on")
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM orders").fetchone() == (len(names),)
    result = audited(settings_of(deployed, ledger_dsn=dsn))
    assert (result.proven, result.openings_proven) == (len(names), len(names))
    assert {each.kind for each in result.findings} <= {
        *(Kind.TOTAL_WITHOUT_EVIDENCE, Kind.OPENING_WITHOUT_EVIDENCE),
        *(Kind.OPENED_TWICE, Kind.DEAD_LETTER_UNJUSTIFIED),
    }
    letters = list_dead_letters(deployed.kafka, deployed.dead_letters)
    assert {each.reason for each in letters} == {"", "NOT_AVRO"}
    kafka, segments = deployed.kafka, deployed.segments
    asked = review(kafka, deployed.dead_letters, segments_topic=segments, reason="NOT_AVRO")
    assert len([*asked]) == 2 * PARTITIONS
    story = read_story(settings_of(deployed), "SO-0", True, lambda *_: None)
    assert sum("NOT_AVRO" in each.verdict for each in story.rows) == 2 * PARTITIONS
    rebuilt = rebuild_checkpoint(settings_of(deployed), lambda *_: None, dry_run=True)
    assert sum(each.unpublished for each in rebuilt.partitions) == 0
    listed = [each.service_order_number for each in in_topic(settings_of(deployed))]
    assert sorted(listed) == names
    opened = [_openings(settings_of(deployed), each, lambda *_: None) for each in range(PARTITIONS)]
    assert sorted(each.number for each in chain(*opened)) == names
