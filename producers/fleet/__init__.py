"""A simulated fleet of faulty clients, and the independent oracle of what must be billed."""

from durabill.schemas.extras import require

require(__name__, "engine", "urllib3")
