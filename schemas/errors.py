"""What can be wrong with a record that somebody sent, and with a total that somebody reads."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a record became a dead letter; checked in this order, the first that holds is given."""

    NOT_AVRO = "NOT_AVRO"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    KEY_MISMATCH = "KEY_MISMATCH"
    BAD_ORDER_NUMBER = "BAD_ORDER_NUMBER"
    BAD_BUSINESS_DATA_NUMBER = "BAD_BUSINESS_DATA_NUMBER"
    BAD_TIME_SEQUENCE = "BAD_TIME_SEQUENCE"
    IN_THE_FUTURE = "IN_THE_FUTURE"
    TOO_LONG = "TOO_LONG"
    TOO_LATE = "TOO_LATE"
    WRONG_PARTITION = "WRONG_PARTITION"
    TOO_FRAGMENTED = "TOO_FRAGMENTED"
    BAD_BATCH = "BAD_BATCH"
    """Not of a record, but of the rest of a batch: from a record on that can't be read."""


class BadRecord(ValueError):
    """The sender's fault: the record breaks the contract for `reason`; `detail` says how."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BadTotal(ValueError):
    """A total that cannot be read, or whose fields contradict each other."""
