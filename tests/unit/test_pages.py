"""The worker's web server on its own: its pages, who may ask, and how large orders are told."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from durabill.producers.sdk.http_uplink import quote_order_number
from durabill.schemas import BadRecord, check_order_number, partition_for
from durabill.schemas.errors import SettingsError
from durabill.schemas.order_state import Opened, OrderState
from durabill.stream_processors.settings import Settings, load_settings
from durabill.stream_processors.worker.pages import Pages, check_access
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.turns import Turns
from durabill.stream_processors.worker.web_port import CONNECTIONS_MAX
from tests.broker.gateway_kit import exchange
from tests.state_kit import a_state
from tests.waiting import HANG_S

PARTITIONS = 4
OURS = (0, 1)
TOKEN = "a-token-of-26-characters-x"


class Runtime:
    """Knows where the logs end, or not yet."""

    ends: dict[int, int]

    def log_end(self, partition: int) -> int | None:
        return self.ends.get(partition)


class Stand:
    """In place of a processor with two partitions, and of what says whether it is well."""

    def __init__(self) -> None:
        self.is_assigned = True
        self.tasks = {each: SimpleNamespace(is_broken=False) for each in OURS}
        self.lags = dict.fromkeys(OURS, 0)
        self.runtime = Runtime()
        self.runtime.ends = dict.fromkeys(OURS, 100)
        self.states: dict[str, OrderState] = {}
        self.stuck: list[str] = []
        self.described: list[str] = []

    def describe(self, number: str, limit: int | None = None) -> OrderState | None:
        self.described.append(number)
        return self.states.get(number)

    def opened_by(self, number: str) -> str | None:
        state = self.states.get(number)
        return None if state is None or state.opened is None else state.opened.tenant

    def lag(self, partition: int) -> int:
        return self.lags[partition]

    def status(self) -> dict[str, Any]:
        return {"partitions": {}}

    def problems(self) -> list[str]:
        return self.stuck

    def unready(self) -> list[str]:
        return self.stuck


@contextmanager
def served(stand: Stand, **settings: Any) -> Iterator[int]:
    """Serve a stand's pages in a thread; gives the port."""
    loop = asyncio.new_event_loop()
    pages = Pages(cast(Processor, stand), stand, Settings(**settings), 0, PARTITIONS)
    loop.run_until_complete(pages.start())
    assert pages.port is not None
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield pages.port
    finally:
        asyncio.run_coroutine_threadsafe(pages.stop(), loop).result(HANG_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_S)
        loop.close()


def get(
    port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        assert response.headers["server"] == "durabill"
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def reason(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["reason"]


@pytest.fixture(scope="module")
def stand() -> Stand:
    return Stand()


@pytest.fixture(scope="module")
def port(stand: Stand) -> Iterator[int]:
    with served(stand) as port:
        yield port


def in_partition(partition: int) -> str:
    numbers = (f"SO{at}" for at in range(1_000))
    return next(each for each in numbers if partition_for(each.encode(), PARTITIONS) == partition)


def test_an_order_is_told_by_its_owner_alone(stand: Stand, port: int) -> None:
    ours, others = in_partition(1), in_partition(2)
    assert reason(get(port, f"/orders/{ours}")) == (404, "UNKNOWN_ORDER")
    assert reason(get(port, f"/orders/{others}")) == (421, "NOT_OWNED")
    stand.states = {ours: a_state(ours)}
    status, answer = get(port, f"/orders/{ours}")
    assert (status, answer["intervals"], answer["lag"]) == (200, [[0, 1]], 0)


def test_an_order_is_told_to_its_tenant_alone(stand: Stand, port: int) -> None:
    """To others it is in every way as an order that isn't there, also while there is a lag."""
    ours = in_partition(1)
    mine, nobodys = f"/orders/{ours}?tenant=acme", f"/orders/{ours}?tenant=other"
    opened = Opened(tenant="acme", client="c", server_timestamp_ms=0, accept_until_ms=1)
    for lag in (0, 3):
        stand.lags[1] = lag
        stand.states = {}
        unknown = get(port, mine)
        assert unknown[0] == (503 if lag else 404)
        stand.states = {ours: msgspec.structs.replace(a_state(ours), opened=opened)}
        assert get(port, mine)[0] == get(port, f"/orders/{ours}")[0] == 200
        stand.described.clear()
        assert get(port, nobodys) == unknown
        assert not stand.described  # it would take the longer, the larger the other's order is
        stand.states = {ours: a_state(ours)}  # opened by nobody: the default tenant's
        assert get(port, f"/orders/{ours}?tenant=default")[0] == 200
        assert get(port, mine) == unknown
    stand.lags[1] = 0


def test_an_orders_page_byte_for_byte(stand: Stand, port: int) -> None:
    number = in_partition(0)
    stand.states = {number: a_state(number, intervals=2, missing=1)}
    stand.lags[0] = 3
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/orders/{number}?limit=1") as response:
        body = response.read().decode()
    stand.lags[0] = 0
    assert body == (
        f'{{"service_order_number":"{number}","phase":"OPEN","duration_ms":2,'
        '"intervals":[[0,1]],"started_ms":0,"ended_ms":3,"end_number":null,'
        '"missing_numbers":[[2,2]],"segments":2,"duplicates":0,"overlap_ms":0,'
        '"gap_ms":1,"numbers_after_end":0,"revision":0,"deadline_ms":300000,'
        '"interim_deadline_ms":null,"source_partition":0,"source_offset":4,'
        '"intervals_count":2,"missing_numbers_count":1,"opened":null,"interval_count":2,'
        '"missing_range_count":1,"next":"0.2","lag":3}'
    )


def test_what_has_not_been_read_yet_is_not_denied(stand: Stand, port: int) -> None:
    number = in_partition(0)
    stand.states = {}
    stand.lags[0] = 1
    assert reason(get(port, f"/orders/{number}")) == (503, "CATCHING_UP")
    stand.states = {number: a_state(number)}
    assert get(port, f"/orders/{number}")[1]["lag"] == 1
    del stand.runtime.ends[0]  # where the log ends is not known yet: the state may be an old one
    assert reason(get(port, f"/orders/{number}")) == (503, "CATCHING_UP")
    stand.lags[0], stand.states = 0, {}
    assert reason(get(port, f"/orders/{number}")) == (503, "CATCHING_UP")
    stand.runtime.ends[0] = 100
    assert reason(get(port, f"/orders/{number}")) == (404, "UNKNOWN_ORDER")
    stand.is_assigned = False
    assert reason(get(port, f"/orders/{number}")) == (503, "NOT_READY")
    stand.is_assigned = True


def test_a_table_that_broke_is_not_asked(stand: Stand, port: int) -> None:
    number = in_partition(0)
    stand.states = {number: a_state(number)}
    assert get(port, f"/orders/{number}")[0] == 200
    stand.tasks[0].is_broken = True
    answer = get(port, f"/orders/{number}")
    assert reason(answer) == (503, "CATCHING_UP")
    assert "stopped" in answer[1]["detail"]
    stand.tasks[0].is_broken = False
    stand.states = {}


def test_large_orders_are_told_in_pages(stand: Stand, port: int) -> None:
    number = in_partition(0)
    stand.states = {number: a_state(number, intervals=10_000, missing=10_000)}
    status, answer = get(port, f"/orders/{number}")
    assert (
        status,
        len(answer["intervals"]),
        len(answer["missing_numbers"]),
    ) == (200, 1_000, 1_000)
    assert (answer["interval_count"], answer["missing_range_count"]) == (10_000, 10_000)
    _, following = get(port, f"/orders/{number}?after={answer['next']}&limit=9001")
    assert (
        following["intervals"][0],
        following["missing_numbers"][0],
    ) == ([2_000, 2_001], [2_002, 2_002])
    assert (len(following["intervals"]), following["next"]) == (9_000, None)
    assert reason(get(port, f"/orders/{number}?limit=10001")) == (422, "BAD_PAGE")


def test_every_legal_order_number_works(stand: Stand, port: int) -> None:
    points = [*range(256), 0x300, 0x1680, 0x200B, 0x202E, 0x2028, 0xFEFF, 0xFFFD, 0x1F600, 0x10FFFF]
    numbers = [text for point in points for text in (chr(point), f"a{chr(point)}b")]
    found = 0
    for number in [*numbers, ".", "..", "a/../b", "{number}", "%2F", "?a=b", "//"]:
        try:
            check_order_number(number)
        except BadRecord:
            continue
        stand.states = {number: a_state(number)}
        is_ours = partition_for(number.encode(), PARTITIONS) in OURS
        status, answer = get(port, f"/orders/{quote_order_number(number)}")
        assert (200 if is_ours else 421) == status, repr(number)
        assert not is_ours or number == answer["service_order_number"]
        found += is_ours
    assert found > 150


@pytest.mark.parametrize("path", ["%FF", "%00", "x" * 65])
def test_illegal_order_numbers(port: int, path: str) -> None:
    assert reason(get(port, f"/orders/{path}")) == (422, "BAD_ORDER_NUMBER")


def test_health_and_nothing_else(stand: Stand, port: int) -> None:
    assert get(port, "/status") == (200, {"partitions": {}})
    assert get(port, "/health/live") == (200, {"live": True, "problems": []})
    stand.stuck = ["timers: still for 61 s"]
    assert (503, {"live": False, "problems": stand.stuck}) == get(port, "/health/live")
    assert (503, {"ready": False, "problems": stand.stuck}) == get(port, "/health/ready")
    stand.stuck = []
    for path in (
        "/",
        "/table/",
        "/router/",
        "/graph/",
        "/production_index/",
        "/orders/",
        "/health",
    ):
        assert reason(get(port, path)) == (404, "NOT_FOUND")
    assert reason(get(port, "/status", method="POST")) == (405, "METHOD_NOT_ALLOWED")
    refused = exchange(
        f"http://127.0.0.1:{port}", b"PUT /status HTTP/1.0\r\nhost: localhost\r\n\r\n"
    )
    assert b"\r\nallow: get,head\r\n" in refused.lower()


def test_web_pages_of_others_are_refused(port: int) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"host": ""}):
        for path in ("/status", "/health/live", "/orders/SO1"):
            assert get(port, path, headers)[0] == 403
    assert get(port, "/status", {"host": "localhost:1"})[0] == 200


def test_with_a_token_it_is_asked_for_everywhere_but_for_the_health_of_the_process() -> None:
    with served(Stand(), worker_host="0.0.0.0", worker_token=TOKEN) as port:
        for wrong in (None, "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
            headers = {} if wrong is None else {"authorization": wrong}
            for path in ("/status", "/orders/SO1", "/health/ready", "/none"):
                assert reason(get(port, path, headers)) == (401, "TOKEN_NEEDED")
            assert get(port, "/health/live", headers)[0] == 200
        good = {"authorization": f"Bearer {TOKEN}"}
        assert get(port, "/status", good)[0] == 200
        assert get(port, "/status", good | {"host": "worker-0.workers:6066"})[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "worker-0.workers", ""])
def test_off_the_loopback_a_token_is_needed(host: str) -> None:
    with pytest.raises(SettingsError, match="DURABILL_WORKER_TOKEN") as raised:
        check_access(Settings(worker_host=host))
    assert raised.value.exit_code == 2
    check_access(Settings(worker_host=host, worker_token=TOKEN))


@pytest.mark.parametrize(
    "token", ["x" * 15, "with a blank in between", "x" * 20 + "é", "x" * 20 + "\n"]
)
def test_tokens_that_are_none(token: str) -> None:
    with pytest.raises(SettingsError, match="DURABILL_WORKER_TOKEN") as raised:
        check_access(Settings(worker_token=token))
    assert token not in str(raised.value)
    check_access(Settings(worker_token="x" * 16))


def test_a_token_may_be_in_a_file(tmp_path: Any) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert load_settings({"DURABILL_WORKER_TOKEN_FILE": str(path)}).worker_token == TOKEN
    with pytest.raises(SettingsError, match="can't be read"):
        load_settings({"DURABILL_WORKER_TOKEN_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        ("no http\r\n\r\n", 400, "BAD_HTTP"),
        ("GET /status HTTP/1.1\r\nhost: localhost\r\norigin: http://[::1\r\n", 403, "CROSS_ORIGIN"),
        ("GET /status HTTP/1.1\r\nhost: localhost\r\nexpect: x\r\n", 417, "EXPECTATION_FAILED"),
        ("GET /none HTTP/1.1\r\nhost: localhost\r\nexpect: \xff\r\n", 417, "EXPECTATION_FAILED"),
    ],
)
def test_what_is_odd_gets_a_problem_and_leaves_no_trace(
    port: int, sent: str, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = f"{sent}connection: close\r\n\r\n".encode("latin-1")
    head, _, body = exchange(f"http://127.0.0.1:{port}", whole).partition(b"\r\n\r\n")
    assert f" {status} ".encode() in head[:14]
    assert b"aiohttp" not in head
    assert json.loads(body)["reason"] == reason
    assert caplog.messages == []


def test_strangers_that_hold_connections_keep_out_nobody(port: int) -> None:
    """Nor do they take the files that Kafka's clients need."""
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(CONNECTIONS_MAX + 20)
        ]
        assert get(port, "/health/live")[0] == 200
        for each in held[:20]:
            each.settimeout(HANG_S)
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""  # ended, the longest silent first
        held[-1].sendall(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n")
        held[-1].settimeout(HANG_S)
        assert held[-1].recv(12) == b"HTTP/1.1 200"


def turns_after(is_over: threading.Event) -> type[Turns]:
    """Turns that nobody gets before that."""

    class Busy(Turns):
        async def __aenter__(self) -> None:
            while not is_over.is_set():
                await asyncio.sleep(0.01)
            await super().__aenter__()

    return Busy


def test_who_asks_for_health_does_not_wait_for_large_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_over = threading.Event()

    turns: Iterator[type[Turns]] = iter([Turns, turns_after(is_over)])
    monkeypatch.setattr("durabill.stream_processors.worker.pages.Turns", lambda: next(turns)())
    stand, number = Stand(), in_partition(0)
    stand.states = {number: a_state(number)}
    with served(stand) as port, ExitStack() as stack:
        waiting = stack.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
        waiting.sendall(f"GET /orders/{number} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert get(port, "/health/live")[0] == 200
        assert stand.described == []
        for _ in range(CONNECTIONS_MAX):  # strangers don't push out who waits for an answer
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        assert get(port, "/health/live")[0] == 200
        is_over.set()
        assert waiting.recv(12) == b"HTTP/1.1 200"


def test_who_shows_the_token_does_not_wait_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    turns: Iterator[type[Turns]] = iter([turns_after(is_over), Turns])
    monkeypatch.setattr("durabill.stream_processors.worker.pages.Turns", lambda: next(turns)())
    with served(Stand(), worker_token=TOKEN) as port, ExitStack() as stack:
        stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
        stranger.sendall(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n")
        told = get(port, "/status", {"authorization": f"Bearer {TOKEN}"})
        assert told[0] == 200
        is_over.set()
        assert stranger.recv(12) == b"HTTP/1.1 401"


def test_a_port_in_use_is_told() -> None:
    with served(Stand()) as port:
        stand = Stand()
        pages = Pages(cast(Processor, stand), stand, Settings(), port, PARTITIONS)

        async def start() -> None:
            try:
                await pages.start()
            finally:
                await pages.stop()

        with pytest.raises(SettingsError, match=r"in use.*--worker-port"):
            asyncio.run(start())
