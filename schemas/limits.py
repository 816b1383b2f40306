"""The limits of the contract, in one place: what a record, an order and a total may hold at most.

All processes judge by these, so that a record has the same fate wherever it is looked at. The
fleet's oracle (`fleet.truth`) has numbers of its own on purpose; a test compares the two.
"""

LONG_MAX = 2**63 - 1
LONG_MIN = -(2**63)

ORDER_NUMBER_BYTES_MAX = 64
"""Of a service order number in UTF-8; it has one byte at least."""

APPLICATION_ID_BYTES_MAX = 100
"""Of an application id, which is ASCII; it has one byte at least."""

FUTURE_TOLERANCE_MS = 60_000
"""How far a segment's end may lie after its arrival; also what forgetting waits for on top."""

ARRIVES_FROM_MS = 1_577_836_800_000
"""2020: a clock that shows an earlier time doesn't know the year."""

ARRIVES_UNTIL_MS = 4_102_444_800_000
"""2100: until then a record may arrive. What ends later, and the tolerance after, never counts."""

SEGMENT_LENGTH_MAX_MS = 86_400_000
"""Of one segment's time sequence."""

ORDER_PIECES_MAX = 10_000
"""Of an order's intervals, and of its ranges of numbers, both after uniting."""

GRACE_FACTOR_MAX = 128
"""By so much, at most, a reopened order waits longer than `settle_grace`; a power of two."""

POLICY_TIME_MAX_S = 315_360_000
"""Of each time of a policy: ten years."""

INTERIM_TOTALS_MAX = 10_000
"""So many interim totals of one order, at most, can be due at once; the settings see to it."""

TENANT_BYTES_MAX = 64
"""Of an opening's tenant; it has one byte at least."""

CLIENT_BYTES_MAX = 64
"""Of an opening's client in UTF-8; it may be empty."""

SERVICE_BYTES_MAX = 64
"""Of an opening's service in UTF-8; it may be empty."""

ATTRIBUTES_MAX = 16
"""Of an opening."""

ATTRIBUTE_KEY_BYTES_MAX = 64
"""Of an attribute's key in UTF-8; it has one byte at least."""

ATTRIBUTE_VALUE_BYTES_MAX = 256
"""Of an attribute's value in UTF-8; it may be empty."""

OPENING_SPAN_MAX_MS = POLICY_TIME_MAX_S * 1000
"""From an opening's server timestamp to its latest acceptable arrival."""

CHECKPOINT_ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""Of what a worker writes to its checkpoint at once: a block of orders."""

FORWARD_BYTES_MAX = 1_000_000
"""Of a record that is sent on; with the header that it gets, it fits any segments topic of ours."""

SCHEMA_ID_MAX = 2**31 - 1
"""Of a schema's id in a registry."""

LETTER_BYTES_MAX = 2_000_000
"""Of a dead letter that isn't cut; with its headers it fits any dead-letters topic of ours."""

LETTER_CUT_BYTES = 65_536
"""Of the key and of the value, each, of a dead letter that is cut."""

DETAIL_CHARS_MAX = 500
"""Of the sentence that says why a record is a dead letter."""
