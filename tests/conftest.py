"""Real servers for the tests: Kafka and PostgreSQL, each started when a test first asks for it.

They live in a folder of their own under the system's temporary folder (not pytest's, whose mode
0700 keeps PostgreSQL's user out) and are stopped at the end, also when pytest is interrupted or
terminated. What a killed run left behind, the next run clears away.
"""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

import tests.hypothesis_profiles  # noqa: F401 (for whoever draws examples, in any folder)
from durabill.deploy.local.kafka import UNHURRIED, LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from durabill.deploy.local.stack import StackError
from durabill.deploy.topics import create_topics
from durabill.schemas.topics import Topics as TopicNames
from tests.waiting import HANG_S

PROJECT_DIR = Path(__file__).resolve().parent.parent
JARS_DIR = PROJECT_DIR / ".durabill" / "jars"
_FOLDER_PREFIX = "durabill-test-"

SHORT_LIVED_JAVA = "-XX:TieredStopAtLevel=1"
"""Java's second compiler pays off after minutes, and no broker of the tests lives for so long:
without it, one takes half the processor time, for its start and for what it is asked."""


@dataclass(frozen=True)
class Topics(TopicNames):
    """Names of freshly made topics, and the partition count that they share."""

    partitions: int


def pytest_configure() -> None:
    # Without this, a CI system's SIGTERM ends pytest at once and its servers stay.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))
    # For every Java that is started from here, by whichever process.
    os.environ.setdefault("JDK_JAVA_OPTIONS", SHORT_LIVED_JAVA)
    # A run in the background of a script ignores Ctrl-C, and all that it starts would do so too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_data_dir() -> Path:
    """A new folder that every user can enter. Its name tells the pid of the run that it is of."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    return folder


def remove_data_dir(folder: Path) -> None:
    """Stops what runs in the folder, and removes it."""
    if folder.exists():
        LocalKafka(folder).stop()
        LocalPostgres(folder).remove()
        shutil.rmtree(folder)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        pid = int(folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0])
        if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
            continue
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            # What another version left, or a test that planted links, is no reason to test nothing.
            with contextlib.suppress(OSError, StackError):
                remove_data_dir(folder)
        except PermissionError:
            pass  # that pid is now another user's process: we cannot tell, so we leave the folder


@pytest.fixture(scope="session")
def session_data_dir() -> Iterator[Path]:
    """The folder of the session's servers."""
    _sweep()
    folder = make_data_dir()
    atexit.register(remove_data_dir, folder)  # should pytest not come to the line after the yield
    try:
        yield folder
    finally:
        remove_data_dir(folder)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder for one test; servers that the test leaves running in it are stopped."""
    folder = make_data_dir()
    try:
        yield folder
    finally:
        remove_data_dir(folder)


@pytest.fixture(scope="session")
def bootstrap_servers(request: pytest.FixtureRequest) -> str:
    """Address of a real Kafka: $DURABILL_TEST_BOOTSTRAP_SERVERS, else one of our own."""
    given = os.environ.get("DURABILL_TEST_BOOTSTRAP_SERVERS")
    if given:
        return given
    folder: Path = request.getfixturevalue("session_data_dir")
    return LocalKafka(folder, jars_dir=JARS_DIR, more=UNHURRIED).start()


@pytest.fixture(scope="session")
def postgres_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """DSN of an empty database in a real PostgreSQL: $DURABILL_TEST_POSTGRES_DSN, else our own."""
    server = os.environ.get("DURABILL_TEST_POSTGRES_DSN")
    if not server:
        folder: Path = request.getfixturevalue("session_data_dir")
        server = LocalPostgres(folder, fsync=False).start()
    database = f"durabill_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
        try:
            yield psycopg.conninfo.make_conninfo(server, dbname=database)
        finally:
            connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture
def topics(bootstrap_servers: str) -> Iterator[Topics]:
    """Topics of this test's own, with four partitions."""
    mark = uuid.uuid4().hex[:8]
    made = Topics(
        segments=f"{mark}.segments",
        totals=f"{mark}.totals",
        orders=f"{mark}.orders",
        dead_letters=f"{mark}.dead-letters",
        checkpoint=f"{mark}.checkpoint",
        partitions=4,
    )
    kafka: dict[str, Any] = {"bootstrap.servers": bootstrap_servers}
    create_topics(kafka, made, partitions=made.partitions)
    yield made
    admin = AdminClient(kafka)
    for future in admin.delete_topics(list(made.by_role.values())).values():
        # A test may have deleted one itself, or stopped the broker.
        with contextlib.suppress(Exception):
            future.result(HANG_S)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Leaves no room on the disk; returns the file that took it."""
    path = folder / "others"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return path


SECRET = "s3/secret@:%"
"""A password with what has to be encoded in a URI; "secret" is what no output may hold."""


def readable_dsns(host: str, port: int, database: str, user: str) -> list[str]:
    """The forms in which libpq takes a DSN, with SECRET wherever it takes a secret."""
    encoded = quote(SECRET, safe="")
    place = f"{host}:{port}/{database}"
    words = f"host={host} port={port} dbname={database} user={user}"
    return [
        f"postgresql://{user}:{encoded}@{place}",
        f"postgres://{place}?user={user}&password={encoded}",
        f"postgresql://{user}:{encoded}@{host}:1,{place}?target_session_attrs=read-write",
        f"{words} password={SECRET}",
        f"{words} password = '{SECRET}' connect_timeout=3",
        f"{words} passfile=/nowhere password={SECRET}",
        f"{words} sslmode=disable sslpassword={SECRET}",
    ]


def unreadable_dsns(host: str) -> list[str]:
    """Mistakes that people make with a password: libpq's messages quote parts of it."""
    return [
        f"postgresql://me:p@secret@{host}/ledger",
        f"postgresql://me:secret/1@{host}/ledger",
        f"postgresql://me:1/secret@{host}/ledger",
        f"postgresql://me:a secret@{host}/ledger",
        f"postgresql://me:secret%zz@{host}/ledger",
        f"postgresql://{host}/ledger?secret=me",
        f"postgresql://{host}:secret/ledger",
        f"host={host} password=my secret",
        f"host={host} password=my secret=1",
        f"host={host} password='my secret",
        "secret",
    ]
