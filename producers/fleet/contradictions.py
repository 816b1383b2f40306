"""Holds the log against the plan: whatever was sent must lie, and be judged, as it was meant."""

from collections.abc import Sequence

from durabill.producers.fleet.plan import Fault, OrderPlan, Send
from durabill.producers.fleet.publish import Receipt
from durabill.producers.fleet.truth import FORWARDED_FROM, LogRecord, LogTruth
from durabill.schemas.text import shown


def contradictions(
    records: Sequence[LogRecord],
    truth: LogTruth,
    orders: Sequence[OrderPlan],
    sends: Sequence[Send],
    receipts: Sequence[Receipt],
) -> list[str]:
    """Return what of the log, and of the truth that follows from it, isn't as planned."""
    return [
        *_misplaced(records, sends, receipts),
        *_misjudged(truth, sends, receipts),
        *_unintended(truth, orders),
    ]


def unexplained(
    records: Sequence[LogRecord], receipts: Sequence[Receipt], order_prefix: str
) -> int:
    """Return how many of the fleet's records have no receipt, and are no copies."""
    places = {receipt[:2] for receipt in receipts}
    return sum(
        (record.partition, record.offset) not in places
        and FORWARDED_FROM not in dict(record.headers)
        and (record.key or b"").startswith(order_prefix.encode())
        for record in records
    )


def _misplaced(
    records: Sequence[LogRecord], sends: Sequence[Send], receipts: Sequence[Receipt]
) -> list[str]:
    """Each planned record must lie where its receipt says, and no two at one place."""
    by_place = {(record.partition, record.offset): record for record in records}
    problems = []
    if len({receipt[:2] for receipt in receipts}) != len(sends):
        problems.append("two records have the same receipt")
    for send, receipt in zip(sends, receipts, strict=True):
        record = by_place.get(receipt[:2])
        if record is None or (record.key, record.value) != (send.key, send.value):
            problems.append(
                f"{receipt}: not the record of {shown(send.order_number)} that was sent"
            )
        elif record.append_ms != receipt.append_ms:
            problems.append(f"{receipt}: appended at {record.append_ms} by the log")
    return problems


def _misjudged(truth: LogTruth, sends: Sequence[Send], receipts: Sequence[Receipt]) -> list[str]:
    """Garbage must be rejected for its reason, all else accepted or sent on."""
    rejected = {letter[1:]: letter.reason for letter in truth.dead_letters}
    problems = []
    for send, receipt in zip(sends, receipts, strict=True):
        got = rejected.get(receipt[:2])
        if got is not send.expected:
            what = f"{shown(send.order_number)} {send.kind or send.segment}"
            problems.append(f"{receipt}: {what} is judged {got}, planned as {send.expected}")
        sent_on = b"%d/%d" % receipt[:2] in truth.sent_on
        if sent_on != (send.fault is Fault.WRONG_PARTITION):
            problems.append(f"{receipt}: {shown(send.order_number)} lies in an unplanned partition")
    return problems


def _unintended(truth: LogTruth, orders: Sequence[OrderPlan]) -> list[str]:
    """Each order must come to what was intended, unless a copy of its records is still due."""
    problems = []
    all_forwarded = truth.sent_on <= truth.forwarded
    for order in orders:
        if not all_forwarded and Fault.WRONG_PARTITION in order.faults:
            continue
        intended = order.intended()
        last = truth.totals.get(order.number, [None])[-1]
        if (intended is None) != (last is None):
            problems.append(f"{shown(order.number)}: intended {intended}, got {last}")
        elif intended is not None and last is not None:
            got: Sequence[object] = [getattr(last, name) for name in intended._fields]
            if got != list(intended):
                problems.append(f"{shown(order.number)}: intended {intended}, got {got}")
    return problems
