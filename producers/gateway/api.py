"""The gateway's contract: shapes of requests and answers, and their rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from durabill.producers.gateway.problems import ApiError, ItemError, refusal
from durabill.schemas import BadRecord, Reason, SegmentEvent, check_order_number
from durabill.schemas.limits import (
    ARRIVES_FROM_MS,
    ARRIVES_UNTIL_MS,
    ATTRIBUTES_MAX,
    FUTURE_TOLERANCE_MS,
    LONG_MAX,
    SEGMENT_LENGTH_MAX_MS,
)
from durabill.schemas.order_state import OrderState
from durabill.schemas.text import plain
from durabill.schemas.units import refused_time, unit_hint

SEGMENTS_MAX = 1_000
DETAIL_CHARS_MAX = 200
ERRORS_MAX = 20
"""Of a request's wrong segments so many are listed: a wrong body must not cost more than a right
one. The answer has the count of all."""
_EXACT_MAX = 2.0**53  # greater whole numbers may have been rounded by whoever wrote them as floats

NO_CONTROLS = r"^[^\u0000-\u001f\u007f-\u009f]*$"


def _told(description: str, **bounds: Any) -> Meta:
    """Bounds for the description only: `schemas` checks them, with the contract's reasons."""
    return Meta(description=description, extra_json_schema=bounds)


_RECEIVED = "the server's time when the request had come, ms since the epoch"
_SENT = "the server's time when the answer went, ms since the epoch"
_CLOCK_ID = "of the scale of these times: where it is another, the server's clock has stepped"


class OrderRequest(Struct, forbid_unknown_fields=True):
    """Ask for a new order. Without a number the gateway makes one up.

    Where clients say who they are, a number of their own gets their tenant and a colon in front.
    """

    service_order_number: (
        Annotated[
            str,
            _told(
                "no control characters; in UTF-8 at most 64 bytes",
                minLength=1,
                maxLength=64,
                pattern=NO_CONTROLS,
            ),
        ]
        | None
    ) = None
    service: (
        Annotated[str, _told("what is billed; in UTF-8 at most 64 bytes", pattern=NO_CONTROLS)]
        | None
    ) = None
    attributes: (
        Annotated[
            dict[str, str],
            _told("whatever else is to be known of it; of names 64 bytes, of values 256"),
            Meta(extra_json_schema={"maxProperties": ATTRIBUTES_MAX}),
        ]
        | None
    ) = None


class OrderGrant(Struct):
    """The server's go: the service begins at this server timestamp. Kafka has the opening.

    A start that is repeated gets the timestamp of the first one; the stamps are of this answer.
    """

    service_order_number: str
    server_timestamp_ms: Annotated[int, Meta(description="ms since the epoch")]
    report_interval_ms: Annotated[int, Meta(description="upload one segment this often")]
    accept_until_ms: Annotated[
        int, Meta(description="until then no segment of it is too late, however old it is")
    ]
    correction_window_ms: Annotated[
        int | None,
        Meta(description="so old a segment may be afterwards; null where nobody knows"),
    ]
    lease: Annotated[str, Meta(description="show it with each upload")]
    lease_expires_ms: Annotated[int, Meta(description="renew it before")]
    received_ms: Annotated[float, _told(_RECEIVED)] = 0.0
    sent_ms: Annotated[float, _told(_SENT)] = 0.0
    clock_id: Annotated[str, _told(_CLOCK_ID)] = ""


class SegmentRequest(Struct, forbid_unknown_fields=True):
    """One segment of business data: the half-open time sequence [start_ms, end_ms).

    Whole numbers may be written as 2 or 2.0: to JSON they are the same.
    """

    business_data_number: Annotated[int | float, _told("1, 2, 3 ... within the order", minimum=1)]
    start_ms: Annotated[int | float, _told("server time, ms since the epoch", minimum=0)]
    end_ms: Annotated[int | float, _told("from start_ms to 24 h after it", minimum=0)]
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


class SegmentResult(Struct):
    """Whether a stored segment counts, by the broker's time when it was appended.

    One that doesn't will be a dead letter for `reason`, and sending it again won't help while
    that holds. Other dead letters (a fragmented order's, say) only the stream processor can tell.
    """

    business_data_number: int
    counts: bool = True
    reason: Annotated[str | None, Meta(description="IN_THE_FUTURE or TOO_LATE")] = None
    detail: str | None = None


class SegmentsAnswer(Struct):
    """All segments of the request are in Kafka; both lists are in the order of the request."""

    accepted: Annotated[int, Meta(description="how many of them count")]
    receipts: list[Receipt]
    segments: list[SegmentResult]
    receipt: Annotated[
        str | None, Meta(description="signed, for third parties; see GET /v1/receipt-keys")
    ] = None
    received_ms: Annotated[float, _told(_RECEIVED)] = 0.0
    sent_ms: Annotated[float, _told(_SENT)] = 0.0
    clock_id: Annotated[str, _told(_CLOCK_ID)] = ""


class ServerTime(Struct):
    """The server's time, ms since the epoch, as the request came and as the answer went."""

    server_timestamp_ms: int
    received_ms: Annotated[float, _told(_RECEIVED)]
    sent_ms: Annotated[float, _told(_SENT)]
    clock_id: Annotated[str, _told(_CLOCK_ID)]


class OrderAnswer(Struct):
    """An order: the interval table of the worker that owns it, and its latest total."""

    service_order_number: str
    live: Annotated[
        OrderState | None,
        Meta(description="the interval table of the order's worker, a page of it"),
    ] = None
    live_unknown: Annotated[
        str | None,
        Meta(description="why no worker could say, or be sure; `total` may be out of date then"),
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


Segments = (
    SegmentRequest
    | Annotated[
        list[SegmentRequest],
        Meta(min_length=1, extra_json_schema={"maxItems": SEGMENTS_MAX}),
    ]
)
_ORDER = msgspec.json.Decoder(OrderRequest)
_SEGMENTS: msgspec.json.Decoder[SegmentRequest | list[SegmentRequest]] = msgspec.json.Decoder(
    Segments
)


def read_order(body: bytes | bytearray) -> OrderRequest:
    """Return the request for an order (an empty body will do); raise ApiError(400 or 422)."""
    try:
        request = _ORDER.decode(body) if body.strip() else OrderRequest()
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    if request.service_order_number is not None:
        check_number(request.service_order_number)
    return request


def read_segments(body: bytes | bytearray) -> list[SegmentRequest]:
    """Return the one or many segments of a request; raise ApiError(400 or 413)."""
    try:
        segments = _SEGMENTS.decode(body)
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    if not isinstance(segments, list):
        return [segments]
    if len(segments) > SEGMENTS_MAX:
        detail = f"{len(segments)} segments; a request has at most {SEGMENTS_MAX}"
        raise ApiError(413, "TOO_MANY_SEGMENTS", detail)
    return segments


def unreadable(error: ValueError | RecursionError) -> ApiError:
    """Return the answer for a body that is no JSON, or not of the contract's shape."""
    reason = "BAD_SHAPE" if isinstance(error, msgspec.ValidationError) else "BAD_JSON"
    return ApiError(400, reason, shape_error(error))


def shape_error(error: ValueError | RecursionError) -> str:
    """Return what is wrong, cut to a size: it may repeat a name of a field that isn't ours."""
    return str(error)[-DETAIL_CHARS_MAX:]


def check_number(number: str) -> None:
    """Raise ApiError(422, BAD_ORDER_NUMBER) for an order number against the contract."""
    try:
        check_order_number(number)
    except BadRecord as error:
        raise refusal(error) from error


class Bounds(NamedTuple):
    """What a segment's times must be within: start_ms >= the first, end_ms between the others.

    All are included. A segment within may still not count, by its arrival; one outside never does.
    """

    earliest_start_ms: int
    earliest_end_ms: int
    latest_end_ms: int


@dataclass(frozen=True, slots=True)
class TimeRules:
    """The rules that speak of a record's arrival, before and after it is known.

    Beforehand it is some time from `now_ms` - `late_margin_ms` to `now_ms` + `early_margin_ms`.
    Without a `correction_window_ms` nothing is TOO_LATE as far as we know. Of an order that is
    known to be opened, nothing begins before `opened_ms`, nor is TOO_LATE that arrives until
    `accept_until_ms`, unless it ended before `oldest_ms`.
    """

    correction_window_ms: int | None
    now_ms: int
    early_margin_ms: int = 0
    late_margin_ms: int = 0
    opened_ms: int = 0
    accept_until_ms: int = -1
    oldest_ms: int = 0

    @classmethod
    def at_any_time(cls, correction_window_ms: int | None, now_ms: int) -> "TimeRules":
        """Return the rules while nobody knows what time it is; `now_ms` is for the texts.

        The rules about lateness and the future speak of the broker's append time. While that isn't
        known of late, only what can't count at any time is refused beforehand (seconds and
        microseconds, say); all else goes to Kafka, whose acknowledgement judges it, and teaches
        the time.
        """
        early_ms, late_ms = ARRIVES_UNTIL_MS - now_ms, now_ms - ARRIVES_FROM_MS
        return cls(correction_window_ms, now_ms, early_ms, late_ms)

    def bounds_ms(self) -> Bounds:
        """Return what may count, whenever the segment arrives."""
        window_ms, arrives_ms = self.correction_window_ms, self.now_ms - self.late_margin_ms
        is_late = window_ms is not None and arrives_ms > self.accept_until_ms
        earliest_ms = arrives_ms - window_ms if is_late and window_ms is not None else 0
        latest_ms = self.now_ms + FUTURE_TOLERANCE_MS + self.early_margin_ms
        return Bounds(self.opened_ms, max(earliest_ms, self.oldest_ms), latest_ms)

    def check(self, segment: SegmentEvent) -> None:
        """Raise BadRecord for a segment that is certain not to count, whenever it arrives."""
        opened_ms, earliest_ms, latest_ms = self.bounds_ms()
        ahead_ms = segment.end_ms - self.now_ms
        times_ms = segment.start_ms, segment.end_ms
        if segment.end_ms > latest_ms:
            detail = f"ends {ahead_ms} ms after the server's time"
            raise refused_time(Reason.IN_THE_FUTURE, detail, *times_ms)
        length_ms = segment.end_ms - segment.start_ms
        if length_ms > SEGMENT_LENGTH_MAX_MS:
            detail = f"is {length_ms} ms long, at most 24 h are allowed"
            raise refused_time(Reason.TOO_LONG, detail, *times_ms)
        if segment.end_ms < earliest_ms:
            detail = f"ended {-ahead_ms} ms before the server's time"
            raise refused_time(Reason.TOO_LATE, detail, *times_ms)
        if segment.start_ms < opened_ms:
            detail = f"starts {opened_ms - segment.start_ms} ms before its order was opened"
            raise refused_time(Reason.BEFORE_OPENING, detail, *times_ms)

    def judge_all(
        self, segments: Sequence[SegmentEvent], appends_ms: Sequence[int | None]
    ) -> list[SegmentResult]:
        """Return of each segment whether it counts, by its arrival (None: nobody knows)."""
        known_ms = [each for each in appends_ms if each is not None]
        ends_ms = [segment.end_ms for segment in segments]
        window_ms = self.correction_window_ms
        if not known_ms or (
            max(ends_ms) - min(known_ms) <= FUTURE_TOLERANCE_MS
            and (window_ms is None or max(known_ms) - min(ends_ms) <= window_ms)
        ):
            return [SegmentResult(segment.business_data_number) for segment in segments]
        return [self.judge(*each) for each in zip(segments, appends_ms, strict=True)]

    def judge(self, segment: SegmentEvent, append_ms: int | None) -> SegmentResult:
        """Return whether a segment counts that arrived at `append_ms` (None: nobody knows)."""
        result = SegmentResult(segment.business_data_number)
        if append_ms is None:
            return result
        ahead_ms = segment.end_ms - append_ms
        if ahead_ms > FUTURE_TOLERANCE_MS:
            result.counts, result.reason = False, Reason.IN_THE_FUTURE
            allowed = f"{FUTURE_TOLERANCE_MS} are allowed"
            result.detail = f"ends {ahead_ms} ms after it arrived, {allowed}"
        elif self._is_late(-ahead_ms, append_ms):
            result.counts, result.reason = False, Reason.TOO_LATE
            allowed_ms = self.correction_window_ms
            result.detail = f"ended {-ahead_ms} ms before it arrived, {allowed_ms} are allowed"
        return result

    def _is_late(self, age_ms: int, append_ms: int) -> bool:
        window_ms = self.correction_window_ms
        return window_ms is not None and age_ms > window_ms and append_ms > self.accept_until_ms


def check_segments(
    number: str, requests: Sequence[SegmentRequest], rules: TimeRules
) -> list[SegmentEvent]:
    """Return the segments of order `number`, or raise ApiError(422) with what is wrong with each.

    The rules are the stream processor's, in its order, as far as they are certain already.
    """
    segments: list[SegmentEvent] = []
    errors: list[ItemError] = []
    opened_ms, earliest_ms, latest_ms = rules.bounds_ms()
    longest_ms = SEGMENT_LENGTH_MAX_MS
    for index, request in enumerate(requests):
        try:
            segment = segment_of(number, index, request)
            start_ms, end_ms = segment.start_ms, segment.end_ms
            if (
                not earliest_ms <= end_ms <= latest_ms
                or end_ms - start_ms > longest_ms
                or start_ms < opened_ms
            ):
                rules.check(segment)
            segments.append(segment)
        except BadRecord as bad:
            shown = number_shown(request.business_data_number)
            detail = plain(bad.detail)[:DETAIL_CHARS_MAX]
            errors.append(ItemError(index, shown, bad.reason, detail))
    if errors:
        detail = f"{len(errors)} of {len(requests)} segments break the rules; nothing was stored"
        listed = errors[:ERRORS_MAX]
        status = BadRecord.http_status
        raise ApiError(status, "BAD_SEGMENTS", detail, errors=listed, error_count=len(errors))
    return segments


def number_shown(number: float) -> int:
    """Return a number as an answer can hold it."""
    return int(max(-LONG_MAX, min(number, LONG_MAX)))


def segment_of(number: str, index: int, request: SegmentRequest) -> SegmentEvent:
    """Return the segment of order `number` that is asked for.

    Raises BadRecord, and ApiError(400, BAD_SHAPE) for a number that isn't whole.
    """
    if request.service_order_number not in (None, number):
        detail = f"service_order_number is {request.service_order_number!r}, not the path's"
        raise BadRecord(Reason.KEY_MISMATCH, detail[:DETAIL_CHARS_MAX])
    at, start_ms, end_ms = request.business_data_number, request.start_ms, request.end_ms
    # A number of thousands of digits takes long to be shown.
    if not -LONG_MAX <= at <= LONG_MAX:
        sign = "large, the largest" if at > 0 else "small, the first"
        detail = f"is too {sign} number is {LONG_MAX if at > 0 else 1}"
        raise BadRecord(Reason.BAD_BUSINESS_DATA_NUMBER, detail)
    if not (-LONG_MAX <= start_ms <= LONG_MAX and -LONG_MAX <= end_ms <= LONG_MAX):
        raise BadRecord(Reason.BAD_TIME_SEQUENCE, _NO_LONG)
    return SegmentEvent(
        number,
        at if type(at) is int else _whole(at, index),
        start_ms if type(start_ms) is int else _whole(start_ms, index, unit_hint(start_ms)),
        end_ms if type(end_ms) is int else _whole(end_ms, index, unit_hint(end_ms)),
        request.end_identifier,
    )


_NO_LONG = "does not fit into 64 bits"


def _whole(value: float, index: int, hint: str = "") -> int:
    where = f"Expected `int`, got `float` ({value!r}) in segment `$[{index}]`"
    if not value.is_integer():
        raise ApiError(400, "BAD_SHAPE", where + hint)
    if abs(value) > _EXACT_MAX:
        raise ApiError(400, "BAD_SHAPE", f"{where}: beyond 2^53 a float isn't exact")
    return int(value)
