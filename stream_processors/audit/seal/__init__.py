"""The sealed log: a Merkle log per totals partition, signed checkpoints, receipts.

Whoever verifies needs none of Kafka, PostgreSQL or the engine: `receipt` and what it imports stand
on the standard library, `cryptography` and the codec of totals alone.
"""

from durabill.schemas.extras import require

require(__name__, "audit", "cryptography")
