"""The migration runner against real PostgreSQL."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from durabill.deploy.migrate import MigrationError, migrate, read_migrations


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    schema = f"migrate_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
    return make_conninfo(postgres_dsn, options=f"-csearch_path={schema}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_one.sql").write_text("CREATE TABLE one (); CREATE TABLE uno ();\n")
    (tmp_path / "0002_two.sql").write_text("CREATE TABLE two ();\n")
    return tmp_path


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        ).fetchall()
    return {name for (name,) in rows}


def test_each_file_runs_once(dsn: str, folder: Path) -> None:
    assert migrate(dsn, folder) == ("0001_one.sql", "0002_two.sql")
    assert migrate(dsn, folder) == ()
    (folder / "0003_three.sql").write_text("CREATE TABLE three ();")
    assert migrate(dsn, folder) == ("0003_three.sql",)
    assert {"one", "uno", "two", "three", "schema_migrations"} == tables(dsn)


def test_applied_file_that_changed_is_refused(dsn: str, folder: Path) -> None:
    migrate(dsn, folder)
    (folder / "0001_one.sql").write_text("CREATE TABLE other ();")
    (folder / "0003_three.sql").write_text("CREATE TABLE three ();")
    with pytest.raises(MigrationError, match=r"0001_one\.sql has changed since it was applied"):
        migrate(dsn, folder)
    assert "three" not in tables(dsn)


def test_line_ends_of_another_system_are_no_change(dsn: str, folder: Path) -> None:
    migrate(dsn, folder)
    (folder / "0002_two.sql").write_bytes(b"CREATE TABLE two ();\r\n")
    assert migrate(dsn, folder) == ()


def test_newer_database_is_refused(dsn: str, folder: Path) -> None:
    migrate(dsn, folder)
    (folder / "0002_two.sql").unlink()
    with pytest.raises(MigrationError, match=r"newer than this program: it has 0002_two\.sql"):
        migrate(dsn, folder)


def test_file_that_fails_leaves_nothing_of_itself(dsn: str, folder: Path) -> None:
    (folder / "0002_two.sql").write_text("CREATE TABLE two (); CREATE TABLE one ();")
    with pytest.raises(MigrationError, match=r'0002_two\.sql: relation "one" already exists'):
        migrate(dsn, folder)
    assert {"one", "uno", "schema_migrations"} == tables(dsn)
    (folder / "0002_two.sql").write_text("CREATE TABLE two ();")  # never applied: may change
    assert migrate(dsn, folder) == ("0002_two.sql",)


def test_programs_that_start_at_once_do_not_collide(dsn: str, folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: migrate(dsn, folder), range(4)))
    assert sorted(name for names in done for name in names) == ["0001_one.sql", "0002_two.sql"]


@pytest.mark.parametrize("name", ["0004_gap.sql", "0003-dash.sql", "0002_twice.sql"])
def test_misnumbered_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match="expected a name like"):
        read_migrations(folder)


def test_own_migrations_are_in_order() -> None:
    assert read_migrations()[0].name == "0001_ledger.sql"
