"""POST /v1/segments: segments of many orders in one request, and what is said of each. Pure.

An answer counts as a whole or not at all: as many uploads as were sent, of the same orders, in the
same sequence, each with as many segments, and with counts that its errors bear out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from durabill.producers.sdk.answers import HttpAnswer, NotOurs, decoded
from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS, ServerStamps
from durabill.producers.sdk.uplink import (
    ClientReport,
    OrderFailed,
    SendResult,
    UplinkRefused,
    WillNotCount,
)
from durabill.schemas import SegmentEvent

RECEIPT_CHARS_MAX = 1_000_000
LEASE_REASONS = {"LEASE_MISSING", "LEASE_INVALID", "LEASE_EXPIRED"}
"""What a new lease mends: it is asked for, and the segments are sent again."""
_NEVER_FINAL = {*LEASE_REASONS, "LEASE_OF_ANOTHER"}
"""Whatever a server says: its operator may have changed the keys, and puts it right again."""


class _Error(msgspec.Struct):
    index: int
    business_data_number: int
    reason: str
    detail: str
    final: bool
    stored: bool


class _Upload(msgspec.Struct):
    service_order_number: str
    count: int
    stored: int
    accept_until_ms: int | None = None
    errors: list[_Error] = []


class _Answer(msgspec.Struct):
    received_ms: float
    sent_ms: float
    clock_id: str
    uploads: list[_Upload]
    receipt: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The segments of one order in a request, by their index among all that are sent."""

    number: str
    indices: list[int]


def grouped(segments: Sequence[SegmentEvent], indices: Sequence[int]) -> list[Group]:
    """Return the segments by order, in the sequence in which the orders come first."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(segments[index].service_order_number, []).append(index)
    return [Group(number, found) for number, found in groups.items()]


def body_of(
    segments: Sequence[SegmentEvent],
    groups: Sequence[Group],
    leases: Mapping[str, str],
    report: ClientReport | None,
) -> bytes:
    """Return a request's body."""
    uploads = [
        {
            "service_order_number": group.number,
            **({"lease": lease} if (lease := leases.get(group.number)) else {}),
            "segments": [_in_short(segments[index]) for index in group.indices],
        }
        for group in groups
    ]
    body: dict[str, object] = {"uploads": uploads}
    if report is not None:
        body["client"] = {
            "name": report.name,
            "pending": report.pending,
            "oldest_ms": report.oldest_ms,
            "refused": report.refused,
            "clock_bound_ms": report.clock_bound_ms,
            "suspends": report.suspends,
        }
    return msgspec.json.encode(body)


def _in_short(segment: SegmentEvent) -> tuple[int, int, int, bool]:
    """Return a segment as a list of its values: 40 % of the bytes, on the way and to be read."""
    number, start_ms = segment.business_data_number, segment.start_ms
    return number, start_ms, segment.end_ms, segment.end_identifier


def segment_fields(segment: SegmentEvent) -> dict[str, object]:
    """Return a segment as the gateway takes it: its order number is elsewhere in the request."""
    return {
        "business_data_number": segment.business_data_number,
        "start_ms": segment.start_ms,
        "end_ms": segment.end_ms,
        "end_identifier": segment.end_identifier,
    }


def read_uploaded(
    answer: HttpAnswer, segments: Sequence[SegmentEvent], groups: Sequence[Group]
) -> SendResult:
    """Return what became of each segment; raise NotOurs."""
    body = decoded(answer, _Answer)
    said = [each.service_order_number for each in body.uploads]
    if said != [group.number for group in groups]:
        raise NotOurs(f"it speaks of other orders ({len(said)}) than the {len(groups)} sent")
    try:
        stamps = ServerStamps(body.received_ms, body.sent_ms, body.clock_id)
    except ValueError as error:
        raise NotOurs(f"no time: {error}") from error
    if body.receipt is not None and len(body.receipt) > RECEIPT_CHARS_MAX:
        raise NotOurs("a receipt that is too long")
    result = SendResult(stamps=stamps)
    for group, upload in zip(groups, body.uploads, strict=True):
        _read_upload(segments, group, upload, result)
        until_ms = upload.accept_until_ms
        if until_ms is not None and 0 <= until_ms <= TIMESTAMP_MAX_MS:
            result.accept_until_ms[group.number] = until_ms
    result.receipt = body.receipt
    return result


def _read_upload(
    segments: Sequence[SegmentEvent], group: Group, upload: _Upload, result: SendResult
) -> None:
    number, count = group.number, len(group.indices)
    errors = {each.index: each for each in upload.errors}
    lacking = sum(not each.stored for each in upload.errors)
    if (
        upload.count != count
        or upload.stored != count - lacking
        or len(errors) != len(upload.errors)
    ):
        said = f"{upload.count} segments, {upload.stored} stored, {len(errors)} errors"
        raise NotOurs(f"order {number!r}: {said}, {count} sent")
    for at, error in errors.items():
        is_sent = 0 <= at < count
        if not is_sent or segments[group.indices[at]].business_data_number != (
            error.business_data_number
        ):
            raise NotOurs(f"order {number!r}: an error of a segment that wasn't sent")
    for at, index in enumerate(group.indices):
        found = errors.get(at)
        if found is None:
            result.accepted.append(index)
        elif found.final and found.stored:
            result.refused[index] = WillNotCount(found.reason, found.detail)
        elif found.final and found.reason not in _NEVER_FINAL:
            result.refused[index] = UplinkRefused(found.reason, found.detail)
        else:
            if found.reason in LEASE_REASONS:
                result.stale_leases.add(number)
            result.failed[number] = OrderFailed(f"order {number!r}: {found.reason}: {found.detail}")
