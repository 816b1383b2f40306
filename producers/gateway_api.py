"""The gateway's contract: shapes of requests and answers, their rules, OpenAPI and its page."""

from collections.abc import Sequence
from html import escape
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from producers.session import SEGMENT_LENGTH_MAX_MS
from schemas import BadRecord, Reason, SegmentEvent, check_order_number

CLOCK_MARGIN_MS = 600_000
"""How far the gateway's clock may be off the broker's. The rules about lateness and the future
speak of the broker's append time, so the gateway refuses only what is beyond this margin as well:
that is certain to become a dead letter, and its sender can still be told."""
FUTURE_MAX_MS = 60_000


def _said(description: str, **bounds: int) -> Meta:
    """Bounds for the description only: `schemas` checks them, with the contract's reasons."""
    return Meta(description=description, extra_json_schema=bounds)


class OrderRequest(Struct, forbid_unknown_fields=True):
    """Ask for a new order. Without a number the gateway makes one up."""

    service_order_number: Annotated[
        str | None,
        _said("no control characters; in UTF-8 at most 64 bytes", minLength=1, maxLength=64),
    ] = None


class OrderGrant(Struct):
    """The server's go: the service begins at this server timestamp."""

    service_order_number: str
    server_timestamp_ms: Annotated[int, Meta(description="ms since the epoch")]
    report_interval_ms: Annotated[int, Meta(description="upload one segment this often")]


class SegmentRequest(Struct, forbid_unknown_fields=True):
    """One segment of business data: the half-open time sequence [start_ms, end_ms)."""

    business_data_number: Annotated[int, _said("1, 2, 3 ... within the order", minimum=1)]
    start_ms: Annotated[int, _said("server time, ms since the epoch", minimum=0)]
    end_ms: Annotated[int, _said("from start_ms to 24 h after it", minimum=0)]
    end_identifier: Annotated[
        bool, Meta(description="true on the order's last segment, which may be of zero length")
    ]
    service_order_number: Annotated[
        str | None, Meta(description="if given, the same as in the path")
    ] = None


class Receipt(Struct):
    """Where Kafka keeps a segment, acknowledged by all in-sync replicas."""

    business_data_number: int
    partition: int
    offset: int
    append_ms: Annotated[
        int | None, Meta(description="the broker's time; null where the topic has another time")
    ]


class SegmentsAnswer(Struct):
    """All segments of the request are in Kafka."""

    accepted: int
    receipts: list[Receipt]


class ServerTime(Struct):
    """The server's time, ms since the epoch."""

    server_timestamp_ms: int


class OrderAnswer(Struct):
    """An order: the interval table of the worker that owns it, and its latest total."""

    service_order_number: str
    live: Annotated[
        dict[str, Any] | None, Meta(description="phase, intervals, duration_ms ...; of the worker")
    ] = None
    total: Annotated[
        dict[str, Any] | None, Meta(description="the latest OrderTotal, of the ledger")
    ] = None
    total_unavailable: Annotated[
        str | None, Meta(description="why the ledger couldn't be asked for the total")
    ] = None


class Health(Struct):
    """The gateway runs, or is ready to take segments."""

    status: str


class ErrorBody(Struct):
    """What went wrong: `reason` is for programs, `detail` for people."""

    reason: str
    detail: str
    status: int


class ItemError(Struct):
    """What is wrong with one segment of the request; `index` counts from 0."""

    index: int
    business_data_number: int
    reason: str
    detail: str


class ErrorAnswer(Struct, omit_defaults=True):
    """Every answer from 400 on. `errors` is there where single segments break the rules."""

    error: ErrorBody
    errors: list[ItemError] = []


class ApiError(Exception):
    """An answer from 400 on; `retry_after_s` where a later try may succeed."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        errors: Sequence[ItemError] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.answer = ErrorAnswer(ErrorBody(reason, detail, status), list(errors))
        self.status = status
        self.retry_after_s = retry_after_s


Segments = SegmentRequest | Annotated[list[SegmentRequest], Meta(min_length=1)]
_ORDER = msgspec.json.Decoder(OrderRequest)
_SEGMENTS: msgspec.json.Decoder[SegmentRequest | list[SegmentRequest]] = msgspec.json.Decoder(
    Segments
)


def read_order(body: bytes) -> OrderRequest:
    """Return the request for an order (an empty body will do); raise ApiError(400 or 422)."""
    try:
        request = _ORDER.decode(body) if body.strip() else OrderRequest()
    except ValueError as error:
        raise _unreadable(error) from error
    if request.service_order_number is not None:
        check_number(request.service_order_number)
    return request


def read_segments(body: bytes) -> list[SegmentRequest]:
    """Return the one or many segments of a request; raise ApiError(400)."""
    try:
        segments = _SEGMENTS.decode(body)
    except ValueError as error:
        raise _unreadable(error) from error
    return segments if isinstance(segments, list) else [segments]


def _unreadable(error: ValueError) -> ApiError:
    reason = "BAD_SHAPE" if isinstance(error, msgspec.ValidationError) else "BAD_JSON"
    return ApiError(400, reason, str(error))


def check_number(number: str) -> None:
    """Raise ApiError(422, BAD_ORDER_NUMBER) for an order number against the contract."""
    try:
        check_order_number(number)
    except BadRecord as error:
        raise ApiError(422, error.reason, error.detail) from error


def check_segments(
    number: str,
    requests: Sequence[SegmentRequest],
    *,
    now_ms: int,
    correction_window_ms: int | None,
) -> list[SegmentEvent]:
    """Return the segments of order `number`, or raise ApiError(422) with what is wrong with each.

    The rules are the stream processor's, in its order, as far as they are certain already:
    IN_THE_FUTURE and TOO_LATE (the latter only with a known correction window) depend on the
    broker's append time, and are refused here from CLOCK_MARGIN_MS beyond; what is nearer is
    let through, for the processor to judge.
    """
    segments: list[SegmentEvent] = []
    errors: list[ItemError] = []
    for index, request in enumerate(requests):
        try:
            segment = _segment(number, request)
            _check_times(segment, now_ms, correction_window_ms)
            segments.append(segment)
        except BadRecord as bad:
            errors.append(ItemError(index, request.business_data_number, bad.reason, bad.detail))
    if errors:
        detail = f"{len(errors)} of {len(requests)} segments break the rules; nothing was stored"
        raise ApiError(422, "BAD_SEGMENTS", detail, errors=errors)
    return segments


def _segment(number: str, request: SegmentRequest) -> SegmentEvent:
    if request.service_order_number not in (None, number):
        detail = f"service_order_number is {request.service_order_number!r}, not the path's"
        raise BadRecord(Reason.KEY_MISMATCH, detail)
    return SegmentEvent(
        number,
        request.business_data_number,
        request.start_ms,
        request.end_ms,
        request.end_identifier,
    )


def _check_times(segment: SegmentEvent, now_ms: int, correction_window_ms: int | None) -> None:
    ahead_ms = segment.end_ms - now_ms
    if ahead_ms > FUTURE_MAX_MS + CLOCK_MARGIN_MS:
        raise BadRecord(Reason.IN_THE_FUTURE, f"ends {ahead_ms} ms after the server's time")
    length_ms = segment.end_ms - segment.start_ms
    if length_ms > SEGMENT_LENGTH_MAX_MS:
        raise BadRecord(Reason.TOO_LONG, f"is {length_ms} ms long, at most 24 h are allowed")
    if correction_window_ms is not None and -ahead_ms > correction_window_ms + CLOCK_MARGIN_MS:
        raise BadRecord(Reason.TOO_LATE, f"ended {-ahead_ms} ms before the server's time")


_SHAPES = (
    OrderRequest,
    OrderGrant,
    SegmentRequest,
    SegmentsAnswer,
    ServerTime,
    OrderAnswer,
    Health,
    ErrorAnswer,
    Segments,
)
_NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "the service order number, percent-encoded",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64},
}


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the gateway."""
    schemas, components = msgspec.json.schema_components(
        _SHAPES, ref_template="#/components/schemas/{name}"
    )
    one_or_many = schemas[-1]
    order = {
        "post": _operation(
            "startOrder",
            "Start a service: order number, server timestamp, report interval",
            {201: "OrderGrant", 400: "ErrorAnswer", 413: "ErrorAnswer", 422: "ErrorAnswer"},
            body={"$ref": "#/components/schemas/OrderRequest"},
            body_required=False,
        )
    }
    one = {
        "parameters": [_NUMBER],
        "get": _operation(
            "getOrder",
            "The order's live interval table, or its total",
            {200: "OrderAnswer", 404: "ErrorAnswer", 422: "ErrorAnswer", 503: "ErrorAnswer"},
        ),
    }
    answers = {200: "SegmentsAnswer"} | dict.fromkeys((400, 413, 422, 503), "ErrorAnswer")
    segments = {
        "parameters": [_NUMBER],
        "post": _operation(
            "addSegments",
            "Upload one or many segments: all or nothing, answered when Kafka has acknowledged",
            answers,
            body=one_or_many,
        ),
    }
    time = _operation("getTime", "The server's time", {200: "ServerTime"})
    live = _operation("getHealth", "Is the process well?", {200: "Health", 503: "ErrorAnswer"})
    ready = _operation("getReadiness", "Is Kafka there?", {200: "Health", 503: "ErrorAnswer"})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Durabill gateway",
            "version": "1",
            "description": "Takes the segments of metered services and gives their totals.",
        },
        "paths": {
            "/v1/orders": order,
            "/v1/orders/{number}": one,
            "/v1/orders/{number}/segments": segments,
            "/v1/time": {"get": time},
            "/healthz": {"get": live},
            "/readyz": {"get": ready},
        },
        "components": {"schemas": components},
    }


_STATUS_TEXTS = {
    200: "done",
    201: "made",
    400: "the body can't be read",
    404: "no such order",
    413: "the body is too large",
    422: "the body breaks the rules, nothing was stored",
    503: "not now, see Retry-After",
}


def _operation(
    name: str,
    summary: str,
    answers: dict[int, str],
    *,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    responses = {
        str(status): {
            "description": _STATUS_TEXTS[status],
            "content": content({"$ref": f"#/components/schemas/{shape}"}),
        }
        for status, shape in answers.items()
    }
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": body_required, "content": content(body)}
    return operation


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
code, pre {{ font: 14px/1.4 ui-monospace, monospace }}
pre {{ background: #8882; padding: .7rem; overflow: auto }}
h2 b {{ text-transform: uppercase; font-size: .8em; color: #05a }}
</style></head><body><h1>{title}</h1><p>{description} Machines read
<a href="openapi.json">openapi.json</a>.</p>{operations}<h1>Shapes</h1>{shapes}</body></html>
"""


def docs_page() -> str:
    """Return a self-contained HTML page that shows `openapi()`: it loads nothing from anywhere."""
    document = openapi()
    operations = [
        f"<h2><b>{method}</b> <code>{escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + _listed(operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]
    shapes = [
        f'<h3 id="{name}">{name}</h3><pre>{_pretty(shape)}</pre>'
        for name, shape in document["components"]["schemas"].items()
    ]
    info = document["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        description=escape(info["description"]),
        operations="".join(operations),
        shapes="".join(shapes),
    )


def _listed(operation: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    asked = f"<p>Body:</p><pre>{_pretty(body['content'])}</pre>" if body else ""
    items = []
    for status, response in operation["responses"].items():
        ref = response["content"]["application/json"]["schema"]["$ref"]
        name = ref.rpartition("/")[2]
        items.append(f'<li>{status}: {response["description"]}, <a href="#{name}">{name}</a></li>')
    return f"{asked}<ul>{''.join(items)}</ul>"


def _pretty(value: object) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
