"""The SQL of the documents, on a PostgreSQL with the ledger's real tables."""

import psycopg
import pytest

from durabill.schemas import OrderTotal
from tests.broker.ledger_kit import new_ledger_dsn
from tests.unit.documents import DOCUMENTS, ROOT, blocks, rows_of, section

QUERIES = [
    (str(path.relative_to(ROOT)), content)
    for path in DOCUMENTS
    for rest, content in blocks(str(path.relative_to(ROOT)), "sql")
    if rest != "audit"  # DuckDB's, over the archive: test_archive_sql runs it
]


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str) -> str:
    return new_ledger_dsn(postgres_dsn)


def statements(content: str) -> list[str]:
    lines = [line.partition("--")[0] for line in content.splitlines()]
    return [each.strip() for each in "\n".join(lines).split(";") if each.strip()]


@pytest.mark.parametrize(("name", "content"), QUERIES)
def test_queries_can_be_asked(dsn: str, name: str, content: str) -> None:
    with psycopg.connect(dsn) as connection:
        for statement in statements(content):
            assert statement.startswith("SELECT")
            connection.execute(statement.encode()).fetchall()


def test_every_page_about_the_ledger_has_queries() -> None:
    assert {name for name, _ in QUERIES} == {"docs/contract.md", "docs/operations.md"}


def columns(dsn: str, table: str) -> dict[str, str]:
    """The columns of a table, each with its type."""
    query = (
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = %s"
    )
    with psycopg.connect(dsn) as connection:
        return dict(connection.execute(query, (table,)).fetchall())


@pytest.mark.parametrize("table", ["order_totals", "set_aside_totals", "latest_order_totals"])
def test_columns_are_named_as_the_fields(dsn: str, table: str) -> None:
    found = columns(dsn, table)
    assert found.keys() >= set(OrderTotal.__slots__)
    assert {found[each] for each in ("intervals", "missing_numbers")} == {"jsonb"}
    times = ("started_at", "ended_at", "settled_at")
    assert {found[each] for each in times} == {"timestamp with time zone"}


def test_columns_that_may_be_null_are_those_of_the_contract(dsn: str) -> None:
    told = {
        row[0].strip("`")
        for row in rows_of(
            section("docs/contract.md", "## Consumers: totals").partition("### Digest")[0]
        )
        if row[1].startswith("null or")
    }
    query = (
        "SELECT column_name FROM information_schema.columns WHERE is_nullable = 'YES'"
        " AND table_schema = current_schema() AND table_name = 'order_totals'"
    )
    with psycopg.connect(dsn) as connection:
        nullable = {name for (name,) in connection.execute(query).fetchall()}
    assert nullable & set(OrderTotal.__slots__) == told


def test_a_row_is_never_changed(dsn: str) -> None:
    """As the contract says, by a trigger: whoever the ledger's tables belong to."""
    with (
        psycopg.connect(dsn) as connection,
        pytest.raises(psycopg.errors.RestrictViolation, match="append only"),
    ):
        connection.execute("UPDATE order_totals SET duration_ms = 0")
