"""What a gateway's answers say, and whether they are a gateway's at all. Pure.

Between a client and its gateway there may be anything: a proxy, a captive portal, another
program on the same port. So an answer counts only in the contract's own form (docs/http.md): JSON
by its content type, an object, with the fields of the contract, of their types, and about the very
segments that were sent. Everything else says nothing about a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS, ServerStamps
from durabill.producers.sdk.uplink import Grant, OrderTerms, UplinkRefused, WillNotCount
from durabill.schemas import SegmentEvent
from durabill.schemas.web import PROBLEM

_LEASE_CHARS_MAX = 4_096
_SETTLED = "SETTLED"
_NO_REASON = "WILL_NOT_COUNT"  # where the server doesn't say why
T = TypeVar("T")


class NotOurs(ValueError):
    """An answer that is not of the contract's form: whose it is, nobody knows."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer as it came: `content_type` in lower case, without parameters."""

    status: int
    content_type: str
    body: bytes
    retry_after_s: float | None = None
    location: str | None = None

    @property
    def is_json(self) -> bool:
        """Whether its sender calls it JSON."""
        kind, _, subtype = self.content_type.partition("/")
        return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


class _Grant(msgspec.Struct):
    service_order_number: str
    server_timestamp_ms: int
    report_interval_ms: int
    accept_until_ms: int | None = None
    correction_window_ms: int | None = None
    lease: str | None = None
    lease_expires_ms: int | None = None


class _Stamps(msgspec.Struct):
    """When the request came and when it was answered. Older gateways say one instant or none."""

    received_ms: float | None = None
    sent_ms: float | None = None
    clock_id: str = ""


class _Time(_Stamps, kw_only=True):
    server_timestamp_ms: int


class _Live(msgspec.Struct):
    phase: str


class _Order(msgspec.Struct):
    service_order_number: str
    live: _Live | None = None
    total: dict[str, Any] | None = None


class _Verdict(msgspec.Struct):
    business_data_number: int
    counts: bool
    reason: str | None = None
    detail: str | None = None


class _Stored(msgspec.Struct):
    accepted: int
    segments: list[_Verdict] | None = None


class _ItemError(msgspec.Struct):
    index: int
    business_data_number: int
    reason: str
    detail: str


class _Refusal(msgspec.Struct):
    status: int
    reason: str
    detail: str
    errors: list[_ItemError] = []


def read_grant(answer: HttpAnswer, wanted_number: str | None) -> Grant:
    """Return the grant for an order; raise NotOurs for anything else, nonsense included."""
    body = decoded(answer, _Grant)
    try:
        grant = Grant(
            body.service_order_number,
            body.server_timestamp_ms,
            body.report_interval_ms,
            _terms(body),
            read_stamps(answer),
        )
    except ValueError as error:
        raise NotOurs(f"no grant: {error}") from error
    # With authentication on, the full number begins with the tenant's name.
    number = grant.service_order_number
    is_wanted = wanted_number is None or number.endswith(f":{wanted_number}")
    if not is_wanted and number != wanted_number:
        raise NotOurs(f"a grant for {grant.service_order_number!r}, not for {wanted_number!r}")
    return grant


def read_renewed(answer: HttpAnswer, number: str) -> OrderTerms:
    """Return what a renewal of the order's lease gave; raise NotOurs for anything else."""
    grant = read_grant(answer, None)
    if grant.service_order_number != number or not grant.terms.lease:
        raise NotOurs(f"no lease for {number!r}")
    return grant.terms


def _terms(body: _Grant) -> OrderTerms:
    times_ms = (body.accept_until_ms, body.lease_expires_ms, body.correction_window_ms)
    if any(each is not None and not 0 <= each <= TIMESTAMP_MAX_MS for each in times_ms):
        raise ValueError(f"times of a lease are {times_ms}")
    lease = body.lease or ""
    if len(lease) > _LEASE_CHARS_MAX or not lease.isascii() or not (lease + "x").isprintable():
        raise ValueError("a lease that is no header's value")
    return OrderTerms(lease, body.lease_expires_ms, body.accept_until_ms, body.correction_window_ms)


def read_time(answer: HttpAnswer) -> ServerStamps:
    """Return the server's time; raise NotOurs."""
    body = decoded(answer, _Time)
    received_ms = body.server_timestamp_ms if body.received_ms is None else body.received_ms
    sent_ms = received_ms if body.sent_ms is None else body.sent_ms
    try:
        return ServerStamps(received_ms, sent_ms, body.clock_id)
    except ValueError as error:
        raise NotOurs(f"no time: {error}") from error


def read_total_is_out(answer: HttpAnswer, number: str) -> bool:
    """Tell whether an order's total is out, and no other is to come yet; raise NotOurs."""
    body = decoded(answer, _Order)
    if body.service_order_number != number:
        raise NotOurs(f"it speaks of another order than {number!r}")
    return body.total is not None if body.live is None else body.live.phase == _SETTLED


def read_stamps(answer: HttpAnswer) -> ServerStamps | None:
    """Return what an answer says of the server's time; None where it says nothing of sense."""
    try:
        body = decoded(answer, _Stamps)
        if body.received_ms is None or body.sent_ms is None:
            return None
        return ServerStamps(body.received_ms, body.sent_ms, body.clock_id)
    except ValueError:
        return None


def read_stored(answer: HttpAnswer, sent: Sequence[SegmentEvent]) -> dict[int, WillNotCount]:
    """Return which of the segments, by index, the server has though they will not count.

    All of `sent` are stored then. A gateway that says nothing about single segments means that
    all of them count. Raises NotOurs.
    """
    body = decoded(answer, _Stored)
    verdicts = body.segments
    if verdicts is None:
        verdicts = [_Verdict(each.business_data_number, counts=True) for each in sent]
    numbers = [each.business_data_number for each in verdicts]
    if numbers != [each.business_data_number for each in sent]:
        raise NotOurs(f"it speaks of {len(numbers)} segments, not of the {len(sent)} sent")
    counting = sum(each.counts for each in verdicts)
    if body.accepted != counting:
        raise NotOurs(f"{body.accepted} accepted, {counting} expected of {len(sent)} sent")
    return {
        index: WillNotCount(
            each.reason or _NO_REASON, each.detail or "stored, but it will be a dead letter"
        )
        for index, each in enumerate(verdicts)
        if not each.counts
    }


def read_refusal(answer: HttpAnswer) -> UplinkRefused | None:
    """Return a refusal of a whole request in the contract's form, None where it is none."""
    body = _refusal(answer)
    return None if body is None else UplinkRefused(body.reason, body.detail)


def read_refused(
    answer: HttpAnswer, sent: Sequence[SegmentEvent]
) -> dict[int, UplinkRefused] | None:
    """Return which of the segments, by index, a 422 refuses for good; None if it isn't ours.

    Without a word about single segments it refuses all of them.
    """
    body = _refusal(answer)
    if body is None or answer.status != 422:
        return None
    refused: dict[int, UplinkRefused] = {}
    for each in body.errors:
        is_sent = 0 <= each.index < len(sent)
        if not is_sent or sent[each.index].business_data_number != each.business_data_number:
            return None
        refused.setdefault(each.index, UplinkRefused(each.reason, each.detail))
    whole = UplinkRefused(body.reason, body.detail)
    return refused or dict.fromkeys(range(len(sent)), whole)


def has_item_errors(answer: HttpAnswer) -> bool:
    """Tell whether a refusal in the contract's form speaks of single segments."""
    body = _refusal(answer)
    return body is not None and bool(body.errors)


def _refusal(answer: HttpAnswer) -> _Refusal | None:
    if answer.content_type != PROBLEM:
        return None
    try:
        body = decoded(answer, _Refusal)
    except NotOurs:
        return None
    return body if body.status == answer.status else None


def decoded(answer: HttpAnswer, shape: type[T]) -> T:
    """Return an answer in JSON of this shape; raise NotOurs for anything else."""
    if not answer.is_json:
        raise NotOurs(f"its content type is {answer.content_type or 'missing'}, not JSON")
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (ValueError, RecursionError) as error:
        raise NotOurs(f"not of the contract's form: {error}") from error
