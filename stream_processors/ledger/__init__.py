"""The ledger: every total into PostgreSQL, once, and what is asked of it."""

from durabill.schemas.extras import require

require(__name__, "engine", "psycopg")
