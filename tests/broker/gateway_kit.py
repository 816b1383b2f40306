"""What the tests of gateway and client share: a gateway in a thread, HTTP, a topic's records."""

import asyncio
import contextlib
import http.client
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import Consumer, Message, TopicPartition

from durabill.producers.gateway.server import GatewayConfig, serve_gateway
from durabill.schemas import SegmentEvent, decode_segment
from durabill.schemas.clock_mark import is_clock_mark
from durabill.schemas.order_opened import OrderOpened, is_opening, read_opening
from durabill.schemas.web import PROBLEM
from durabill.stream_processors.kafka.errors import patiently
from tests.waiting import HANG_S


def answer(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    content_type: str = "application/json",
    **headers: str,
) -> None:
    """Send a whole answer to what a handler was asked; `retry_after` is the header Retry-After."""
    handler.send_response(status)
    handler.send_header("content-type", content_type)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Have it answer in threads of this process; gives the base URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def gateway(
    config: GatewayConfig,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> Iterator[str]:
    """Serve in a thread of this process; gives the base URL."""
    loop = new_loop()
    stop = asyncio.Event()
    ready = threading.Event()
    urls: list[str] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve_gateway(config, stop, on_ready))
        finally:
            ready.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(HANG_S)
        assert urls, "the gateway did not start"
        yield urls[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(HANG_S)
        assert not thread.is_alive()


def call(
    base_url: str,
    method: str,
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """One request, the path sent as it is; bytes as a body go out untouched, the rest as JSON."""
    url = urlsplit(base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=HANG_S)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        typed = {} if content is None else {"content-type": "application/json"}
        connection.request(method, path, content, {**typed, **(headers or {})})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    is_error = response.status >= 400
    is_json = response.headers.get_content_type() == (PROBLEM if is_error else "application/json")
    answer = json.loads(data) if is_json and data else data.decode()  # of a HEAD there is none
    return response.status, answer, response.headers


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """The records of `read_log` without clock marks.

    A gateway that hasn't learned the broker's time writes one.
    """
    records = read_log(bootstrap_servers, topic)
    return [each for each in records if not is_clock_mark(each.value())]


def read_log(bootstrap_servers: str, topic: str) -> list[Message]:
    """All records that the topic holds now, by partition and offset (no gaps: no transactions)."""
    kafka = {
        "bootstrap.servers": bootstrap_servers,
        "group.id": "unused",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    }
    consumer = Consumer(kafka)

    def end_of(place: TopicPartition) -> int:
        # A topic that was made just now may have no leader yet.
        _, end = patiently(
            lambda timeout_s: consumer.get_watermark_offsets(place, timeout_s), topic, kafka
        )
        return int(end)

    records: list[Message] = []
    try:
        partitions = consumer.list_topics(topic, timeout=HANG_S).topics[topic].partitions
        places = [TopicPartition(topic, partition, 0) for partition in partitions]
        ends = [end_of(place) for place in places]
        consumer.assign(places)
        while len(records) < sum(ends):
            message = consumer.poll(HANG_S)
            assert message is not None
            assert message.error() is None
            records.append(message)
    finally:
        consumer.close()
    return sorted(records, key=lambda record: (record.partition(), record.offset()))


def segments_of(records: list[Message], number: str | None = None) -> list[SegmentEvent]:
    """The decoded segments (of one order), repeats left out, by business data number."""
    values = [message.value() for message in records]
    events = {decode_segment(value) for value in values if not is_opening(value)}
    chosen = [e for e in events if number in (None, e.service_order_number)]
    return sorted(chosen, key=lambda event: (event.business_data_number, event.start_ms))


def number_in(record: Message) -> str:
    """The order that a record's value names, be it a segment or an opening."""
    key, value = record.key(), record.value()
    if value is not None and key is not None and is_opening(value):
        return read_opening(key, value).service_order_number
    return decode_segment(value).service_order_number


def openings_of(records: list[Message]) -> list[OrderOpened]:
    """The openings, by partition and offset."""
    values = [(message.key(), message.value()) for message in records]
    return [read_opening(key, value) for key, value in values if value and is_opening(value)]


def exchange(
    base_url: str, sent: bytes, *, wait_for_end: bool = True, close_after: bool = False
) -> bytes:
    """Send bytes as they are; gives the answer, to its end or to that of its head.

    With `close_after` our side ends after what was sent, as a client's does that goes away.
    """
    url = urlsplit(base_url)
    answer = b""
    with socket.create_connection((url.hostname, url.port), timeout=HANG_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            if close_after:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := connection.recv(65_536):
                answer += chunk
                if not wait_for_end and _has_head(answer):
                    break
    return answer


def _has_head(answer: bytes) -> bool:
    """Whether a whole head is there that isn't one of the interim kind, such as 100."""
    heads = answer.split(b"\r\n\r\n")[:-1]
    return any(not each.startswith(b"HTTP/1.1 1") for each in heads)
