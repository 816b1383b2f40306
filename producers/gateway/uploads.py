"""POST /v1/segments and POST /v1/orders/{number}/segments: segments into Kafka.

The effects of an upload of many orders' segments, in this order:
  1. refuse if too many segments wait for Kafka, of this client or its tenant (429), or in all (503)
  2. read and check everything, leases too. What is wrong with a segment, or with a whole upload,
     gets its verdict; all else goes on
  3. produce the good segments, and wait until it is known what became of each upload
  4. judge what is stored by the broker's time in the acknowledgements, sign a receipt of it, and
     answer 200; or 503 where Kafka has acknowledged nothing at all
Between 3 and 4 a crash leaves segments that their sender doesn't know of. It repeats them, and
the stream processor removes repeats.

The older route takes one order's segments, all or nothing: one wrong segment refuses the request
(422), one that isn't acknowledged too (503).
"""

import logging
from collections.abc import Sequence
from typing import cast

from aiohttp import web

from durabill.producers.gateway.api import (
    SEGMENTS_MAX,
    Receipt,
    SegmentRequest,
    SegmentsAnswer,
    TimeRules,
    check_segments,
    read_segments,
)
from durabill.producers.gateway.authority import Authority
from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.caller import Caller, caller_of
from durabill.producers.gateway.checks import json_answer, read_body
from durabill.producers.gateway.damping import Damper
from durabill.producers.gateway.encode_pass import Encoder, Wanted
from durabill.producers.gateway.kafka import (
    BackendUnavailable,
    Overloaded,
    SegmentProducer,
    answer_to,
)
from durabill.producers.gateway.leases import rules_under
from durabill.producers.gateway.lookup import Lookup, number_of
from durabill.producers.gateway.orders import LEASE_HEADER
from durabill.producers.gateway.pending import PendingUpload
from durabill.producers.gateway.rows import Row
from durabill.producers.gateway.served_clock import Came
from durabill.producers.gateway.upload_shapes import UploadsAnswer, read_uploads
from durabill.schemas import SEGMENT_HEADER, SegmentEvent, encode_segment
from durabill.schemas.upload_receipt import upload_of

log = logging.getLogger(__name__)

CLOCK_WANDER_MS = 1_000
"""How far broker's clocks may differ among each other, or wander until the next acknowledgement."""
CLOCK_OFFSET_TOLD_MS = 2_000


class UploadDesk:
    """Takes segments. Belongs to one event loop."""

    def __init__(
        self,
        authority: Authority,
        publisher: SegmentProducer,
        lookup: Lookup,
        clock: BrokerClock,
        *,
        framing: bytes = SEGMENT_HEADER,
        correction_window_ms: int | None,
        delivery_timeout_ms: int,
    ) -> None:
        self._authority = authority
        self._publisher = publisher
        self._lookup = lookup
        self._clock = clock
        self._correction_window_ms = correction_window_ms
        self._delivery_timeout_ms = delivery_timeout_ms
        self._framing = framing
        self._encoder = Encoder(SEGMENTS_MAX, framing)
        self._damper = Damper(log)

    async def add(self, request: web.Request) -> web.Response:
        """POST /v1/segments"""
        caller, came = caller_of(request), self._authority.clock.came()
        self._authority.quotas.check_segments(caller)  # before anything is read
        return json_answer(await self.take(caller, await read_body(request), came))

    async def take(self, caller: Caller, body: bytes | bytearray, came: Came) -> UploadsAnswer:
        """Take segments of many orders; return what became of each upload. Raises ApiError."""
        authority = self._authority
        asked = read_uploads(body)
        now_ms = int(came.stamp_ms)
        reports = authority.client_reports
        seen = None if asked.client is None else reports.note(caller, asked.client, now_ms)
        rules = self._rules()
        bounds = rules.bounds_ms()
        pending = [PendingUpload(each, rules, bounds) for each in asked.uploads]
        for each in pending:
            each.admit(authority.leases, caller, now_ms)
        self._encode(pending, is_odd=asked.is_odd)
        unopened = {each.number for each in pending if each.delivery and not each.is_leased}
        if unopened:
            authority.quotas.sees(caller, unopened, now_ms)
        await self._deliver(caller, pending)
        stored = [said for each in pending if (said := each.receipt()) is not None]
        receipt = await authority.receipts.sign(caller, stored) if stored else None
        answers = [each.answer() for each in pending]
        if seen is not None:
            reports.settled(caller, seen, sum([each.settled for each in answers]))
        return UploadsAnswer(*authority.clock.stamps(came), uploads=answers, receipt=receipt)

    def _encode(self, pending: Sequence[PendingUpload], *, is_odd: bool) -> None:
        """Have the good segments of all uploads encoded, and what is wrong with the others said."""
        if is_odd:
            for each in pending:
                each.sift()
        try:
            encoded = self._encoder.encode([each.wanted() for each in pending])
        except TypeError:  # numbers written as floats, or beyond 64 bits
            for each in pending:
                each.sift()
            encoded = self._encoder.encode([each.wanted() for each in pending])
        for each, found in zip(pending, encoded, strict=True):
            each.take(found)

    async def _deliver(self, caller: Caller, pending: Sequence[PendingUpload]) -> None:
        """Have Kafka store what is good, and judge it; raise ApiError where it stores nothing."""
        deliveries = [each.delivery for each in pending if each.delivery is not None]
        if not deliveries:
            return
        with (
            _AS_ANSWERS,
            self._authority.quotas.segments(caller, sum([len(each.values) for each in deliveries])),
        ):
            await self._publisher.deliver(deliveries)
            if not any(each.is_stored for each in deliveries):
                raise self._publisher.told(deliveries[0].error)
        self._watch_clock()
        for each in pending:
            delivery = each.delivery
            if delivery is None:
                continue
            if not delivery.is_stored:
                each.note_not_stored(str(self._publisher.told(delivery.error)))
                continue
            each.judge()
            self._stored(caller, each.number, has_end=each.encoded.has_end)

    async def add_of_one(self, request: web.Request) -> web.Response:
        """POST /v1/orders/{number}/segments"""
        authority, caller = self._authority, caller_of(request)
        came = authority.clock.came()
        authority.quotas.check_segments(caller)  # before anything is read
        number = number_of(request)
        token, now_ms = request.headers.get(LEASE_HEADER), int(came.stamp_ms)
        lease = authority.leases.check(token, number, caller, now_ms)
        rules = rules_under(lease, self._rules())
        requests = read_segments(await read_body(request))
        segments, values = self._checked(number, requests, rules)
        if lease is None:
            authority.quotas.sees(caller, {number}, now_ms)
        with _AS_ANSWERS, authority.quotas.segments(caller, len(values)):
            stored = await self._publisher.publish(number.encode(), values)
        self._watch_clock()
        has_end = any(segment.end_identifier for segment in segments)
        self._stored(caller, number, has_end=has_end)
        numbers = [int(segment.business_data_number) for segment in segments]
        receipts = [
            Receipt(number, at.partition, at.offset, at.append_ms)
            for number, at in zip(numbers, stored, strict=True)
        ]
        results = rules.judge_all(segments, [at.append_ms for at in stored])
        accepted = len(results) - [each.counts for each in results].count(False)
        answer = SegmentsAnswer(accepted, receipts, results)
        places = stored[0].offset, stored[-1].offset
        said = upload_of(number, stored[0].partition, places, numbers, values)
        answer.receipt = await authority.receipts.sign(caller, [said])
        answer.received_ms, answer.sent_ms, answer.clock_id = authority.clock.stamps(came)
        return json_answer(answer)

    def _checked(
        self, number: str, requests: Sequence[SegmentRequest], rules: TimeRules
    ) -> tuple[Sequence[SegmentEvent], Sequence[bytes]]:
        """Return the segments and their records; raise ApiError(400, 422) if one is wrong.

        Of good ones, as they were sent: they have the same fields.
        """
        rows = [
            (each.business_data_number, each.start_ms, each.end_ms, each.end_identifier)
            for each in requests
            if each.service_order_number is None or each.service_order_number == number
        ]
        if len(rows) == len(requests):
            try:
                wanted = Wanted(number.encode(), cast(list[Row], rows), *rules.bounds_ms())
                encoded = self._encoder.encode([wanted])[0]
            except TypeError:
                pass
            else:
                if not encoded.wrong:
                    return cast(Sequence[SegmentEvent], requests), encoded.values
        segments = check_segments(number, requests, rules)
        return segments, [encode_segment(segment, self._framing) for segment in segments]

    def _stored(self, caller: Caller, number: str, *, has_end: bool) -> None:
        self._lookup.note_stored(number, caller.tenant)
        if has_end:
            self._authority.quotas.ended(caller, number, self._authority.clock.now_ms())

    def _rules(self) -> TimeRules:
        """Return the rules about times as of now, with what is known of the broker's clock."""
        window_ms, tick_ms = self._correction_window_ms, self._clock.tick_ms()
        now_ms, error_ms = self._clock.at_ms(tick_ms), self._clock.error_at_ms(tick_ms)
        if error_ms is None:
            return TimeRules.at_any_time(window_ms, now_ms)
        error_ms += CLOCK_WANDER_MS
        # It may take until the delivery's timeout to arrive, and be the less early then.
        return TimeRules(window_ms, now_ms, error_ms + self._delivery_timeout_ms, error_ms)

    def _watch_clock(self) -> None:
        offset_ms = self._clock.offset_ms()
        if offset_ms is not None and abs(offset_ms) > CLOCK_OFFSET_TOLD_MS:
            text = "this machine's clock is %d ms %s the broker's, which counts; set it right"
            side = "behind" if offset_ms > 0 else "ahead of"
            self._damper.warning("clock", text, abs(offset_ms), side)


class _Unavailable:
    """Turns what Kafka's producer raises into answers."""

    def __enter__(self) -> None:
        """Nothing is held."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Overloaded | BackendUnavailable):
            raise answer_to(error) from error


_AS_ANSWERS = _Unavailable()
