"""The HTTP gateway for clients that do not speak Kafka."""

from durabill.schemas.extras import require

require(__name__, "gateway", "aiohttp", "psycopg", "uvloop", "yarl")
