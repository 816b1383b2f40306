"""The way from a client to the server over HTTP, to a gateway.

`uplink` says what all ways have in common. Nothing of Kafka is imported here.

Segments of many orders go in one request (`uploads`). A gateway of an older version doesn't know
that route (404 or 405): then each order gets a request of its own, and if that is answered in the
contract's form, it is so for the next minutes. A body that is too large for somebody on the way
(413, whoever says it) is halved, and so is a request that is refused as a whole (422): a bad
segment is set aside by itself, never its batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    has_item_errors,
    read_grant,
    read_refusal,
    read_refused,
    read_renewed,
    read_stamps,
    read_stored,
    read_time,
)
from durabill.producers.sdk.bounded_http import BoundedHttp
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Grant,
    OrderFailed,
    OrderTerms,
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

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Headers, or what returns them as of now: a token that is renewed, for one."""

REQUEST_SEGMENTS_MAX = 1_000
REQUEST_BYTES_MAX = 512 * 1024
_UPLOADS = "/v1/segments"
_BUSY_STATUS = {408, 425, 429, 503}  # "not now", whoever is asked for
_FAILED_ORDERS_MAX = 3  # in a row; so many are no coincidence, so the server itself is at fault
_OLD_GATEWAY_S = 300.0  # until the route of many orders is tried again
_JSON = {
    "content-type": "application/json",
    "accept": "application/json",
    "cache-control": "no-store",  # a time from a cache would be taken for a step
}


class HttpUplink:
    """Segments to a gateway over HTTP.

    `gateway_url` as in `http://host:port`; a path may follow. `timeout_s` bounds one request in
    all: look-up of the name, connecting, sending and the whole answer. It should be longer than
    the gateway's own wait for Kafka. `api_key` is a key or token for `Authorization: Bearer`;
    `headers` are sent with each request. Where they come from a callable it is asked for each
    request, from any thread, and once more after a 401. `ca_file` holds the certificates that are
    trusted in place of the system's. What is said of a segment for good is taken from answers in
    the contract's form alone (200 and 422, see `answers`); after any other (a proxy's, say) it
    waits and is sent again. Raises ValueError for a URL, a timeout or headers that can't be meant,
    OSError for a `ca_file` that can't be read.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        timeout_s: float = 15.0,
        api_key: str | None = None,
        headers: Headers | None = None,
        ca_file: str | Path | None = None,
    ) -> None:
        self._http = BoundedHttp(gateway_url, timeout_s=timeout_s, headers=_JSON, ca_file=ca_file)
        self._key = {} if api_key is None else checked({"authorization": f"Bearer {api_key}"})
        self._headers = headers or {}
        if not callable(self._headers):
            checked(self._headers)
        self._old_until_s = float("-inf")

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask the gateway for a new order, with the given number or one of the gateway's."""
        return self.start_once("", service_order_number, timeout_s=timeout_s)

    def start_once(
        self, key: str, service_order_number: str | None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask as `start` does; with the same `key` it is the same order, however often."""
        path, body = "/v1/orders", {"service_order_number": service_order_number}
        extra = {"idempotency-key": key} if key else None
        answer = self._asked("POST", path, body, timeout_s, extra)
        try:
            return read_grant(answer, service_order_number)
        except NotOurs as error:
            raise self._not_ours(path, answer, error) from error

    def renew(
        self, service_order_number: str, lease: str, *, timeout_s: float | None = None
    ) -> OrderTerms:
        """Ask the gateway for an order's lease anew."""
        path = f"/v1/orders/{quote_order_number(service_order_number)}/lease"
        answer = self._asked("POST", path, {}, timeout_s, {"lease": lease})
        try:
            return read_renewed(answer, service_order_number)
        except NotOurs as error:
            raise self._not_ours(path, answer, error) from error

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask the gateway for its time."""
        answer = self._asked("GET", "/v1/time", None, timeout_s)
        try:
            return read_time(answer)
        except NotOurs as error:
            raise self._not_ours("/v1/time", answer, error) from error

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
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

    def close(self) -> None:
        """Close the connections; a request that is under way fails at once."""
        self._http.close()

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
        answer = self._call("POST", _UPLOADS, body)
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
                raise self._not_ours(_UPLOADS, answer, error) from error
            self._take(part, notes, result)
        elif is_about_all(answer):
            raise self._unexpected(_UPLOADS, answer, UplinkUnavailable)
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
            result.failed[group.number] = self._unexpected(_UPLOADS, answer, OrderFailed)

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
        answer = self._call("POST", path, body, extra={"lease": lease} if lease else None)
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
                raise self._not_ours(path, answer, error, OrderFailed) from error
            accepted = [index for at, index in enumerate(group.indices) if at not in refused]
        else:
            found, accepted = read_refused(answer, sent), []
            if found is None:
                refusal = read_refusal(answer)
                if refusal is not None and refusal.reason in LEASE_REASONS:
                    result.stale_leases.add(group.number)
                kind = UplinkUnavailable if answer.status in _BUSY_STATUS else OrderFailed
                raise self._unexpected(path, answer, kind)
            refused = found
        by_index = {group.indices[at]: why for at, why in refused.items()}
        self._take(SendResult(accepted, by_index), notes, result)

    def _asked(
        self,
        method: str,
        path: str,
        body: object,
        timeout_s: float | None,
        extra: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        content = None if body is None else msgspec.json.encode(body)
        answer = self._call(method, path, content, timeout_s, extra)
        if 200 <= answer.status < 300:
            return answer
        refusal = read_refusal(answer)
        is_final = 400 <= answer.status < 500 and answer.status not in _BUSY_STATUS
        if refusal is not None and is_final:
            raise refusal
        raise self._unexpected(path, answer, UplinkUnavailable)

    def _call(
        self,
        method: str,
        path: str,
        content: bytes | None,
        timeout_s: float | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        answer = self._call_once(method, path, content, timeout_s, extra)
        if answer.status == 401 and callable(self._headers):  # it may know a newer token by now
            left_s = None if until_s is None else until_s - time.monotonic()
            answer = self._call_once(method, path, content, left_s, extra)
        return answer

    def _call_once(
        self,
        method: str,
        path: str,
        content: bytes | None,
        timeout_s: float | None,
        extra: Mapping[str, str] | None,
    ) -> HttpAnswer:
        given = self._headers
        if callable(given):
            try:
                given = checked(given())
            except Exception as error:  # its words may hold a secret
                said = f"headers: the callable failed with {type(error).__name__}"
                raise UplinkUnavailable(f"{self._http.base_url}: {said}") from None
        headers = {**self._key, **given, **(extra or {})}
        return self._http.call(method, path, content, timeout_s=timeout_s, headers=headers)

    def _unexpected(
        self, path: str, answer: HttpAnswer, kind: type[UplinkUnavailable]
    ) -> UplinkUnavailable:
        said = f"status {answer.status}"
        if answer.location is not None and 300 <= answer.status < 400:
            said += f", a redirect to {answer.location[:200]!r}, which is not followed"
        if (refusal := read_refusal(answer)) is not None:
            said += f", {refusal}"
        return kind(f"{self._http.base_url}{path}: {said}", answer.retry_after_s)

    def _not_ours(
        self,
        path: str,
        answer: HttpAnswer,
        error: NotOurs,
        kind: type[UplinkUnavailable] = UplinkUnavailable,
    ) -> UplinkUnavailable:
        said = f"status {answer.status}, but no answer of a gateway: {error}"
        return kind(f"{self._http.base_url}{path}: {said}", answer.retry_after_s)


def quote_order_number(number: str) -> str:
    """Return an order number as one URL path segment: nothing in it has a meaning in a path."""
    quoted = quote(number, safe="")
    return quoted.replace(".", "%2E") if number in (".", "..") else quoted


def is_about_all(answer: HttpAnswer) -> bool:
    """Tell whether an answer that isn't 200 is surely about more than single orders."""
    is_ours = answer.status == 403 and read_refusal(answer) is not None
    return answer.status < 400 or answer.status in {401, *_BUSY_STATUS} or is_ours


def checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers that HTTP can carry; the error names them without their values."""
    for name, value in headers.items():
        if not _is_header(name) or ":" in name or not _is_header(value):
            raise ValueError(f"the header {name[:50]!r} has a name or value that HTTP can't carry")
    return headers


def _is_header(text: str) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and bool(text)
