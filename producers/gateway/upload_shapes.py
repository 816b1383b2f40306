"""POST /v1/segments: the shapes of requests and answers, and how a request is read.

A request in the form that clients write is read by a pass of its own, see `read_pass`; any other of
the contract's shape by one typed decoder. One that hasn't is read again with its parts left as they
are, so that only the segment that is wrong is set aside: nobody's batch
hangs on one segment. What can't be told apart by segments (no JSON, an upload without a number) is
refused as a whole.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

from durabill.producers.gateway.api import SEGMENTS_MAX, number_shown, shape_error, unreadable
from durabill.producers.gateway.client_reports import ClientReport
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.read_pass import read_rows
from durabill.schemas.text import plain

Number = int | float
Compact = tuple[Number, Number, Number, bool]
"""A segment in short: [business_data_number, start_ms, end_ms, end_identifier]."""


class UploadSegment(Struct, forbid_unknown_fields=True, gc=False):
    """One segment of business data: the half-open time sequence [start_ms, end_ms).

    Whole numbers may be written as 2 or 2.0: to JSON they are the same.
    """

    business_data_number: Annotated[
        Number,
        Meta(description="1, 2, 3 ... within the order", extra_json_schema={"minimum": 1}),
    ]
    start_ms: Annotated[
        Number,
        Meta(description="server time, ms since the epoch", extra_json_schema={"minimum": 0}),
    ]
    end_ms: Annotated[
        Number,
        Meta(description="from start_ms to 24 h after it", extra_json_schema={"minimum": 0}),
    ]
    end_identifier: Annotated[
        bool, Meta(description="true on the order's last segment, which may be of zero length")
    ]


class Upload(Struct):
    """The segments of one order, each as an object or in short, as a list of its four values."""

    service_order_number: str
    segments: list[UploadSegment | Compact]
    lease: Annotated[str | None, Meta(description="the order's lease")] = None


class UploadRequest(Struct):
    """Segments of many orders; at most 1,000 of them in all, and as many uploads."""

    uploads: Annotated[list[Upload], Meta(extra_json_schema={"maxItems": SEGMENTS_MAX})]
    client: Annotated[
        ClientReport | None,
        Meta(description="how it stands with the client; what can't be read of it is ignored"),
    ] = None


class SegmentVerdict(Struct):
    """What is wrong with one segment; `index` counts from 0, within its upload."""

    index: int
    business_data_number: int
    reason: str
    detail: str
    final: Annotated[
        bool, Meta(description="false: send it again later, it may count then; true: it won't")
    ]
    stored: Annotated[
        bool, Meta(description="whether it is known to be in Kafka; if so it is a dead letter")
    ]


class UploadAnswer(Struct, omit_defaults=True):
    """What became of an upload. A segment that isn't among the errors is stored, and counts.

    The upload's stored segments lie in `partition` from `first_offset` to `last_offset`, in the
    order of the request; records of others may lie between them.
    """

    service_order_number: str
    count: Annotated[int, Meta(description="how many segments it has")]
    stored: Annotated[int, Meta(description="how many of them are known to be in Kafka")]
    partition: int | None = None
    first_offset: int | None = None
    last_offset: int | None = None
    append_ms: Annotated[
        int | None, Meta(description="when the last was appended, by the broker's clock")
    ] = None
    accept_until_ms: Annotated[
        int | None, Meta(description="by the lease: segments may be late until then")
    ] = None
    errors: Sequence[SegmentVerdict] = ()

    @property
    def settled(self) -> int:
        """How many of them its sender needs to keep no longer."""
        return self.count - len([each for each in self.errors if not each.final])


class UploadsAnswer(Struct, omit_defaults=True):
    """What became of each upload, in the order of the request."""

    received_ms: Annotated[float, Meta(description="when the request came, server time")]
    sent_ms: Annotated[float, Meta(description="when this answer goes, server time")]
    clock_id: Annotated[str, Meta(description="another one: the server's clock was set")]
    uploads: list[UploadAnswer]
    receipt: Annotated[
        str | None, Meta(description="signed: what of the request is stored, see docs/http.md")
    ] = None


class BadRow(NamedTuple):
    """A segment that hasn't the contract's shape, and what can be told of it."""

    business_data_number: int
    detail: str


class AskedUpload(NamedTuple):
    """An upload as it was read."""

    number: str
    lease: str | None
    rows: Sequence[Compact | BadRow]


class Asked(NamedTuple):
    """A request as it was read. `is_odd`: some row has not the contract's shape."""

    uploads: list[AskedUpload]
    client: ClientReport | None
    is_odd: bool = False


class _PackedUpload(Struct):
    service_order_number: str
    segments: msgspec.Raw
    lease: str | None = None


class _PackedRequest(Struct):
    uploads: list[_PackedUpload]
    client: ClientReport | None = None


class _LooseUpload(Struct):
    service_order_number: str
    segments: list[msgspec.Raw]
    lease: str | None = None


class _LooseRequest(Struct):
    uploads: list[_LooseUpload]
    client: msgspec.Raw = msgspec.Raw(b"null")


_PACKED = msgspec.json.Decoder(_PackedRequest)
_REQUEST = msgspec.json.Decoder(UploadRequest)
_LOOSE = msgspec.json.Decoder(_LooseRequest)
_SEGMENT: msgspec.json.Decoder[UploadSegment | Compact] = msgspec.json.Decoder(
    UploadSegment | Compact
)
_CLIENT: msgspec.json.Decoder[ClientReport | None] = msgspec.json.Decoder(ClientReport | None)
_NUMBER_AT = "business_data_number"


def read_uploads(body: bytes | bytearray) -> Asked:
    """Return what is asked; raise ApiError(400 or 413) for what isn't of the contract's shape."""
    packed = _read_packed(body)
    if packed is not None:
        return packed
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError:
        return _read_loosely(body)
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    _check_sizes(request.uploads)
    uploads = [
        AskedUpload(
            each.service_order_number,
            each.lease,
            [row if isinstance(row, tuple) else astuple(row) for row in each.segments],
        )
        for each in request.uploads
    ]
    return Asked(uploads, request.client)


def _read_packed(body: bytes | bytearray) -> Asked | None:
    """Return what is asked in the form that clients write, None for any other."""
    try:
        request = _PACKED.decode(body)
    except (ValueError, RecursionError):
        return None
    uploads = request.uploads
    if len(uploads) > SEGMENTS_MAX:
        return None
    rows = read_rows([each.segments for each in uploads], SEGMENTS_MAX)
    if rows is None:
        return None
    asked = [
        AskedUpload(each.service_order_number, each.lease, own)
        for each, own in zip(uploads, rows, strict=True)
    ]
    return Asked(asked, request.client)


def _read_loosely(body: bytes | bytearray) -> Asked:
    try:
        request = _LOOSE.decode(body)
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    _check_sizes(request.uploads)
    uploads = [
        AskedUpload(
            each.service_order_number, each.lease, [_read_row(row) for row in each.segments]
        )
        for each in request.uploads
    ]
    try:
        client = _CLIENT.decode(request.client)
    except (ValueError, RecursionError):
        client = None
    return Asked(uploads, client, is_odd=True)


def _check_sizes(uploads: Sequence[Any]) -> None:
    count = sum([len(each.segments) for each in uploads])
    if count > SEGMENTS_MAX or len(uploads) > SEGMENTS_MAX:
        detail = f"{count} segments in {len(uploads)} uploads; a request has {SEGMENTS_MAX} at most"
        raise ApiError(413, "TOO_MANY_SEGMENTS", detail)


def _read_row(raw: msgspec.Raw) -> Compact | BadRow:
    try:
        row = _SEGMENT.decode(raw)
    except (ValueError, RecursionError) as error:
        return BadRow(_number_in(raw), plain(shape_error(error)))
    return row if isinstance(row, tuple) else astuple(row)


def _number_in(raw: msgspec.Raw) -> int:
    """Return the number of a segment that can't be read, 0 where it has none."""
    try:
        found: Any = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return 0
    number = found.get(_NUMBER_AT) if isinstance(found, dict) else found
    if isinstance(number, list) and number:
        number = number[0]
    if isinstance(number, bool) or not isinstance(number, int | float):
        return 0
    return number_shown(number)
