"""The ways from a client to the server: over HTTP to a gateway, or straight into Kafka.

An uplink sends what it is given once, says of each segment whether the server has it, refused
it for good, or neither, and leaves retries to its caller. Every way is at-least-once: after a
timeout nobody knows whether a segment arrived, so it is sent again, and the stream processor
removes repeats.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol
from urllib.parse import quote

import urllib3
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from producers.session import ProducerError
from schemas import PARTITIONER, SEGMENTS_TOPIC, SegmentEvent, encode_segment

KafkaConfig = Mapping[str, str]
"""librdkafka client configuration: `bootstrap.servers` and, where needed, security settings."""

_LATER_STATUS = {408, 425, 429}  # of the 4xx, the ones that say "not now" and not "not so"
_BUSY_STATUS = {*_LATER_STATUS, 503}  # whoever is asked for now
_FAILED_ORDERS_MAX = 3  # in a row; so many are no coincidence, so the server itself is at fault
_REFUSED_BY_BROKER = (  # only these speak of the record itself; the rest is worth a retry
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
)


class UplinkError(ProducerError):
    """The server could not be asked, or said no."""


class UplinkUnavailable(UplinkError):
    """No answer, or one that says "later". `retry_after_s` is the server's wish, if it had one."""

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class OrderFailed(UplinkUnavailable):
    """An answer that may be about this one order: neither a refusal nor "later"."""


class UplinkRefused(UplinkError):
    """The server understood the request and will never take it: `reason` and `detail` say why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: `first_s`, doubled each time up to `max_s`, with jitter.

    The jitter takes up to half of a pause away, by the dice: clients that failed together
    don't come back together.
    """

    first_s: float = 0.2
    max_s: float = 30.0

    def pause_s(self, failures: int, dice: float) -> float:
        """Return the pause after so many failures in a row (from 1); 0 <= dice < 1."""
        assert failures >= 1
        assert 0.0 <= dice < 1.0
        full_s: float = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, 32))
        return full_s * (1.0 - dice / 2)


@dataclass(frozen=True, slots=True)
class Grant:
    """The server's go for a service: its order number, the server's time, how often to report."""

    service_order_number: str
    server_timestamp_ms: int
    report_interval_ms: int


@dataclass(slots=True)
class SendResult:
    """What became of the segments of one `send`, by their index in it.

    What is in neither `accepted` nor `refused` is to be sent again, after a pause where
    `problem` is given. `failed` are orders by number which the server could not take now,
    though it answered: they may go on failing, and should hold no other order up.
    """

    accepted: list[int] = field(default_factory=list)
    refused: dict[int, UplinkRefused] = field(default_factory=dict)
    failed: dict[str, UplinkUnavailable] = field(default_factory=dict)
    problem: UplinkUnavailable | None = None


class Uplink(Protocol):
    """A way to the server. `send` is called by one thread, `start` and the time by any."""

    def start(self, service_order_number: str | None = None) -> Grant:
        """Ask for a new order; raises UplinkUnavailable or UplinkRefused."""

    def server_time_ms(self) -> int:
        """Ask for the server's time, ms since the epoch; raises as `start` does."""

    def send(self, segments: Sequence[SegmentEvent]) -> SendResult:
        """Send segments, of one or many orders, once; never raises for the server's doings."""

    def close(self) -> None:
        """Let go of connections."""


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

    `gateway_url` as in `http://host:port`; a path may follow. `timeout_s` bounds one request,
    connecting included; it should be longer than the gateway's own wait for Kafka. A 4xx in the
    gateway's own error format is a refusal; any other error (a proxy's, say) is worth a retry.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        timeout_s: float = 15.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = gateway_url.rstrip("/")
        # No redirects and no retries of urllib3's own: both are decided by our caller.
        self._pool = urllib3.PoolManager(
            maxsize=4,
            retries=False,
            timeout=urllib3.Timeout(total=timeout_s),
            headers={"content-type": "application/json", **(headers or {})},
        )

    def start(self, service_order_number: str | None = None) -> Grant:
        """Ask the gateway for a new order, with the given number or one of the gateway's."""
        answer = self._ask("POST", "/v1/orders", {"service_order_number": service_order_number})
        try:
            return Grant(
                str(answer["service_order_number"]),
                int(answer["server_timestamp_ms"]),
                int(answer["report_interval_ms"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UplinkUnavailable(f"{self._url} gave no grant: {answer}") from error

    def server_time_ms(self) -> int:
        """Ask the gateway for its time."""
        answer = self._ask("GET", "/v1/time", None)
        try:
            return int(answer["server_timestamp_ms"])
        except (KeyError, TypeError, ValueError) as error:
            raise UplinkUnavailable(f"{self._url} gave no time: {answer}") from error

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
        """Close idle connections."""
        self._pool.clear()

    def _post(
        self,
        number: str,
        segments: Sequence[SegmentEvent],
        indices: Sequence[int],
        result: SendResult,
    ) -> None:
        path = f"/v1/orders/{quote_order_number(number)}/segments"
        body = [segment_fields(segments[index]) for index in indices]
        status, answer, retry_after_s = self._request("POST", path, body)
        if status == 200:
            result.accepted.extend(indices)
            return
        refusal = _refusal(status, answer)
        if refusal is None:
            kind = UplinkUnavailable if status in _BUSY_STATUS else OrderFailed
            raise kind(f"{self._url}{path}: status {status}", retry_after_s)
        if status == 413 and len(indices) > 1:  # together they are too much: each half by itself
            half = len(indices) // 2
            self._post(number, segments, indices[:half], result)
            self._post(number, segments, indices[half:], result)
            return
        errors = answer.get("errors") if status == 422 else None
        refused = dict(_item_errors(errors, indices)) if isinstance(errors, list) else {}
        # Without a word about single segments the refusal is about all of them.
        result.refused.update(refused or dict.fromkeys(indices, refusal))

    def _ask(self, method: str, path: str, body: object) -> dict[str, Any]:
        status, answer, retry_after_s = self._request(method, path, body)
        if 200 <= status < 300:
            return answer
        refusal = _refusal(status, answer)
        if refusal is not None:
            raise refusal
        raise UplinkUnavailable(f"{self._url}{path}: status {status}", retry_after_s)

    def _request(
        self, method: str, path: str, body: object
    ) -> tuple[int, dict[str, Any], float | None]:
        content = None if body is None else json.dumps(body).encode()
        try:
            response = self._pool.request(method, self._url + path, body=content, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise UplinkUnavailable(f"{self._url}: {error}") from error
        try:
            answer = json.loads(response.data)
        except ValueError:
            answer = None
        retry_after = response.headers.get("retry-after", "")
        retry_after_s = float(retry_after) if retry_after.isdecimal() else None
        return response.status, answer if isinstance(answer, dict) else {}, retry_after_s


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


def _refusal(status: int, answer: Mapping[str, Any]) -> UplinkRefused | None:
    error = answer.get("error")
    if not 400 <= status < 500 or status in _LATER_STATUS or not isinstance(error, dict):
        return None
    return UplinkRefused(str(error.get("reason")), str(error.get("detail")))


def _item_errors(
    errors: Sequence[Any], indices: Sequence[int]
) -> Iterator[tuple[int, UplinkRefused]]:
    for error in errors:
        if isinstance(error, dict) and isinstance(error.get("index"), int):
            at = error["index"]
            if 0 <= at < len(indices):
                yield indices[at], UplinkRefused(str(error.get("reason")), str(error.get("detail")))


class KafkaUplink:
    """Segments straight into Kafka: acks=all, idempotent, in the partition of the contract.

    Kafka can't say go: `orders` is the uplink (an HttpUplink, usually) that is asked for
    orders and for the time. Without one, `DurabillClient.start` and `resume` need explicit
    values. Raises KafkaException for a wrong configuration.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str = SEGMENTS_TOPIC,
        *,
        orders: Uplink | None = None,
        delivery_timeout_s: float = 30.0,
    ) -> None:
        self._topic = topic
        self._orders = orders
        self._delivery_timeout_s = delivery_timeout_s
        self._config = producer_config(kafka, delivery_timeout_ms=int(delivery_timeout_s * 1000))
        self._producer = Producer(self._config)

    def start(self, service_order_number: str | None = None) -> Grant:
        """Ask `orders` for a new order; raises UplinkRefused without one."""
        return self._asked().start(service_order_number)

    def server_time_ms(self) -> int:
        """Ask `orders` for the time; raises UplinkRefused without one."""
        return self._asked().server_time_ms()

    def send(self, segments: Sequence[SegmentEvent]) -> SendResult:
        """Produce all segments and wait for every delivery report."""
        result = SendResult()
        fatal = False
        numbers = [segment.service_order_number for segment in segments]

        def reported(index: int) -> Callable[[KafkaError | None, Message], None]:
            def on_delivery(error: KafkaError | None, _: Message) -> None:
                nonlocal fatal
                if error is None:
                    result.accepted.append(index)
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

    def _asked(self) -> Uplink:
        if self._orders is None:
            detail = "Kafka can't answer this: give KafkaUplink an HttpUplink, or explicit values"
            raise UplinkRefused("NO_SERVER_TIME", detail)
        return self._orders


def _is_fatal(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.fatal()
