"""Requests as the contract has them, read without anything of the gateway's code. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from durabill.producers.conformance.exchange import Sent
from durabill.schemas import BadRecord, SegmentEvent

SEGMENTS_MAX = 1_000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_ONE_ORDER = re.compile(r"/v1/orders/([^/]+)/(segments|lease)")


class Bad(ValueError):
    """A request of another form than the contract's; `status` as a gateway answers it."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/orders."""

    service_order_number: str | None = None
    service: str | None = None
    attributes: dict[str, str] | None = None


_Whole = int | float
"""A whole number, which JSON may have as 2 or as 2.0."""


class _Segment(msgspec.Struct, forbid_unknown_fields=True):
    business_data_number: _Whole
    start_ms: _Whole
    end_ms: _Whole
    end_identifier: bool
    service_order_number: str | None = None


_InShort = tuple[_Whole, _Whole, _Whole, bool]
"""A segment as a list of its four values."""


class _Upload(msgspec.Struct):
    service_order_number: str
    segments: list[_Segment | _InShort]
    lease: str | None = None


class _Uploads(msgspec.Struct):
    uploads: list[_Upload]
    client: Any = None


class Upload(NamedTuple):
    """The segments of one order, and the lease that was shown for it."""

    order: str
    lease: str | None
    segments: tuple[Sent, ...]


class Request(NamedTuple):
    """An upload as it was read. `is_single`: by the route for one order."""

    uploads: tuple[Upload, ...]
    is_single: bool
    has_report: bool


def bearer_of(authorization: str) -> str:
    """Return the token of an Authorization, "" where it has none; the scheme is of any case."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def one_order(path: str) -> bool:
    """Tell whether a path is an order's own, where it is asked how it stands."""
    return re.fullmatch(r"/v1/orders/[^/]+", path) is not None


def order_in(path: str) -> tuple[str, str] | None:
    """Return (order number, what of it) of a path below an order's; None for other paths."""
    found = _ONE_ORDER.fullmatch(path)
    return None if found is None else (unquote(found[1]), found[2])


def check_head(headers: Mapping[str, str]) -> None:
    """Raise Bad for a body that isn't said to be JSON, or that is packed."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Bad(415, "CONTENT_TYPE", f"content-type {kind!r}, application/json expected")
    if headers.get("content-encoding", "identity") != "identity":
        raise Bad(415, "CONTENT_ENCODING", "a body with a content encoding")


def check_key(key: str | None) -> None:
    """Raise Bad for an Idempotency-Key that a gateway doesn't take."""
    if key is not None and not _KEY.fullmatch(key):
        raise Bad(400, "BAD_IDEMPOTENCY_KEY", "it has 1 to 255 visible ASCII characters")


def read_start(body: bytes) -> Start:
    """Return the body of a start, which may be empty; raise Bad."""
    return _decoded(body, Start) if body.strip() else Start()


def read_single(order: str, lease: str | None, body: bytes) -> Request:
    """Return an upload to the route for one order: one segment, or a list; raise Bad."""
    found = _decoded(body, _Segment | list[_Segment])
    segments = found if isinstance(found, list) else [found]
    if not segments:
        raise Bad(400, "BAD_SHAPE", "an upload without a segment")
    return Request((_upload(order, lease, segments),), is_single=True, has_report=False)


def read_uploads(body: bytes) -> Request:
    """Return an upload to the route for many orders; raise Bad."""
    found = _decoded(body, _Uploads)
    uploads = tuple(
        _upload(each.service_order_number, each.lease, each.segments) for each in found.uploads
    )
    if sum(len(each.segments) for each in uploads) > SEGMENTS_MAX:
        raise Bad(413, "TOO_MANY_SEGMENTS", f"more than {SEGMENTS_MAX} segments")
    return Request(uploads, is_single=False, has_report=isinstance(found.client, dict))


def _upload(order: str, lease: str | None, segments: Sequence[_Segment | _InShort]) -> Upload:
    sent = []
    for each in segments:
        if isinstance(each, tuple):
            each = _Segment(*each)
        if each.service_order_number not in (None, order):
            raise Bad(422, "KEY_MISMATCH", "a segment of another order than its upload's")
        known = Sent(
            order,
            _whole(each.business_data_number),
            _whole(each.start_ms),
            _whole(each.end_ms),
            each.end_identifier,
        )
        try:
            SegmentEvent(*known)
        except BadRecord as error:
            raise Bad(422, error.reason, error.detail) from error
        sent.append(known)
    return Upload(order, lease, tuple(sent))


def _whole(number: _Whole) -> int:
    if number != int(number):
        raise Bad(400, "BAD_SHAPE", f"{number} is no whole number")
    return int(number)


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except (ValueError, RecursionError) as error:
        raise Bad(400, "BAD_SHAPE", str(error)) from error
