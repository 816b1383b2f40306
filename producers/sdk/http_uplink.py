"""The way from a client to the server over HTTP, to a gateway.

`uplink` says what all ways have in common. Nothing of Kafka is imported here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    read_grant,
    read_refusal,
    read_refused,
    read_stamps,
    read_stored,
    read_time,
)
from durabill.producers.sdk.bounded_http import BoundedHttp
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.uplink import (
    Grant,
    OrderFailed,
    SendResult,
    UplinkRefused,
    UplinkUnavailable,
)
from durabill.schemas import SegmentEvent

_BUSY_STATUS = {408, 425, 429, 503}  # "not now", whoever is asked for
_FAILED_ORDERS_MAX = 3  # in a row; so many are no coincidence, so the server itself is at fault


class HttpUplink:
    """Segments to a gateway over HTTP.

    `gateway_url` as in `http://host:port`; a path may follow. `timeout_s` bounds one request in
    all: look-up of the name, connecting, sending and the whole answer. It should be longer than
    the gateway's own wait for Kafka. What is said of a segment for good is taken from answers in
    the contract's form alone (200 and 422, see `answers`); after any other (a proxy's, say) it
    waits and is sent again. Raises ValueError for a URL or a timeout that can't be meant.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        timeout_s: float = 15.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        json_headers = {"content-type": "application/json", "accept": "application/json"}
        self._http = BoundedHttp(
            gateway_url, timeout_s=timeout_s, headers={**json_headers, **(headers or {})}
        )

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask the gateway for a new order, with the given number or one of the gateway's."""
        path, body = "/v1/orders", {"service_order_number": service_order_number}
        answer = self._asked("POST", path, body, timeout_s)
        try:
            return read_grant(answer, service_order_number)
        except NotOurs as error:
            raise self._not_ours(path, answer, error) from error

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask the gateway for its time."""
        answer = self._asked("GET", "/v1/time", None, timeout_s)
        try:
            return read_time(answer)
        except NotOurs as error:
            raise self._not_ours("/v1/time", answer, error) from error

    def send(self, segments: Sequence[SegmentEvent]) -> SendResult:
        """Post segments, one request for each run of segments of one order."""
        result = SendResult()
        in_a_row = 0
        for number, indices in _runs(segments):
            if number in result.failed:
                continue
            try:
                self._post(number, segments, indices, result)
                in_a_row = 0
            except OrderFailed as problem:
                result.failed[number] = problem
                in_a_row += 1
                if in_a_row == _FAILED_ORDERS_MAX:
                    result.problem = problem
                    break
            except UplinkUnavailable as problem:
                result.problem = problem
                break
        return result

    def close(self) -> None:
        """Close the connections; a request that is under way fails at once."""
        self._http.close()

    def _post(
        self,
        number: str,
        segments: Sequence[SegmentEvent],
        indices: Sequence[int],
        result: SendResult,
    ) -> None:
        path = f"/v1/orders/{quote_order_number(number)}/segments"
        sent = [segments[index] for index in indices]
        answer = self._call("POST", path, [segment_fields(each) for each in sent])
        result.stamps = read_stamps(answer) or result.stamps
        if answer.status == 413 and len(indices) > 1:  # whoever says so: each half by itself
            half = len(indices) // 2
            self._post(number, segments, indices[:half], result)
            self._post(number, segments, indices[half:], result)
            return
        if answer.status == 200:
            try:
                refused: Mapping[int, UplinkRefused] = read_stored(answer, sent)
            except NotOurs as error:
                raise self._not_ours(path, answer, error, OrderFailed) from error
            result.accepted += [each for at, each in enumerate(indices) if at not in refused]
        else:
            found = read_refused(answer, sent)
            if found is None:
                kind = UplinkUnavailable if answer.status in _BUSY_STATUS else OrderFailed
                raise self._unexpected(path, answer, kind)
            refused = found
        result.refused.update({indices[at]: why for at, why in refused.items()})

    def _asked(self, method: str, path: str, body: object, timeout_s: float | None) -> HttpAnswer:
        answer = self._call(method, path, body, timeout_s)
        if 200 <= answer.status < 300:
            return answer
        refusal = read_refusal(answer)
        is_final = 400 <= answer.status < 500 and answer.status not in _BUSY_STATUS
        if refusal is not None and is_final:
            raise refusal
        raise self._unexpected(path, answer, UplinkUnavailable)

    def _call(
        self, method: str, path: str, body: object, timeout_s: float | None = None
    ) -> HttpAnswer:
        content = None if body is None else json.dumps(body).encode()
        return self._http.call(method, path, content, timeout_s=timeout_s)

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


def segment_fields(segment: SegmentEvent) -> dict[str, Any]:
    """Return a segment as the gateway takes it: its order number is in the path."""
    return {
        "business_data_number": segment.business_data_number,
        "start_ms": segment.start_ms,
        "end_ms": segment.end_ms,
        "end_identifier": segment.end_identifier,
    }


def quote_order_number(number: str) -> str:
    """Return an order number as one URL path segment: nothing in it has a meaning in a path."""
    quoted = quote(number, safe="")
    return quoted.replace(".", "%2E") if number in (".", "..") else quoted


def _runs(segments: Sequence[SegmentEvent]) -> Iterator[tuple[str, list[int]]]:
    indices = range(len(segments))
    for number, run in groupby(indices, key=lambda index: segments[index].service_order_number):
        yield number, list(run)
