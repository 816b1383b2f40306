"""Segments over HTTP: which requests are made of them, and what each answer means for them.

Segments of many orders go in one request (`uploads`). A gateway of an older version doesn't know
that route (404 or 405): then each order gets a request of its own, and if that is answered in the
contract's form, it is so for the next minutes. A body that is too large for somebody on the way
(413, whoever says it) is halved, and so is a request that is refused as a whole (400, 422): a bad
segment is set aside by itself, never its batch. An answer that is neither yes nor "later" may be
about one order, so some orders are sent alone before the server itself is taken to be at fault.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

import msgspec

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    has_item_errors,
    read_refusal,
    read_refused,
    read_stamps,
    read_stored,
)
from durabill.producers.sdk.uplink import (
    OrderFailed,
    SendNotes,
    SendResult,
    UplinkRefused,
    UplinkUnavailable,
)
from durabill.producers.sdk.uploads import (
    LEASE_REASONS,
    Group,
    body_of,
    grouped,
    read_uploaded,
    segment_fields,
)
from durabill.schemas import SegmentEvent
from durabill.schemas.records import comes_later

REQUEST_SEGMENTS_MAX = 1_000
REQUEST_BYTES_MAX = 512 * 1024
BUSY_STATUS = {408, 425, 429, 503}  # "not now", whoever is asked for
_UPLOADS = "/v1/segments"
_FAILED_ORDERS_MAX = 3  # in a row; so many are no coincidence, so the server itself is at fault
_OLD_GATEWAY_S = 300.0  # until the route of many orders is tried again

Post = Callable[[str, bytes, Mapping[str, str]], HttpAnswer]
"""Posts a body to a path, with headers; raises UplinkUnavailable."""


class SegmentSender:
    """Sends segments to one gateway by `post`; `base_url` is what errors call it."""

    def __init__(self, base_url: str, post: Post) -> None:
        self._base_url = base_url
        self._call = post
        self._old_until_s = float("-inf")

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes) -> SendResult:
        """Post segments, of all orders in one request; in several where they are too many."""
        result = SendResult()
        for first in range(0, len(segments), REQUEST_SEGMENTS_MAX):
            indices = range(first, min(first + REQUEST_SEGMENTS_MAX, len(segments)))
            try:
                if time.monotonic() < self._old_until_s:
                    self._post_each(segments, indices, notes, result)
                else:
                    self._post(segments, indices, notes, result)
            except UplinkUnavailable as problem:
                result.problem = problem
            if result.problem is not None:
                break
        return result

    def _post(
        self,
        segments: Sequence[SegmentEvent],
        indices: Sequence[int],
        notes: SendNotes,
        result: SendResult,
    ) -> None:
        groups = grouped(segments, indices)
        body = body_of(segments, groups, notes.leases, notes.report)
        if len(body) > REQUEST_BYTES_MAX and len(indices) > 1:
            self._post_halves(segments, indices, notes, result)
            return
        answer = self._call(_UPLOADS, body, {})
        is_wrong = answer.status in (400, 422) and read_refusal(answer) is not None
        if (answer.status == 413 or is_wrong) and len(indices) > 1:
            self._post_halves(segments, indices, notes, result)
        elif answer.status in (404, 405):
            before = len(result.accepted) + len(result.refused)
            self._post_each(segments, indices, notes, result)
            if len(result.accepted) + len(result.refused) > before:
                self._old_until_s = time.monotonic() + _OLD_GATEWAY_S
        elif answer.status == 200:
            try:
                part = read_uploaded(answer, segments, groups)
            except NotOurs as error:
                raise not_ours(self._base_url, _UPLOADS, answer, error) from error
            self._take(part, notes, result)
        elif is_about_all(answer):
            raise unexpected(self._base_url, _UPLOADS, answer, UplinkUnavailable)
        elif len(groups) > 1:
            self._find_failing(segments, groups, notes, result)
        else:
            self._fail(segments, groups[0], answer, result)

    def _fail(
        self,
        segments: Sequence[SegmentEvent],
        group: Group,
        answer: HttpAnswer,
        result: SendResult,
    ) -> None:
        """Note what an answer says of one order that was sent alone."""
        refused = read_refused(answer, [segments[index] for index in group.indices])
        if refused is not None:
            result.refused |= {group.indices[at]: why for at, why in refused.items()}
        else:
            result.failed[group.number] = unexpected(self._base_url, _UPLOADS, answer, OrderFailed)

    def _find_failing(
        self,
        segments: Sequence[SegmentEvent],
        groups: Sequence[Group],
        notes: SendNotes,
        result: SendResult,
    ) -> None:
        """Find the orders that an answer which is neither yes nor later may be about.

        Some are sent alone. If all of those fail, it is no matter of orders.
        """
        for at, group in enumerate(groups):
            self._post(segments, group.indices, notes, result)
            if result.problem is not None:
                return
            if group.number not in result.failed:
                rest = groups[at + 1 :]
                break
            if at + 1 == _FAILED_ORDERS_MAX:
                result.problem = result.failed[group.number]
                return
        else:
            return
        middle = (len(rest) + 1) // 2
        for part in (rest[:middle], rest[middle:]):
            indices = [index for group in part for index in group.indices]
            if indices and result.problem is None:
                self._post(segments, indices, notes, result)

    def _post_halves(
        self,
        segments: Sequence[SegmentEvent],
        indices: Sequence[int],
        notes: SendNotes,
        result: SendResult,
    ) -> None:
        half = len(indices) // 2
        for part in (indices[:half], indices[half:]):
            part = [i for i in part if segments[i].service_order_number not in result.failed]
            if part and result.problem is None:
                self._post(segments, part, notes, result)
            if len(result.failed) >= _FAILED_ORDERS_MAX and not (result.accepted or result.refused):
                result.problem = next(iter(result.failed.values()))

    def _take(self, part: SendResult, notes: SendNotes, result: SendResult) -> None:
        result.add(part)
        if notes.settled is not None:
            notes.settled(part)

    def _post_each(
        self,
        segments: Sequence[SegmentEvent],
        indices: Sequence[int],
        notes: SendNotes,
        result: SendResult,
    ) -> None:
        """Post one request for each order."""
        in_a_row = 0
        for group in grouped(segments, indices):
            if group.number in result.failed:
                continue
            try:
                self._post_one(segments, group, notes, result)
                in_a_row = 0
            except OrderFailed as problem:
                result.failed[group.number] = problem
                in_a_row += 1
                if in_a_row == _FAILED_ORDERS_MAX:
                    result.problem = problem
                    break

    def _post_one(
        self, segments: Sequence[SegmentEvent], group: Group, notes: SendNotes, result: SendResult
    ) -> None:
        path = f"/v1/orders/{quote_order_number(group.number)}/segments"
        sent = [segments[index] for index in group.indices]
        body = msgspec.json.encode([segment_fields(each) for each in sent])
        lease = notes.leases.get(group.number)
        answer = self._call(path, body, {"lease": lease} if lease else {})
        result.stamps = read_stamps(answer) or result.stamps
        is_whole = answer.status == 422 and read_refusal(answer) and not has_item_errors(answer)
        if (answer.status == 413 or is_whole) and len(sent) > 1:  # whoever says so
            half = len(sent) // 2
            for part in (group.indices[:half], group.indices[half:]):
                self._post_one(segments, Group(group.number, part), notes, result)
            return
        if answer.status == 200:
            try:
                refused: Mapping[int, UplinkRefused] = read_stored(answer, sent)
            except NotOurs as error:
                raise not_ours(self._base_url, path, answer, error, OrderFailed) from error
            accepted = [index for at, index in enumerate(group.indices) if at not in refused]
        else:
            found, accepted = read_refused(answer, sent), []
            if found is None:
                refusal = read_refusal(answer)
                if refusal is not None and refusal.reason in LEASE_REASONS:
                    result.stale_leases.add(group.number)
                kind = UplinkUnavailable if answer.status in BUSY_STATUS else OrderFailed
                raise unexpected(self._base_url, path, answer, kind)
            refused = found
        by_index = {group.indices[at]: why for at, why in refused.items()}
        for index in [at for at, why in by_index.items() if _comes_later(why, segments[at])]:
            result.failed[group.number] = OrderFailed(str(by_index.pop(index)))
        self._take(SendResult(accepted, by_index), notes, result)


def unexpected(
    base_url: str, path: str, answer: HttpAnswer, kind: type[UplinkUnavailable]
) -> UplinkUnavailable:
    """Return what to say of an answer that is neither yes nor a refusal."""
    said = f"status {answer.status}"
    if answer.location is not None and 300 <= answer.status < 400:
        said += f", a redirect to {answer.location[:200]!r}, which is not followed"
    if (refusal := read_refusal(answer)) is not None:
        said += f", {refusal}"
    return kind(f"{base_url}{path}: {said}", answer.retry_after_s)


def not_ours(
    base_url: str,
    path: str,
    answer: HttpAnswer,
    error: NotOurs,
    kind: type[UplinkUnavailable] = UplinkUnavailable,
) -> UplinkUnavailable:
    """Return what to say of a good answer that is none of a gateway's."""
    said = f"status {answer.status}, but no answer of a gateway: {error}"
    return kind(f"{base_url}{path}: {said}", answer.retry_after_s)


def quote_order_number(number: str) -> str:
    """Return an order number as one URL path segment: nothing in it has a meaning in a path."""
    quoted = quote(number, safe="")
    return quoted.replace(".", "%2E") if number in (".", "..") else quoted


def is_about_all(answer: HttpAnswer) -> bool:
    """Tell whether an answer that isn't 200 is surely about more than single orders."""
    is_ours = answer.status == 403 and read_refusal(answer) is not None
    return answer.status < 400 or answer.status in {401, *BUSY_STATUS} or is_ours


def _comes_later(why: UplinkRefused, segment: SegmentEvent) -> bool:
    return comes_later(why.reason, segment.start_ms, segment.end_ms)
