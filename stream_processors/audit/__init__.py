"""Proves totals by the log: replay, compare, report; the archive and the sealed log beside it."""

from durabill.schemas.extras import require

require(__name__, "engine", "psycopg")
