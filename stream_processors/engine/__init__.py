"""A partition's interval table, record by record and in columns. Pure, as `core` is."""

from durabill.schemas.extras import require

require(__name__, "engine", "cramjam", "numba", "numpy")
