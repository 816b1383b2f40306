"""What one client does at the gateway is its own cost: not the others' time, and no extra CPU."""

import http.client
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from durabill.producers.gateway.api import SEGMENTS_MAX
from tests.broker.gateway_kit import call
from tests.broker.test_cli import start
from tests.broker.traffic_kit import now_ms
from tests.conftest import Topics
from tests.waiting import wait_until

SEGMENTS = "/v1/orders/SO1/segments"
BODY_BYTES = 1_048_576
FLOODERS = 60
FLOOD_S = 4.0
TRIES = 5

HONEST_S_MAX = 6.0
"""How long one honest answer may take beside a flood on a busy machine; half of them take 70 ms."""

HONEST_MEDIAN_S_MAX = 1.0
COST_RATIO_MAX = 2.0
REPEATS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fairness")


@pytest.fixture
def process(bootstrap_servers: str, topics: Topics, folder: Path) -> Iterator[dict[str, Any]]:
    """A gateway's process, as it announces itself: its url and pid."""
    settings = {
        "bootstrap_servers": bootstrap_servers,
        "segments_topic": topics.segments,
        "totals_topic": topics.totals,
        "orders_topic": topics.orders,
        "dead_letters_topic": topics.dead_letters,
        "gateway_port": "0",
        "data_dir": str(folder),
    }
    with ExitStack() as stack:
        made = start(stack, folder, settings, "gateway", topics.segments)
        wait_until_taken(made["url"])
        yield made


def wait_until_taken(url: str) -> None:
    """The first segment finds the topic's leaders, which were chosen just now."""
    wait_until(lambda: call(url, "POST", SEGMENTS, batch(1))[0] == 200, "segments are taken")


def batch(count: int, **changes: object) -> bytes:
    """A body with so many segments, each of them right but for the changes."""
    at_ms = now_ms() - 3_600_000
    segments = [
        {
            "business_data_number": number,
            "start_ms": at_ms + number,
            "end_ms": at_ms + number + 1,
            "end_identifier": False,
            **changes,
        }
        for number in range(1, count + 1)
    ]
    return json.dumps(segments, separators=(",", ":")).encode()


# -- one client's batches, and everybody else


def flood(url: str, ended: threading.Event, taken: list[int]) -> None:
    """Post the largest batches from another address, one after the other, whatever is answered."""
    parts = urlsplit(url)
    body, kind = batch(SEGMENTS_MAX), {"content-type": "application/json"}
    while not ended.is_set():
        connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port, timeout=30, source_address=("127.0.0.2", 0)
        )
        try:
            while not ended.is_set():
                connection.request("POST", SEGMENTS, body, kind)
                response = connection.getresponse()
                response.read()
                taken.append(response.status)
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()


@contextmanager
def flooded(url: str) -> Iterator[list[int]]:
    """A flood around a block; gives what it has been answered."""
    ended, taken = threading.Event(), list[int]()
    threads = [threading.Thread(target=flood, args=(url, ended, taken)) for _ in range(FLOODERS)]
    for each in threads:
        each.start()
    try:
        yield taken
    finally:
        ended.set()
        for each in threads:
            each.join()


def honest_answers_s(url: str) -> list[float]:
    """How long each honest answer took, one segment a request, for a while."""
    took_s = []
    until_s = time.monotonic() + FLOOD_S
    while time.monotonic() < until_s:
        body = batch(1)
        began_s = time.monotonic()
        status, answer, _ = call(url, "POST", SEGMENTS.replace("SO1", "honest"), body)
        took_s.append(time.monotonic() - began_s)
        assert (status, answer["accepted"]) == (200, 1)
        time.sleep(0.02)
    return took_s


def test_one_clients_batches_hold_up_nobody_else(process: dict[str, Any]) -> None:
    found = []
    for _ in range(TRIES):
        with flooded(process["url"]) as taken:
            took_s = honest_answers_s(process["url"])
        assert taken.count(200) > 5, "it floods indeed"
        assert set(taken) <= {200, 429, 503}
        found.append((round(statistics.median(took_s), 3), round(max(took_s), 3)))
        if found[-1][0] < HONEST_MEDIAN_S_MAX and found[-1][1] < HONEST_S_MAX:
            return
    raise AssertionError(found)


# -- a wrong body, and a right one of its size


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def padded(body: bytes) -> bytes:
    return body.ljust(BODY_BYTES)


def many(count: int = 10_000) -> bytes:
    """More segments than a request may have, as many as fit."""
    return batch(count)[:-1] + b"]"


RIGHT = "as large as it may be"
WRONG: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "too many": (many, {413}),
    "each against the rules": (lambda: padded(batch(SEGMENTS_MAX, end_ms=0)), {422}),
    "each of another shape": (lambda: padded(batch(SEGMENTS_MAX, end_ms="soon")), {400}),
    "the last one of another shape": (
        lambda: padded(batch(SEGMENTS_MAX)[:-1] + b',{"x":1}]'),
        {400},
    ),
    "cut off": (lambda: padded(batch(SEGMENTS_MAX)[:-1]), {400}),
    "nothing but brackets": (lambda: b"[" * BODY_BYTES, {400}),
    "one long name": (lambda: b'[{"' + b"x" * (BODY_BYTES - 10) + b'":1}]', {400}),
    "one long number": (
        lambda: b'[{"business_data_number":' + b"9" * (BODY_BYTES - 100) + b"}]",
        {400, 422},
    ),
    "no UTF-8": (lambda: b'[{"' + b"\xff" * (BODY_BYTES - 10) + b'":1}]', {400}),
    "escapes": (lambda: b'[{"' + b"\\u0041" * (BODY_BYTES // 6 - 10) + b'":1}]', {400}),
}


def cost_s(process: dict[str, Any], body: bytes, expected: set[int]) -> float:
    """CPU time that the gateway spends on a request with this body."""
    assert len(body) <= BODY_BYTES
    began_s = cpu_s(process["pid"])
    for _ in range(REPEATS):
        status, answer, _ = call(process["url"], "POST", SEGMENTS, body)
        assert status in expected, answer
    return (cpu_s(process["pid"]) - began_s) / REPEATS


def test_a_wrong_body_costs_no_more_than_a_right_one(process: dict[str, Any]) -> None:
    costs: dict[str, list[float]] = {each: [] for each in (RIGHT, *WRONG)}
    for _ in range(TRIES):
        costs[RIGHT].append(cost_s(process, padded(batch(SEGMENTS_MAX)), {200}))
        for name, (body, expected) in WRONG.items():
            costs[name].append(cost_s(process, body(), expected))
        least_s = {name: min(each) for name, each in costs.items()}
        if max(least_s.values()) <= COST_RATIO_MAX * least_s[RIGHT]:
            return
    raise AssertionError({name: round(each, 4) for name, each in least_s.items()})
