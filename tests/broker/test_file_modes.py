"""What lies in a data folder after some work is for its owner alone: every file, 600; folders, 700.

Whatever the umask of who starts the servers: each writes with one of its own.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from tests.broker.test_cli import run, start
from tests.broker.traffic_kit import now_ms, segment
from tests.broker.worker_kit import send
from tests.conftest import JARS_DIR
from tests.waiting import HANG_S

AS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Exempt:
    """Paths in the data folder whose mode may be another, which ones, and why."""

    pattern: str
    modes: tuple[int, ...]
    why: str


EXCEPTIONS = [
    Exempt(
        "postgres",
        (0o711,) if AS_ROOT else (),
        "root's PostgreSQL runs as another user, who has to pass through to his own folder;"
        " nobody can list it, and all that is in it is closed",
    ),
    Exempt(
        "postgres/server-binaries*",
        (0o755, 0o644),
        "root's copy of the public PostgreSQL wheel, which that user runs and may not change",
    ),
]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(folder: Path) -> list[str]:
    """Everything under the folder with a mode that it must not have."""
    found = []
    for path in folder.rglob("*"):
        named = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue  # its mode says nothing: it is that of what it leads to
        wanted = 0o700 if stat.S_ISDIR(mode) or mode & 0o100 else 0o600
        exempt = {each for one in EXCEPTIONS if fnmatch(named, one.pattern) for each in one.modes}
        if stat.S_IMODE(mode) not in {wanted, *exempt}:
            found.append(f"{named} {stat.S_IMODE(mode):o}, not {wanted:o}")
    return found


def work(address: str) -> None:
    """What leaves files of each kind: a transaction, a group, a topic."""
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("modes", 1, 1)])["modes"].result(HANG_S)
    producer = Producer({"bootstrap.servers": address, "transactional.id": "modes"})
    producer.init_transactions(HANG_S)
    producer.begin_transaction()
    producer.produce("modes", b"value", b"key")
    producer.commit_transaction(HANG_S)
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "modes", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe(["modes"])
        message = consumer.poll(HANG_S)
        assert message is not None
        consumer.commit(message=message, asynchronous=False)
    finally:
        consumer.close()


def test_everything_in_a_data_folder_is_for_its_owner_alone(data_dir: Path, tmp_path: Path) -> None:
    kafka, postgres = LocalKafka(data_dir, jars_dir=JARS_DIR), LocalPostgres(data_dir, fsync=False)
    with umask(0o000), ExitStack() as stack:
        with ThreadPoolExecutor(2) as both:
            address, dsn = both.submit(kafka.start), both.submit(postgres.start)
        settings = {
            "bootstrap_servers": address.result(),
            "ledger_dsn": dsn.result(),
            "gateway_port": "0",
            "settle_grace_s": "0.5",
            "idle_timeout_s": "1",  # the fleet waits for it
            "data_dir": str(data_dir),
        }
        created = run("topics", "create", "--partitions", "2", **settings)
        assert created.returncode == 0, created.stderr
        for name in ("gateway", "ledger", "worker"):
            start(stack, tmp_path, settings, name, name)
        at_ms = now_ms() - 100
        send(address.result(), "billing.segments", [segment("SO1", 1, at_ms, at_ms + 10, True)])
        fleet = run("fleet", "--orders", "2", "--segments", "40", "--seed", "1", **settings)
        assert fleet.returncode == 0, fleet.stderr
        work(address.result())
        with psycopg.connect(dsn.result(), autocommit=True) as connection:
            connection.execute("CREATE TABLE modes AS SELECT generate_series(1, 50000) AS n")
            connection.execute("CREATE INDEX ON modes (n)")
            connection.execute("CHECKPOINT")
        assert wrong_modes(data_dir) == []
        stack.close()
        # What a stop leaves, and what the next start makes of it: snapshots, a second log.
        kafka.stop()
        postgres.stop()
        kafka.start()
        assert wrong_modes(data_dir) == []
        paths = list(data_dir.rglob("*"))
        names = {each.name for each in paths}
        assert {"server.log", "server.log.1", "pgpass", "PG_VERSION", "modes-0"} <= names
        assert [each for each in names if each.startswith("truth")]
        assert len(paths) > 1_000
