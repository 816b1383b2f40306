"""The ledger while a server is away, or takes no writes any more: it waits, and says so."""

import logging
import threading
import time
from pathlib import Path

import psycopg
import pytest

from durabill.deploy.local.postgres import LocalPostgres
from durabill.deploy.local.stack import HOST, find_free_ports
from durabill.deploy.migrate import migrate
from durabill.stream_processors.ledger.consumer import run_ledger
from durabill.stream_processors.ledger.lookups import status
from tests.broker.ledger_kit import (
    RunningLedger,
    expected_rows,
    publish,
    recorded,
    running_ledger,
)
from tests.broker.test_ledger import caught_up, many
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until


@pytest.fixture
def kafka(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers, "session.timeout.ms": "6000"}


@pytest.fixture
def postgres(data_dir: Path) -> LocalPostgres:
    return LocalPostgres(data_dir, find_free_ports(1)[0], fsync=False)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def set_read_only(dsn: str, state: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}")
        conn.execute("SELECT pg_reload_conf()")


def refuses(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return conn.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


def test_a_database_that_is_down_at_the_start_or_demoted_later_is_waited_for(
    kafka: dict[str, str],
    topics: Topics,
    postgres: LocalPostgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dsn = postgres.start()
    postgres.stop()
    # As in a cluster of two: one server doesn't answer, and only one that takes writes will do.
    options = psycopg.conninfo.conninfo_to_dict(dsn)
    dead = find_free_ports(1)[0]
    passfile, port = options["passfile"], options["port"]
    both = f"postgresql://durabill@{HOST}:{dead},{HOST}:{port}/durabill?passfile={passfile}"
    Path(str(passfile)).write_text(
        Path(str(passfile)).read_text().replace(f":{port}:", ":*:")  # of both servers
    )
    publish(kafka, topics.totals, many(30))
    ledger = RunningLedger(kafka, topics.totals, both, "outage", 50, prepare=lambda: migrate(both))
    with running_ledger(kafka, topics.totals, both, ledger=ledger):
        began_s = time.monotonic()
        wait_until(lambda: bool(warnings_of(caplog)), "it is told")
        time.sleep(3)
        told = warnings_of(caplog)
        assert f"{HOST}:{dead},{HOST}:{port}/durabill (DURABILL_LEDGER_DSN)" in told[0]
        assert "trying again" in told[0]
        assert len(told) <= 1 + (time.monotonic() - began_s)  # one a second at most
        postgres.start()
        wait_until(lambda: ledger.ready.is_set() or not ledger.thread.is_alive(), "it reads")
        assert ledger.error is None
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
        wait_until(lambda: "is back after" in warnings_of(caplog)[-1], "that is told")

        set_read_only(dsn, "on")
        wait_until(lambda: refuses(dsn), "the primary is demoted")
        before = ledger.stats.reconnects
        publish(kafka, topics.totals, many(200))
        wait_until(lambda: ledger.stats.reconnects > before + 2, "it connects anew")
        assert status(dsn).totals == 60
        set_read_only(dsn, "off")
        publish(kafka, topics.totals, many(250))
        wait_until(lambda: caught_up(dsn, kafka, topics.totals), "the ledger catches up")
    assert expected_rows(many(250)) == recorded(dsn)
    assert ledger.stats.recorded == 500
    assert status(dsn).set_aside == 0
    password = Path(str(passfile)).read_text().rpartition(":")[2].strip()
    assert password not in caplog.text


def test_a_kafka_that_does_not_answer_is_told_and_waited_for(
    topics: Topics, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    absent = f"{HOST}:{find_free_ports(1)[0]}"
    stop = threading.Event()
    kafka = {"bootstrap.servers": absent}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run_ledger(kafka, topics.totals, "g", postgres_dsn, stop=stop)
        except Exception as error:  # told below
            errors.append(error)

    thread = threading.Thread(target=work, name="ledger")
    began_s = time.monotonic()
    thread.start()
    try:
        where = f"Kafka at {absent} (DURABILL_BOOTSTRAP_SERVERS)"
        wait_until(lambda: where in caplog.text, "it is told")
        time.sleep(2)
        # Some kinds of lines at first, and none of them more than once a second.
        assert len(warnings_of(caplog)) <= 4 + (time.monotonic() - began_s)
    finally:
        stop.set()
        thread.join(HANG_S)
    assert not thread.is_alive()
    assert errors == []
