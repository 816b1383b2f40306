"""The ways from a client to the server: over HTTP to a gateway, or straight into Kafka.

`uplink` says what they have in common.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    Message,
    Producer,
)

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    read_grant,
    read_refusal,
    read_refused,
    read_stored,
    read_time,
)
from durabill.producers.sdk.bounded_http import BoundedHttp
from durabill.producers.sdk.uplink import (
    Grant,
    OrderFailed,
    SendResult,
    Uplink,
    UplinkRefused,
    UplinkUnavailable,
    WillNotCount,
)
from durabill.schemas import PARTITIONER, SEGMENTS_TOPIC, Reason, SegmentEvent, encode_segment
from durabill.schemas.limits import FUTURE_TOLERANCE_MS

KafkaConfig = Mapping[str, str]
"""librdkafka client configuration: `bootstrap.servers` and, where needed, security settings."""

_BUSY_STATUS = {408, 425, 429, 503}  # "not now", whoever is asked for
_FAILED_ORDERS_MAX = 3  # in a row; so many are no coincidence, so the server itself is at fault
_REFUSED_BY_BROKER = (  # only these speak of the record itself; the rest is worth a retry
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
)


def producer_config(
    kafka: KafkaConfig, *, delivery_timeout_ms: int, linger_ms: int = 5
) -> dict[str, str | int | float | bool]:
    """Return the full configuration of a Kafka producer of segments.

    The caller's settings pass through, except those that decide about loss or place.
    """
    return {
        **kafka,
        # An acknowledgement is our promise to the client, so it needs every in-sync replica.
        "acks": "all",
        # Retries inside librdkafka neither reorder nor repeat records: less to remove later.
        "enable.idempotence": True,
        # An order lives in the partition where Java's murmur2 puts it, see schemas.partitioner.
        "partitioner": PARTITIONER,
        # Tries of one record end here, with an error for the caller, who keeps it and tries
        # again. librdkafka never drops a record in silence before.
        "delivery.timeout.ms": delivery_timeout_ms,
        # A few ms of company make batches; the answer to a client waits for it.
        "linger.ms": linger_ms,
        # The broker's topic must exist with its settings (LogAppendTime, retention).
        "allow.auto.create.topics": False,
    }


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

    def server_time_ms(self, *, timeout_s: float | None = None) -> int:
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


class KafkaUplink:
    """Segments straight into Kafka: acks=all, idempotent, in the partition of the contract.

    Kafka can't say go: `orders` is the uplink (an HttpUplink, usually) that is asked for
    orders and for the time. Without one, `Client.start` and `resume` need explicit
    values. The broker's append times tell which segments will not count: IN_THE_FUTURE, and
    TOO_LATE where the stream processor's correction window is given. Raises KafkaException for
    a wrong configuration.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str = SEGMENTS_TOPIC,
        *,
        orders: Uplink | None = None,
        delivery_timeout_s: float = 30.0,
        correction_window_ms: int | None = None,
    ) -> None:
        self._topic = topic
        self._correction_window_ms = correction_window_ms
        self._orders = orders
        self._delivery_timeout_s = delivery_timeout_s
        self._config = producer_config(kafka, delivery_timeout_ms=int(delivery_timeout_s * 1000))
        self._producer = Producer(self._config)

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask `orders` for a new order; raises UplinkRefused without one."""
        return self._asked().start(service_order_number, timeout_s=timeout_s)

    def server_time_ms(self, *, timeout_s: float | None = None) -> int:
        """Ask `orders` for the time; raises UplinkRefused without one."""
        return self._asked().server_time_ms(timeout_s=timeout_s)

    def send(self, segments: Sequence[SegmentEvent]) -> SendResult:
        """Produce all segments and wait for every delivery report."""
        result = SendResult()
        fatal = False
        numbers = [segment.service_order_number for segment in segments]

        def reported(index: int) -> Callable[[KafkaError | None, Message], None]:
            def on_delivery(error: KafkaError | None, message: Message) -> None:
                nonlocal fatal
                if error is None:
                    in_vain = self._in_vain(segments[index], message)
                    if in_vain is None:
                        result.accepted.append(index)
                    else:
                        result.refused[index] = in_vain
                elif error.code() in _REFUSED_BY_BROKER:
                    result.refused[index] = UplinkRefused(error.name(), error.str())
                else:
                    fatal = fatal or error.fatal()
                    # One partition may be without a leader while the others work.
                    result.failed[numbers[index]] = UplinkUnavailable(f"Kafka: {error.str()}")

            return on_delivery

        for index, segment in enumerate(segments):
            try:
                self._producer.produce(
                    self._topic,
                    encode_segment(segment),
                    key=segment.service_order_number.encode(),
                    on_delivery=reported(index),
                )
            except (BufferError, KafkaException) as error:
                result.problem = UplinkUnavailable(f"Kafka: {error}")
                fatal = fatal or _is_fatal(error)
                break
        self._wait(lambda: fatal)
        if result.failed and not result.accepted:
            result.problem = next(iter(result.failed.values()))
        if fatal:  # librdkafka's word for "this producer will never send again"
            self._producer = Producer(self._config)
        return result

    def close(self) -> None:
        """Give back the connections of `orders`; the producer has nothing left to send."""
        if self._orders is not None:
            self._orders.close()

    def _wait(self, is_over: Callable[[], bool]) -> None:
        # Every record is reported by delivery.timeout.ms at the latest; the margin is for the
        # report itself. What is late all the same is sent again by our caller.
        until_s = time.monotonic() + self._delivery_timeout_s + 5.0
        while len(self._producer) > 0 and not is_over() and time.monotonic() < until_s:
            self._producer.flush(0.5)

    def _in_vain(self, segment: SegmentEvent, stored: Message) -> WillNotCount | None:
        kind, append_ms = stored.timestamp()
        if kind != TIMESTAMP_LOG_APPEND_TIME:
            return None
        after_ms = segment.end_ms - append_ms
        if after_ms > FUTURE_TOLERANCE_MS:
            return WillNotCount(Reason.IN_THE_FUTURE, f"ends {after_ms} ms after it was stored")
        window_ms = self._correction_window_ms
        if window_ms is not None and -after_ms > window_ms:
            return WillNotCount(Reason.TOO_LATE, f"ended {-after_ms} ms before it was stored")
        return None

    def _asked(self) -> Uplink:
        if self._orders is None:
            detail = "Kafka can't answer this: give KafkaUplink an HttpUplink, or explicit values"
            raise UplinkRefused("NO_SERVER_TIME", detail)
        return self._orders


def _is_fatal(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.fatal()
