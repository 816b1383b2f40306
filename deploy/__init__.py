"""How Durabill is run: the local stack (Kafka, PostgreSQL), topics and the `durabill` command."""

from durabill.schemas.extras import require

require(__name__, "engine", "psycopg")
