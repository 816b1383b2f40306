"""What tests of POST /v1/segments share: bodies, and a client that uploads on and on."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.broker.gateway_kit import call

PATH = "/v1/segments"
LENGTH_MS = 10


def rows(first: int, count: int, *, ends: bool = False) -> list[list[Any]]:
    """So many segments in short, one after the other, the last ending a minute ago."""
    begin_ms = time.time_ns() // 10**6 - 60_000 - count * LENGTH_MS
    return [
        [
            first + at,
            begin_ms + at * LENGTH_MS,
            begin_ms + (at + 1) * LENGTH_MS,
            ends and at == count - 1,
        ]
        for at in range(count)
    ]


def upload(number: str, segments: list[Any], **more: Any) -> dict[str, Any]:
    return {"service_order_number": number, "segments": segments, **more}


class Acknowledged(NamedTuple):
    """A segment that is stored by the gateway's word, between these offsets of its partition."""

    order: str
    number: int
    first: int
    last: int


class Client:
    """Uploads one request after the other, each of three orders."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.acknowledged: list[Acknowledged] = []
        self.refusals = 0

    def upload_until(self, is_over: threading.Event) -> None:
        """Keep what is acknowledged, and how often something was not."""
        first = 1
        while not is_over.is_set():
            orders = [f"{self._name}-{at}" for at in range(3)]
            segments = rows(first, 40)
            body = {"uploads": [upload(order, segments) for order in orders]}
            status, answer, _ = call(self._url, "POST", PATH, body)
            if status == 200:
                for order, told in zip(orders, answer["uploads"], strict=True):
                    self._note(order, first, told)
            else:
                assert (status, answer["reason"]) == (503, "KAFKA_UNAVAILABLE"), answer
                self.refusals += 1
            first += 40

    def _note(self, order: str, first: int, told: dict[str, Any]) -> None:
        bad = {each["index"] for each in told.get("errors", [])}
        self.refusals += bool(bad)
        self.acknowledged += [
            Acknowledged(order, first + at, told["first_offset"], told["last_offset"])
            for at in range(told["count"])
            if at not in bad
        ]


@contextmanager
def uploading(url: str, name: str) -> Iterator[Client]:
    """A client that uploads meanwhile."""
    client, is_over = Client(url, name), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.upload_until, is_over)
        try:
            yield client
        finally:
            is_over.set()
    running.result()


def acknowledged(clients: list[Client]) -> int:
    """How many segments are, of all clients."""
    return sum(len(each.acknowledged) for each in clients)


def refused(clients: list[Client]) -> int:
    """How often something was not."""
    return sum(each.refusals for each in clients)
