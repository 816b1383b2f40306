"""Openings through real workers: passed on once, into the ledger, and proven by the audit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from durabill.schemas import decode_total, encode_opening, encode_total
from durabill.schemas.errors import AccessError
from durabill.schemas.headers import SEGMENTS_TOPIC_ID, SOURCE_OFFSET
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.findings import Kind
from durabill.stream_processors.audit.rebuild_checkpoint import rebuild_checkpoint
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.engine.checkpoint import META
from tests.broker.audit_kit import Copier, Record, audited, settings_of, told
from tests.broker.ledger_kit import RunningLedger, new_ledger_dsn, running_ledger
from tests.broker.opening_kit import opened, opening, source_of
from tests.broker.test_cli import run
from tests.broker.traffic_kit import Pair, now_ms, segment, traffic
from tests.broker.worker_kit import Deployment, deployment, read_committed
from tests.waiting import HANG_S, wait_until

PARTITIONS = 2
ORDERS = 30


def _records() -> list[Pair]:
    """Openings, each twice, and segments of most; two that are refused."""
    start_ms = now_ms() - 60_000
    records: list[Pair] = []
    for at in range(ORDERS):
        first = opening(f"SO-{at}", f"tenant-{at % 3}")
        records += [first, first]
        if at % 5:
            records.append(segment(f"SO-{at}", 1, start_ms, start_ms + 1_000, True))
    begun = segment("SO-begun", 1, start_ms, start_ms + 1_000, True)
    return [*records, begun, opening("SO-begun"), opening("SO-1", "thief")]


@pytest.fixture(scope="module")
def deployed(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment whose worker has settled all there is."""
    folder = tmp_path_factory.mktemp("openings")
    with deployment(bootstrap_servers, folder, partitions=PARTITIONS) as made:
        worker = made.start_and_wait()
        made.send(_records())
        wait_until(lambda: len(made.found_totals()) == ORDERS * 4 // 5 + 1, "orders settle")
        wait_until(lambda: len(made.found_letters()) == 2, "openings are refused")
        assert worker.stop() == 0
        yield made


@pytest.fixture(scope="module")
def dsn(deployed: Deployment, postgres_dsn: str) -> str:
    """A ledger with all of it."""
    dsn, totals = new_ledger_dsn(postgres_dsn), len(deployed.found_totals())
    ledger = RunningLedger(
        deployed.kafka, deployed.totals, dsn, deployed.name, 100, orders_topic=deployed.orders
    )
    with running_ledger(deployed.kafka, deployed.totals, dsn, ledger=ledger):
        wait_until(
            lambda: (ledger.stats.opened, ledger.stats.recorded) == (ORDERS, totals),
            "the ledger has all",
        )
    return dsn


def flags_of(deployed: Deployment, folder: Path) -> dict[str, str]:
    """The settings of a command."""
    return {
        "bootstrap_servers": deployed.bootstrap_servers,
        "application_id": deployed.name,
        "segments_topic": deployed.segments,
        "totals_topic": deployed.totals,
        "orders_topic": deployed.orders,
        "dead_letters_topic": deployed.dead_letters,
        "data_dir": str(folder),
    }


def test_each_is_passed_on_once_where_its_order_lives(deployed: Deployment) -> None:
    log = {(each.partition, each.offset): each for each in deployed.log()}
    found = deployed.found_openings()
    assert len(found) == ORDERS
    for message in found:
        record = log[message.partition() or 0, source_of(message)]
        assert (message.key(), message.value()) == (record.key, record.value)
    assert len({message.key() for message in found}) == ORDERS
    reasons = {dict(each.headers() or ())["reason"] for each in deployed.found_letters()}
    assert reasons == {b"ALREADY_OPENED"}


def test_the_audit_proves_them(deployed: Deployment, dsn: str) -> None:
    for engine in Engine:
        result = audited(settings_of(deployed, ledger_dsn=dsn), engine=engine)
        assert (told(result), result.notes) == ([], ())
        assert (result.openings, result.openings_proven) == (ORDERS, ORDERS)
        assert result.ledger is not None
        assert (result.ledger.orders, result.ledger.orders_proven) == (ORDERS, ORDERS)
        assert result.as_json()["openings_not_yet_published"] == 0
    only = audited(settings_of(deployed), order="SO-3", with_ledger=False)
    assert (told(only), only.openings, only.openings_proven) == ([], 1, 1)


def falsified(how: str, records: list[Record]) -> list[Record]:
    at = next(at for at, each in enumerate(records) if each[1] == b"SO-3")
    partition, key, value, headers = records[at]
    rest = [*records[:at], *records[at + 1 :]]
    other = encode_opening(opened("SO-3", "thief"))
    if how == "removed":
        return rest
    if how == "twice":
        return [*records, records[at]]
    if how == "other bytes":
        return [*rest[:at], (partition, key, other, headers), *rest[at:]]
    if how == "without a place":
        return [*records, (partition, key, value, [])]
    (_, source), *of = headers
    if how == "of another log, behind ours":
        return [*records, of_another_log(records[at])]
    # Each opening is sent twice: the next record is no opening that counts.
    places = {"of a repeat": str(int(source or b"") + 1), "of the future": str(10**15)}
    return [*records, (partition, key, value, [(SOURCE_OFFSET, places[how]), *of])]


def of_another_log(record: Record) -> Record:
    """A record as it was passed on from the segments topic of before."""
    partition, key, _, headers = record
    other = [(SEGMENTS_TOPIC_ID, b"a-log-that-is-gone")]
    return partition, key, encode_opening(opened("SO-3", "before")), [headers[0], *other]


EXPECTED = {
    "removed": Kind.OPENING_MISSING,
    "twice": Kind.OPENED_TWICE,
    "other bytes": Kind.OPENING_DIFFERS,
    "without a place": Kind.OPENING_WITHOUT_EVIDENCE,
    "of a repeat": Kind.OPENING_WITHOUT_EVIDENCE,
    "of the future": Kind.OPENING_WITHOUT_EVIDENCE,
    "of another log, behind ours": Kind.OPENING_WITHOUT_EVIDENCE,
}


@pytest.mark.parametrize("how", EXPECTED)
def test_a_falsified_orders_topic_is_found(deployed: Deployment, how: str) -> None:
    with Copier(deployed).copy(deployed.orders, lambda each: falsified(how, each)) as orders:
        result = audited(settings_of(deployed, orders_topic=orders))
    kinds = [(each.kind, each.service_order_number) for each in result.findings]
    assert kinds == [(EXPECTED[how], "SO-3")]


def test_openings_of_a_log_before_are_told_and_no_findings(deployed: Deployment) -> None:
    """The segments topic was deleted and made anew; one opening is the same in both logs."""

    def with_old(records: list[Record]) -> list[Record]:
        mine = [each for each in records if each[1] in (b"SO-3", b"SO-4")]
        other = of_another_log(mine[0])
        restored = (*mine[1][:3], [mine[1][3][0], *other[3][1:]])
        far = (*other[:3], [(SOURCE_OFFSET, b"1000000"), *other[3][1:]])
        return [other, far, restored, *(each for each in records if each is not mine[1])]

    def with_old_totals(records: list[Record]) -> list[Record]:
        """One that ours doesn't give, and one that it does."""
        assert all([name for name, _ in each[3]] == [SEGMENTS_TOPIC_ID] for each in records)
        other = [(SEGMENTS_TOPIC_ID, b"a-log-that-is-gone")]
        partition, key, value, _ = records[0]
        total = encode_total(replace(decode_total(value), service_order_number="SO-old"))
        old: list[Record] = [(partition, b"SO-old", total, [*other])]
        return [*old, (partition, key, value, [*other]), *records[1:]]

    copier = Copier(deployed)
    with (
        copier.copy(deployed.orders, with_old) as orders,
        copier.copy(deployed.totals, with_old_totals) as totals,
    ):
        settings = settings_of(deployed, orders_topic=orders, totals_topic=totals)
        result = audited(settings)
        rebuilt = rebuild_checkpoint(settings, lambda *_: None, dry_run=True)
    assert told(result) == []
    assert (result.openings, result.openings_proven) == (ORDERS, ORDERS)
    counted = result.as_json()
    assert (counted["openings_of_other_logs"], counted["totals_of_other_logs"]) == (2, 1)
    notes = "\n".join(result.notes)
    assert "2 openings of another log" in notes
    assert "1 total of another log" in notes
    assert notes.count("a-log-that-is-gone") == len(result.notes) == 2
    assert sum(each.openings for each in rebuilt.partitions) == ORDERS
    assert sum(each.unpublished for each in rebuilt.partitions) == 0


@pytest.mark.parametrize("how", ["twice", "of a repeat"])
def test_no_checkpoint_is_rebuilt_on_a_falsified_orders_topic(
    deployed: Deployment, how: str
) -> None:
    with Copier(deployed).copy(deployed.orders, lambda each: falsified(how, each)) as orders:
        settings = settings_of(deployed, orders_topic=orders)
        with pytest.raises(AuditError, match="orders topic holds what the log doesn't give"):
            rebuild_checkpoint(settings, lambda *_: None, dry_run=True)


def test_leakage_and_order_tell_of_them(deployed: Deployment, dsn: str, tmp_path: Path) -> None:
    settings = flags_of(deployed, tmp_path)
    for more in ({}, {"ledger_dsn": dsn}):
        source = ["--source", "ledger"] if more else []
        ran = run("leakage", "--json", *source, **settings, **more)
        found = json.loads(ran.stdout)["opened_without_total"]
        assert (found["opened_orders"], found["orders"]) == (ORDERS, ORDERS // 5)
        assert found["by_tenant"] == {
            f"tenant-{each}": {"orders": 2, "never_reported": 0} for each in range(3)
        }
        unreported = {each["number"] for each in found["look_at_first"]}
        assert unreported == {f"SO-{at}" for at in range(0, ORDERS, 5)}
    told_of = json.loads(run("order", "SO-1", "--json", **settings).stdout)
    first, refused = told_of["openings"]
    assert (first["tenant"], first["repeats"], first["attributes"]) == (
        "tenant-1", 1, {"plan": "gøld", "site": ""},
    )  # fmt: skip
    assert (refused["tenant"], refused["reason"]) == ("thief", "ALREADY_OPENED")


def test_an_empty_topic_lacks_all_and_one_that_is_not_there_proves_nothing(
    deployed: Deployment,
) -> None:
    with Copier(deployed).copy(deployed.orders, lambda _: []) as orders:
        settings = settings_of(deployed, orders_topic=orders)
        assert [each.kind for each in audited(settings).findings] == [Kind.OPENING_MISSING] * ORDERS
    no_topic = audited(settings_of(deployed, orders_topic=f"{deployed.orders}-none"))
    assert told(no_topic) == []
    assert sum(each.openings_not_yet_published for each in no_topic.partitions) == ORDERS
    assert any("durabill topics create" in each for each in no_topic.notes)


def test_a_deployment_from_before_needs_nothing_but_the_topic(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    short = {"settle_grace_s": 0.3, "idle_timeout_s": 0.4}
    with deployment(bootstrap_servers, tmp_path, partitions=PARTITIONS, **short) as old:
        worker = old.start_and_wait()
        old.send(traffic(1, orders=8, segments=4))
        old.wait_for_truth()
        assert worker.stop() == 0
        admin = AdminClient(old.kafka)
        admin.delete_topics([old.orders])[old.orders].result(HANG_S)
        wait_until(lambda: old.orders not in admin.list_topics(timeout=HANG_S).topics, "it is gone")
        _forget_orders_offsets(old)
        settings = flags_of(old, tmp_path)
        refused = run("worker", **settings)
        assert refused.returncode == AccessError.exit_code
        assert f"Kafka has no topic {old.orders}" in refused.stderr
        assert f"durabill topics create --partitions {PARTITIONS}" in refused.stderr
        ran = run("topics", "create", "--partitions", str(PARTITIONS), **settings)
        assert ran.returncode == 0, ran.stderr
        worker = old.start_and_wait()
        old.send(traffic(2, orders=8, segments=4, opened=True))
        old.wait_for_truth()
        assert len(old.found_openings()) > 0
        assert worker.stop() == 0
        assert told(audited(settings_of(old))) == []


def _forget_orders_offsets(deployed: Deployment) -> None:
    """Write the metas as the version before wrote them."""
    producer = Producer(deployed.kafka)
    for message in read_committed(deployed.bootstrap_servers, deployed.checkpoint):
        key, value = message.key(), message.value()
        if isinstance(key, bytes) and isinstance(value, bytes) and key.endswith(META.encode()):
            fields = msgspec.msgpack.decode(value)
            assert (fields[0], len(fields)) == (3, 9)
            old = msgspec.msgpack.encode([2, *fields[1:8]])
            producer.produce(deployed.checkpoint, old, key, message.partition() or 0)
    assert producer.flush(HANG_S) == 0
