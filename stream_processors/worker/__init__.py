"""The worker: a Faust app that folds segments, settles orders and publishes totals exactly once."""

from durabill.schemas.extras import require

require(__name__, "engine", "aiohttp", "aiokafka", "faust")
