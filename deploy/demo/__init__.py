"""The demo: the whole engine with a fleet, and a report of what came out."""

from durabill.schemas.extras import require

require(__name__, "all", "aiokafka", "cramjam", "faust", "numba", "urllib3", "uvloop")
