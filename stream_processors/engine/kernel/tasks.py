"""The arguments of a call of `fold`, as positions in an int64 array."""

RECORD = 0  # the next record's number in the batch; in and out
POSITION = 1  # the next record's position in the body; in and out
RECORDS = 2
BASE_OFFSET = 3
FIRST_OFFSET = 4
NOW_MS = 5
SETTLE_GRACE_MS = 6
IDLE_TIMEOUT_MS = 7
CORRECTION_WINDOW_MS = 8
FUTURE_TOLERANCE_MS = 9
LENGTH_MAX_MS = 10
PARTITION = 11
PARTITIONS = 12
SEED = 13
OTHERS = 14  # whether other schemas than our own are known
REGISTRY = 15  # whether there is a registry of further ones
LEAST_DELTA = 16  # the next record's offset is this or more above the batch's; in and out
NEXT_DELTA = 17  # and less than this
INTERIM_AFTER_MS = 18  # how long an order runs before an interim total
OPENED_ONLY = 19  # whether an order without an opening takes nothing
TASK = 20
