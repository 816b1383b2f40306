"""Brings the ledger's PostgreSQL to the newest schema.

Migrations are the files `migrations/NNNN_name.sql`, numbered from 0001 without a gap. Each one
runs once, in one transaction together with its row in `schema_migrations`, under an advisory
lock, so that several programs may start at once. A file that has been applied must never change:
its SHA-256 is kept.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg

from durabill.schemas.errors import DurabillError
from durabill.stream_processors.dsn import connect_to_write

MIGRATIONS_DIR = Path(__file__).parent / "migrations"

_LOCK_KEY = 0x6475_7261_6269_6C6C  # "durabill"
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_CREATE_JOURNAL = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        number     integer PRIMARY KEY,
        name       text NOT NULL,
        sha256     text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


class MigrationError(DurabillError):
    """The files and the database do not fit together; nothing of the refused file was applied."""


@dataclass(frozen=True)
class Migration:
    """One numbered file; `sha256` is over its text with Unix line ends, in lower hex."""

    number: int
    name: str
    sql: str
    sha256: str


def read_migrations(folder: Path = MIGRATIONS_DIR) -> list[Migration]:
    """The migrations of `folder` by number; MigrationError where numbering or names are wrong."""
    migrations = []
    for number, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None or int(match[1]) != number:
            raise MigrationError(f"{path.name}: expected a name like {number:04d}_what_it_does.sql")
        sql = path.read_text(encoding="utf-8")  # universal newlines: a checkout's CRLF is no change
        sha256 = hashlib.sha256(sql.encode()).hexdigest()
        migrations.append(Migration(number, path.name, sql, sha256))
    if not migrations:
        raise MigrationError(f"no migrations in {folder}")
    return migrations


def migrate(dsn: str, folder: Path = MIGRATIONS_DIR) -> tuple[str, ...]:
    """Applies what is missing; returns the names of the files that were applied now.

    Raises MigrationError when an applied file has changed, when the database is newer than these
    files or not in UTF8, or when a file fails (that file is rolled back as a whole); and
    psycopg.OperationalError when PostgreSQL cannot be reached.
    """
    migrations = read_migrations(folder)
    applied = []
    with connect_to_write(dsn, autocommit=True) as conn:
        encoding = conn.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise MigrationError(
                f"the ledger's database must be in UTF8 (order numbers are), this is {encoding}"
            )
        for migration in migrations:
            if _apply(conn, migration, migrations):
                applied.append(migration.name)
    return tuple(applied)


def _apply(
    conn: psycopg.Connection[tuple[object, ...]], migration: Migration, known: list[Migration]
) -> bool:
    """Applies one file unless it is there; the journal is read anew under each lock."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
        conn.execute(_CREATE_JOURNAL)
        journal = conn.execute(
            "SELECT number, name, sha256 FROM schema_migrations ORDER BY number"
        ).fetchall()
        _refuse_misfits([(int(str(n)), str(name), str(sha)) for n, name, sha in journal], known)
        if any(row[0] == migration.number for row in journal):
            return False
        try:
            conn.execute(migration.sql.encode())  # without parameters: many statements at once
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise MigrationError(f"{migration.name}: {error}") from error
        conn.execute(
            "INSERT INTO schema_migrations (number, name, sha256) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.sha256),
        )
        return True


def _refuse_misfits(journal: list[tuple[int, str, str]], known: list[Migration]) -> None:
    by_number = {migration.number: migration for migration in known}
    for number, name, sha256 in journal:
        if number not in by_number:
            raise MigrationError(
                f"the database is newer than this program: it has {name}; upgrade the program"
            )
        if by_number[number].sha256 != sha256:
            raise MigrationError(
                f"{by_number[number].name} has changed since it was applied as {name}: "
                "bring the old text back and put the change into a new file"
            )
