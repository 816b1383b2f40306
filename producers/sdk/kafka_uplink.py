"""The way from a client straight into Kafka.

`uplink` says what all ways have in common.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    Message,
    Producer,
)

from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS, ServerStamps
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Grant,
    OrderFailed,
    SendNotes,
    SendResult,
    StartingOnce,
    Uplink,
    UplinkRefused,
    UplinkUnavailable,
    WillNotCount,
)
from durabill.schemas import (
    PARTITIONER,
    SEGMENT_HEADER,
    SEGMENTS_TOPIC,
    Reason,
    SegmentEvent,
    encode_segment,
)
from durabill.schemas.limits import FUTURE_TOLERANCE_MS
from durabill.schemas.records import comes_later

KafkaConfig = Mapping[str, str]
"""librdkafka client configuration: `bootstrap.servers` and, where needed, security settings."""

BROKERS_CLOCK_ID = "kafka"
"""The clock of the append times, whichever broker they are of."""
_CLOCKS_APART_MS = 1_000

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


class KafkaUplink:
    """Segments straight into Kafka: acks=all, idempotent, in the partition of the contract.

    Kafka can't say go: `orders` is the uplink (an HttpUplink, usually) that is asked for
    orders and for the time. Without one, `Client.start` and `resume` need explicit
    values. The broker's append times tell which segments will not count: TOO_LATE, where the
    stream processor's correction window is given, and IN_THE_FUTURE, which are sent again when they
    will. `framing` is what values begin with: by default the contract's header; where the
    deployment reads a registry's framing, `schemas.registry_framing` of the id that
    `billing.SegmentEvent` has there. Raises KafkaException for a wrong configuration.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str = SEGMENTS_TOPIC,
        *,
        orders: Uplink | None = None,
        delivery_timeout_s: float = 30.0,
        correction_window_ms: int | None = None,
        framing: bytes = SEGMENT_HEADER,
    ) -> None:
        self._topic = topic
        self._framing = framing
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

    def start_once(
        self, key: str, service_order_number: str | None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask `orders`, with the key if it takes one."""
        orders = self._asked()
        if isinstance(orders, StartingOnce):
            return orders.start_once(key, service_order_number, timeout_s=timeout_s)
        return orders.start(service_order_number, timeout_s=timeout_s)

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask `orders` for the time; raises UplinkRefused without one."""
        return self._asked().server_time(timeout_s=timeout_s)

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        """Produce all segments and wait for every delivery report."""
        result, ahead = SendResult(), dict[str, OrderFailed]()
        fatal = False
        numbers = [segment.service_order_number for segment in segments]

        def reported(index: int) -> Callable[[KafkaError | None, Message], None]:
            def on_delivery(error: KafkaError | None, message: Message) -> None:
                nonlocal fatal
                if error is None:
                    result.stamps = _stamps_of(message) or result.stamps
                    in_vain = self._in_vain(segments[index], message)
                    if in_vain is None:
                        result.accepted.append(index)
                    elif isinstance(in_vain, WillNotCount):
                        result.refused[index] = in_vain
                    else:
                        ahead[numbers[index]] = in_vain
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
                    encode_segment(segment, self._framing),
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
        result.failed |= ahead
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

    def _in_vain(self, segment: SegmentEvent, stored: Message) -> WillNotCount | OrderFailed | None:
        """Return why a stored segment doesn't count; OrderFailed where it is to come again."""
        kind, append_ms = stored.timestamp()
        if kind != TIMESTAMP_LOG_APPEND_TIME:
            return None
        after_ms = segment.end_ms - append_ms
        if after_ms > FUTURE_TOLERANCE_MS:
            why = WillNotCount(Reason.IN_THE_FUTURE, f"ends {after_ms} ms after it was stored")
            if not comes_later(why.reason, segment.start_ms, segment.end_ms):
                return why
            # Each try is a dead letter, so the next one comes when it counts.
            wait_ms = after_ms - FUTURE_TOLERANCE_MS + _CLOCKS_APART_MS
            return OrderFailed(f"order {segment.service_order_number!r}: {why}", wait_ms / 1000)
        window_ms = self._correction_window_ms
        if window_ms is not None and -after_ms > window_ms:
            return WillNotCount(Reason.TOO_LATE, f"ended {-after_ms} ms before it was stored")
        return None

    def _asked(self) -> Uplink:
        if self._orders is None:
            detail = "Kafka can't answer this: give KafkaUplink an HttpUplink, or explicit values"
            raise UplinkRefused("NO_SERVER_TIME", detail)
        return self._orders


def _stamps_of(stored: Message) -> ServerStamps | None:
    """Return the time of one broker: those of two would say that it went by between them."""
    kind, append_ms = stored.timestamp()
    if kind != TIMESTAMP_LOG_APPEND_TIME or not 0 <= append_ms <= TIMESTAMP_MAX_MS:
        return None
    return ServerStamps(append_ms, append_ms, BROKERS_CLOCK_ID)


def _is_fatal(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.fatal()
