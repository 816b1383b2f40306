"""A DSN is read as libpq reads it, and shown without its secrets, whatever its form."""

from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from durabill.schemas.errors import SettingsError
from durabill.stream_processors.dsn import BadDsn, connect, has_secret, read_dsn, shown_dsn
from durabill.stream_processors.settings import Settings, load_settings
from tests.conftest import SECRET, readable_dsns, unreadable_dsns


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:pw@db:5432/ledger", "me@db:5432/ledger"),
        ("postgres://db/ledger?user=me&password=pw", "me@db/ledger"),
        ("host=db port=5432 dbname=ledger user=me password=pw", "me@db:5432/ledger"),
        ("postgresql://me@a:1,b:2/ledger", "me@a:1,b:2/ledger"),
        ("host=a,b port=5432 dbname=ledger", "a:5432,b:5432/ledger"),
        ("postgresql://[::1]:5432/ledger", "[::1]:5432/ledger"),
        ("hostaddr=10.0.0.1 dbname=ledger", "10.0.0.1/ledger"),
        ("service=billing password=pw", "service billing"),
        ("dbname=a@b password=pw", "/a@b"),
        ("", "libpq's defaults"),
    ],
)
def test_a_dsn_is_shown_by_where_it_points(dsn: str, shown: str) -> None:
    assert shown == shown_dsn(dsn)
    assert ("password" in dsn or "me:pw" in dsn) == has_secret(dsn)


@pytest.mark.parametrize("dsn", readable_dsns("db", 5432, "ledger", "me"))
def test_no_form_of_a_secret_is_shown(dsn: str) -> None:
    assert "secret" not in shown_dsn(dsn)
    assert has_secret(dsn)
    assert "secret" not in repr(Settings(ledger_dsn=dsn, sasl_password=SECRET))
    assert dsn == load_settings({"DURABILL_LEDGER_DSN": dsn}).ledger_dsn


@pytest.mark.parametrize("dsn", unreadable_dsns("db"))
def test_a_dsn_that_cannot_be_read_is_refused_without_a_word_of_it(dsn: str) -> None:
    for ask in (read_dsn, connect):
        with pytest.raises(BadDsn) as raised:
            ask(dsn)
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
    with pytest.raises(SettingsError) as problems:
        load_settings({"DURABILL_LEDGER_DSN": dsn, "DURABILL_GATEWAY_PORT": "x"})
    assert len(problems.value.problems) == 2
    assert "secret" not in str(problems.value)
    assert "secret" not in shown_dsn(dsn)


@given(password=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
def test_any_password_in_a_uri_is_encoded_or_refused_but_never_shown(password: str) -> None:
    # Letters that stand nowhere else in what is shown.
    marked = f"QZ{password}QZ"
    assume("QZ" not in password)
    encoded = f"postgresql://me:{quote(marked, safe='')}@db:5432/ledger"
    assert marked == read_dsn(encoded)["password"]
    assert shown_dsn(encoded) == "me@db:5432/ledger"
    raw = f"postgresql://me:{marked}@db:5432/ledger"
    assert "QZ" not in shown_dsn(raw)
    refusal = ""
    try:
        read_dsn(raw)
    except BadDsn as error:
        refusal = str(error)
    assert "QZ" not in refusal


@pytest.mark.parametrize(("port", "good"), [("1", 1), ("65535", 1), ("0", 0), ("65536", 0)])
def test_a_port_is_a_number_within_its_bounds(port: str, good: int) -> None:
    dsn = f"postgresql://db:{port}/ledger"
    if good:
        assert port == read_dsn(dsn)["port"]
    else:
        with pytest.raises(BadDsn, match="port"):
            read_dsn(dsn)
