"""Default names of the topics that the contract speaks of."""

SEGMENTS_TOPIC = "billing.segments"
TOTALS_TOPIC = "billing.totals"
DEAD_LETTERS_TOPIC = "billing.dead-letters"
