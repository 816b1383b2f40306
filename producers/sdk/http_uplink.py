"""The way from a client to the server over HTTP, to a gateway.

`uplink` says what all ways have in common. Nothing of Kafka is imported here.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    read_grant,
    read_refusal,
    read_renewed,
    read_time,
    read_total_is_out,
)
from durabill.producers.sdk.bounded_http import BoundedHttp
from durabill.producers.sdk.http_segments import (
    BUSY_STATUS,
    SegmentSender,
    not_ours,
    quote_order_number,
    unexpected,
)
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Grant,
    OrderTerms,
    SendNotes,
    SendResult,
    UplinkUnavailable,
)
from durabill.producers.sdk.uploads import segment_fields
from durabill.schemas import SegmentEvent

__all__ = ["Headers", "HttpUplink", "quote_order_number", "segment_fields"]

log = logging.getLogger(__name__)

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Headers, or what returns them as of now: a token that is renewed, for one."""

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
        if self._key and self._http.is_plain:
            log.warning("%s: the API key goes there unencrypted, use https", self._http.base_url)
        self._headers = headers or {}
        if not callable(self._headers):
            checked(self._headers)
        self._segments = SegmentSender(
            self._http.base_url, lambda path, body, more: self._call("POST", path, body, None, more)
        )

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
            raise not_ours(self._http.base_url, path, answer, error) from error

    def renew(
        self, service_order_number: str, lease: str, *, timeout_s: float | None = None
    ) -> OrderTerms:
        """Ask the gateway for an order's lease anew."""
        path = f"/v1/orders/{quote_order_number(service_order_number)}/lease"
        answer = self._asked("POST", path, {}, timeout_s, {"lease": lease})
        try:
            return read_renewed(answer, service_order_number)
        except NotOurs as error:
            raise not_ours(self._http.base_url, path, answer, error) from error

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask the gateway for its time."""
        answer = self._asked("GET", "/v1/time", None, timeout_s)
        try:
            return read_time(answer)
        except NotOurs as error:
            raise not_ours(self._http.base_url, "/v1/time", answer, error) from error

    def total_is_out(self, service_order_number: str, *, timeout_s: float | None = None) -> bool:
        """Ask the gateway whether an order's total is out. It asks for the scope `read`."""
        path = f"/v1/orders/{quote_order_number(service_order_number)}"
        answer = self._asked("GET", f"{path}?limit=1", None, timeout_s)
        try:
            return read_total_is_out(answer, service_order_number)
        except NotOurs as error:
            raise not_ours(self._http.base_url, path, answer, error) from error

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        """Post segments, of all orders in one request; in several where they are too many."""
        return self._segments.send(segments, notes)

    def close(self) -> None:
        """Close the connections; a request that is under way fails at once."""
        self._http.close()

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
        is_final = 400 <= answer.status < 500 and answer.status not in BUSY_STATUS
        if refusal is not None and is_final:
            raise refusal
        raise unexpected(self._http.base_url, path, answer, UplinkUnavailable)

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


def checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers that HTTP can carry; the error names them without their values."""
    for name, value in headers.items():
        if not _is_header(name) or ":" in name or not _is_header(value):
            raise ValueError(f"the header {name[:50]!r} has a name or value that HTTP can't carry")
    return headers


def _is_header(text: str) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and bool(text)
