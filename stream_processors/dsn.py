"""PostgreSQL's DSN: checked before it is used, shown without its secrets.

libpq takes a DSN in two forms, `host=db password=secret` and `postgresql://user:secret@db/ledger`,
and a URI's options may hold a password as well. Where it can't read one, its message quotes the
part that it stumbled over, which is often the password. So nothing of a DSN is shown but what
`shown_dsn` picks, and a DSN that can't be read is refused without a word of it.
"""

import re
from collections.abc import Mapping
from typing import Any

from durabill.schemas.errors import DurabillError
from durabill.schemas.extras import ExtraMissing

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import TupleRow
except ModuleNotFoundError as error:
    raise ExtraMissing(__name__, "psycopg", "engine") from error

SECRET_OPTIONS = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)
"""libpq's options whose values nobody may see."""

_IS_URI = re.compile(r"postgres(ql)?://")
_HOW = (
    "The forms are postgresql://user@host:port/database, in which @ / : % and spaces of a password"
    " are written %40 %2F %3A %25 %20, and: host=... dbname=... password='...', in which a value"
    " with spaces stands between single quotes"
)


class BadDsn(DurabillError, ValueError):
    """The DSN can't be read. The message quotes nothing of it, for that may be the password."""


def read_dsn(dsn: str) -> dict[str, Any]:
    """Return libpq's options that the DSN gives, decoded. Raises BadDsn."""
    try:
        options = dict(conninfo_to_dict(dsn))
    except psycopg.ProgrammingError as error:
        raise BadDsn(f"the DSN can't be read: {error_text(error)}. {_HOW}") from None
    hosts = str(options.get("host") or "").split(",")
    database = str(options.get("dbname") or "")
    # libpq looks for the host after the first @, or before the first slash: what a password that
    # isn't percent-encoded leaves behind is then a part of the host, the port or the database.
    if any("@" in host[1:] for host in hosts) or (
        _IS_URI.match(dsn) and "@" in database and "%40" not in dsn
    ):
        raise BadDsn(f"the DSN has an @ too many. {_HOW}")
    for port in str(options.get("port") or "").split(","):
        if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
            raise BadDsn(f"the DSN has a port that is no number from 1 to 65535. {_HOW}")
    return options


def shown_dsn(dsn: str) -> str:
    """Return where a DSN points, as `user@host:port,host:port/database`, without any secret."""
    try:
        options = read_dsn(dsn)
    except BadDsn:
        return "a DSN that can't be read"
    hosts = str(options.get("host") or options.get("hostaddr") or "").split(",")
    ports = str(options.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    pairs = zip(hosts, ports, strict=False)
    where = ",".join(_bracketed(host) + (f":{port}" if port else "") for host, port in pairs)
    if not where and options.get("service"):
        where = f"service {options['service']}"
    user = f"{options['user']}@" if options.get("user") else ""
    database = f"/{options['dbname']}" if options.get("dbname") else ""
    return f"{user}{where}{database}" or "libpq's defaults"


def has_secret(dsn: str) -> bool:
    """Tell whether a password or another secret stands in the DSN itself."""
    try:
        options = read_dsn(dsn)
    except BadDsn:
        return True  # nobody can tell
    return any(options.get(name) for name in SECRET_OPTIONS)


def error_text(error: Exception) -> str:
    """Return what an error of psycopg's says, without the parts of a DSN that it may quote."""
    text = " ".join(str(error).split())
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        text = re.sub(r'".*"', "…", text)  # libpq on a DSN; a server's has a SQLSTATE
    return text


def connect(dsn: str, **options: Any) -> psycopg.Connection[TupleRow]:
    """Connect as `psycopg.connect` does. Raises BadDsn in place of an error that quotes the DSN."""
    return psycopg.connect(dsn, **{**_defaults(read_dsn(dsn), options), **options})


def connect_to_write(dsn: str, **options: Any) -> psycopg.Connection[TupleRow]:
    """Connect to that one of the DSN's servers that takes writes, unless the DSN asks for another.

    Raises psycopg.OperationalError where all of them are standbys, or read-only by their settings.
    """
    wanted = read_dsn(dsn).get("target_session_attrs") or "read-write"
    return connect(dsn, **options, target_session_attrs=wanted)


def _defaults(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a time limit for the connecting where nobody gave one: libpq would wait minutes."""
    has_limit = given.get("connect_timeout") or options.get("connect_timeout")
    return {} if has_limit else {"connect_timeout": 10}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
