"""Opened orders: the opening in the log, leases on uploads, starts that are repeated."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from durabill.producers.gateway.authority import AuthorityConfig
from durabill.producers.gateway.key_files import make_keys, read_keys, replace_keys
from durabill.producers.gateway.key_sets import Kind, new_keys, rotated
from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import partition_for
from durabill.schemas.order_opened import OrderOpened
from durabill.schemas.order_state import Opened
from tests.broker.authority_kit import STAMPS, Keys, make_api_keys, path_of, segment, start, upload
from tests.broker.gateway_kit import call, gateway, openings_of, read_topic, segments_of
from tests.broker.test_gateway_lookup import worker
from tests.conftest import Topics
from tests.state_kit import a_state, as_json
from tests.waiting import wait_until

DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    path = tmp_path_factory.mktemp("keys") / "api.json"
    return make_api_keys(path, "acme/anna", "acme/bert", "umbra/carl")


@pytest.fixture
def config(bootstrap_servers: str, topics: Topics, tmp_path: Path) -> GatewayConfig:
    file = tmp_path / "leases.json"
    make_keys(file, new_keys(Kind.LEASE))
    return GatewayConfig(
        {"bootstrap.servers": bootstrap_servers},
        topics.segments,
        correction_window_ms=DAY_MS,
        authority=AuthorityConfig(lease_keys_file=file),
    )


@pytest.fixture
def closed(config: GatewayConfig, keys: Keys) -> GatewayConfig:
    """A gateway that asks who its callers are, and for leases."""
    authority = replace(config.authority, are_leases_required=True)
    return replace(config, access=keys.access, authority=authority)


@pytest.fixture
def url(config: GatewayConfig) -> Iterator[str]:
    with gateway(config) as base_url:
        yield base_url


@pytest.fixture
def closed_url(closed: GatewayConfig) -> Iterator[str]:
    with gateway(closed) as base_url:
        yield base_url


def test_the_opening_is_in_the_log_before_the_answer(
    closed_url: str, keys: Keys, bootstrap_servers: str, topics: Topics
) -> None:
    body = {"service": "charging", "attributes": {"site": "North", "bay": "7"}}
    grant = start(closed_url, keys.of("acme/anna"), **body)
    (record,) = read_topic(bootstrap_servers, topics.segments)
    number = grant["service_order_number"]
    assert record.partition() == partition_for(number.encode(), topics.partitions)
    assert openings_of([record]) == [
        OrderOpened(
            number,
            "acme",
            "anna",
            "charging",
            (("bay", "7"), ("site", "North")),
            grant["server_timestamp_ms"],
            10_000,
            grant["accept_until_ms"],
        )
    ]
    assert grant["accept_until_ms"] == grant["server_timestamp_ms"] + 7 * DAY_MS
    assert grant["lease_expires_ms"] == grant["accept_until_ms"]
    assert grant["correction_window_ms"] == DAY_MS
    at_ms = grant["server_timestamp_ms"]
    headers = keys.of("acme/anna")
    status, answer = upload(closed_url, grant, segment(1, at_ms), headers=headers)
    assert (status, answer["accepted"]) == (200, 1)


def test_todays_clients_need_nothing_of_it(url: str) -> None:
    """An empty body, a number of their own, uploads without a lease."""
    for body in (None, {}, {"service_order_number": None}, {"service_order_number": "mine:1"}):
        status, grant, _ = call(url, "POST", "/v1/orders", body)
        assert status == 201
        item = segment(1, grant["server_timestamp_ms"])
        assert call(url, "POST", path_of(grant["service_order_number"]), item)[0] == 200
    assert grant["service_order_number"] == "mine:1"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"service": "x" * 65}, "BAD_SERVICE"),
    ({"service": "a\nb"}, "BAD_SERVICE"),
    ({"service": "\ud800"}, "BAD_JSON"),
    ({"attributes": {str(at): "" for at in range(17)}}, "BAD_ATTRIBUTES"),
    ({"attributes": {"": "x"}}, "BAD_ATTRIBUTES"),
    ({"attributes": {"k" * 65: "x"}}, "BAD_ATTRIBUTES"),
    ({"attributes": {"k": "ü" * 129}}, "BAD_ATTRIBUTES"),
    ({"attributes": {"k": "\x7f"}}, "BAD_ATTRIBUTES"),
    ({"attributes": {"k": 3}}, "BAD_SHAPE"),
    ({"service": 3}, "BAD_SHAPE"),
    ({"tenant": "other"}, "BAD_SHAPE"),
    ({"service_order_number": "x" * 60}, "BAD_ORDER_NUMBER"),
    ({"service_order_number": ""}, "BAD_ORDER_NUMBER"),
    ({"service_order_number": "a\x00"}, "BAD_ORDER_NUMBER"),
]


def test_what_no_opening_can_hold_is_refused(
    closed_url: str, keys: Keys, bootstrap_servers: str, topics: Topics
) -> None:
    for body, reason in WRONG:
        status, answer, _ = call(closed_url, "POST", "/v1/orders", body, keys.of("acme/anna"))
        expected = 400 if reason in ("BAD_SHAPE", "BAD_JSON") else 422
        assert (status, answer["reason"]) == (expected, reason)
    most = {"service": "ü" * 32, "attributes": {f"{at:064}": "x" * 256 for at in range(16)}}
    assert start(closed_url, keys.of("acme/anna"), **most)
    assert len(openings_of(read_topic(bootstrap_servers, topics.segments))) == 1


def test_a_number_of_ones_own_is_its_tenants(closed_url: str, keys: Keys) -> None:
    """Two tenants can't meet, whatever colons they write."""
    wanted = {"service_order_number": "umbra:7"}
    first = start(closed_url, keys.of("acme/anna"), **wanted)
    second = start(closed_url, keys.of("umbra/carl"), service_order_number="7")
    assert first["service_order_number"] == "acme:umbra:7"
    assert second["service_order_number"] == "umbra:7"
    at_ms = first["server_timestamp_ms"]
    for whose, grant in (("acme/anna", second), ("umbra/carl", first), ("acme/bert", first)):
        status, answer = upload(closed_url, grant, segment(1, at_ms), headers=keys.of(whose))
        assert (status, answer["reason"]) == (403, "LEASE_OF_ANOTHER")
        number, shown = grant["service_order_number"], {"lease": grant["lease"], **keys.of(whose)}
        renewed = call(closed_url, "POST", path_of(number, "/lease"), None, shown)
        assert (renewed[0], renewed[1]["reason"]) == (403, "LEASE_OF_ANOTHER")


def test_no_upload_without_its_lease(
    closed_url: str, keys: Keys, bootstrap_servers: str, topics: Topics
) -> None:
    headers = keys.of("acme/anna")
    grant, other = start(closed_url, headers), start(closed_url, headers)
    item = segment(1, grant["server_timestamp_ms"])
    for lease, status, reason in (
        (None, 401, "LEASE_MISSING"),
        ("", 401, "LEASE_MISSING"),
        (grant["lease"][:-2] + "xx", 401, "LEASE_INVALID"),
        (other["lease"], 403, "LEASE_OF_ANOTHER"),
    ):
        shown = dict(headers) if lease is None else {**headers, "lease": lease}
        found = call(closed_url, "POST", path_of(grant["service_order_number"]), item, shown)
        assert (found[0], found[1]["reason"]) == (status, reason)
        assert status != 401 or found[2]["www-authenticate"]
    assert segments_of(read_topic(bootstrap_servers, topics.segments)) == []
    assert upload(closed_url, grant, item, headers=headers)[0] == 200


def test_a_lease_that_ends_is_renewed_by_another_gateway(closed: GatewayConfig, keys: Keys) -> None:
    """With its clock a lease's time ahead; what was opened stays, and may be late for longer."""
    headers = keys.of("acme/anna")
    with gateway(closed) as url:
        grant = start(url, headers)
    number, shown = grant["service_order_number"], {"lease": grant["lease"], **headers}

    def later() -> int:
        return int(grant["lease_expires_ms"] + 1_000) * 1_000_000

    with gateway(replace(closed, clock=later)) as url:
        item = segment(1, grant["server_timestamp_ms"])
        status, answer = upload(url, grant, item, headers=headers)
        assert (status, answer["reason"]) == (401, "LEASE_EXPIRED")
        status, renewed, _ = call(url, "POST", path_of(number, "/lease"), None, shown)
        assert status == 200
        assert renewed["lease_expires_ms"] >= grant["lease_expires_ms"]  # it asks what time it is
        assert renewed["accept_until_ms"] == renewed["lease_expires_ms"]
        changed = {"lease", "lease_expires_ms", "accept_until_ms", *STAMPS}
        assert {k: v for k, v in renewed.items() if k not in changed} == {
            k: v for k, v in grant.items() if k not in changed
        }
        status, answer = upload(url, renewed, item, headers=headers)
        assert answer.get("reason") != "LEASE_EXPIRED"


def test_what_cannot_have_been_is_refused(url: str) -> None:
    grant = start(url)
    at_ms = grant["server_timestamp_ms"]
    items = [segment(1, at_ms - 1), segment(2, at_ms), segment(3, at_ms + DAY_MS // 2)]
    status, answer = upload(url, grant, *items)
    assert status == 422
    reasons = {each["business_data_number"]: each["reason"] for each in answer["errors"]}
    assert reasons == {1: "BEFORE_OPENING", 3: "IN_THE_FUTURE"}
    assert upload(url, grant, items[1])[0] == 200


def test_three_days_offline_are_billed_under_a_lease(config: GatewayConfig) -> None:
    """Opened by a gateway four days ago, uploaded now: by its lease it isn't late."""
    wanted = {"interval_ms": 10_000, "now_ms": 0}
    with gateway(config) as url:
        now_ms = start(url)["server_timestamp_ms"]
        token, _ = _book(config).mint(
            "old", "default", "", **{**wanted, "now_ms": now_ms - 4 * DAY_MS}
        )
        grant = {"service_order_number": "old", "lease": token}
        item = segment(1, now_ms - 3 * DAY_MS)
        status, answer = upload(url, grant, item)
        assert (status, answer["accepted"]) == (200, 1)
        # Without a lease, or with one whose time has passed, it is by the window.
        assert call(url, "POST", path_of("old"), item)[1]["errors"][0]["reason"] == "TOO_LATE"
        older, _ = _book(config).mint(
            "old", "default", "", **{**wanted, "now_ms": now_ms - 8 * DAY_MS}
        )
        shown = {"lease": older}
        status, renewed, _ = call(url, "POST", path_of("old", "/lease"), None, shown)
        assert status == 200
        assert upload(url, renewed, item)[1]["errors"][0]["reason"] == "TOO_LATE"


def _book(config: GatewayConfig) -> Any:
    from durabill.producers.gateway.key_files import WatchedKeys
    from durabill.producers.gateway.leases import LeaseBook

    keys = WatchedKeys(config.authority.lease_keys_file, Kind.LEASE)
    return LeaseBook(keys, lease_ms=config.authority.lease_ms, is_required=False)


def test_keys_change_while_clients_report(closed: GatewayConfig, keys: Keys) -> None:
    """Two gateways, and the file of their keys changes under them: nothing is ever refused."""
    file, headers = closed.authority.lease_keys_file, keys.of("acme/anna")
    assert file is not None
    heads = set()
    with gateway(closed) as one, gateway(closed) as two:
        old = start(one, headers)
        for turn in range(200):
            if turn == 20:
                now_ms = time.time_ns() // 1_000_000
                replace_keys(file, rotated(read_keys(file, Kind.LEASE), now_ms, hand_over_ms=1_500))
            giver, taker = (one, two) if turn % 2 else (two, one)
            grant = start(giver, headers)
            heads.add(grant["lease"].partition(".")[0])
            for each in (grant, old):
                item = segment(turn + 1, each["server_timestamp_ms"])
                assert upload(taker, each, item, headers=headers)[0] == 200
            if len(heads) == 2:
                break
            time.sleep(0.05)
    assert len(heads) == 2, "the new key signs"


# -- starts that are repeated


def test_the_same_key_gives_the_same_order(
    url: str, bootstrap_servers: str, topics: Topics
) -> None:
    key = {"idempotency-key": "start-1"}
    body = {"service": "charging"}
    with ThreadPoolExecutor(8) as pool:
        grants = list(pool.map(lambda _: start(url, key, **body), range(16)))
    assert all(each == grants[0] for each in grants)
    quoted = {"idempotency-key": '"start-1"'}
    assert start(url, quoted, **body) == grants[0]
    assert len(read_topic(bootstrap_servers, topics.segments)) == 1
    status, answer, _ = call(url, "POST", "/v1/orders", {"service": "other"}, key)
    assert (status, answer["reason"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert start(url, {"idempotency-key": "start-2"}, **body) != grants[0]


def test_two_gateways_give_one_order_for_one_key(config: GatewayConfig) -> None:
    key = {"idempotency-key": "start-1"}
    with gateway(config) as one, gateway(config) as two:
        first, second = start(one, key), start(two, key)
    assert first["service_order_number"] == second["service_order_number"]
    assert second["server_timestamp_ms"] >= first["server_timestamp_ms"]


def test_a_key_is_its_tenants_and_its_clients(closed_url: str, keys: Keys) -> None:
    grants = [
        start(closed_url, {"idempotency-key": "1", **keys.of(who)})
        for who in ("acme/anna", "acme/bert", "umbra/carl", "acme/anna")
    ]
    assert len({each["service_order_number"] for each in grants}) == 3
    assert grants[3] == grants[0]


def test_a_start_that_failed_is_not_remembered(bootstrap_servers: str, topics: Topics) -> None:
    nothing = {"bootstrap.servers": "127.0.0.1:1"}
    with gateway(GatewayConfig(nothing, topics.segments, delivery_timeout_ms=300)) as url:
        for _ in range(2):
            key = {"idempotency-key": "start-1"}
            status, answer, _ = call(url, "POST", "/v1/orders", None, key)
            assert (status, answer["reason"]) == (503, "KAFKA_UNAVAILABLE")


@pytest.mark.parametrize("key", ["", " ", '""', "x" * 256, "a\tb", "a b", "ü"])
def test_keys_that_are_none(url: str, key: str) -> None:
    headers = {"idempotency-key": key.encode().decode("latin-1")}
    status, answer, _ = call(url, "POST", "/v1/orders", None, headers)
    assert (status, answer["reason"]) == (400, "BAD_IDEMPOTENCY_KEY")


def test_a_number_that_this_gateway_has_just_opened_is_in_use(url: str) -> None:
    wanted = {"service_order_number": "mine"}
    key = {"idempotency-key": "start-1"}
    grant = start(url, key, **wanted)
    status, answer, _ = call(url, "POST", "/v1/orders", wanted)
    assert (status, answer["reason"]) == (409, "ORDER_IN_USE")
    assert start(url, key, **wanted) == grant


OPENED = {"accept_until_ms": NOW_MS + 7 * DAY_MS, "server_timestamp_ms": NOW_MS - 5_000}
KEY = {"idempotency-key": "start-1"}


def known_as(number: str, **state: Any) -> dict[str, Any]:
    """What a worker says of an order."""
    return as_json(msgspec.structs.replace(a_state(number), **state))


@pytest.mark.parametrize(
    ("state", "headers", "status"),
    [
        ({}, {}, 409),
        ({}, KEY, 409),
        ({"opened": Opened(tenant="default", client="", **OPENED)}, {}, 409),
        ({"opened": Opened(tenant="default", client="", **OPENED)}, KEY, 409),
        ({"opened": Opened(tenant="default", client="", **OPENED), "segments": 0}, KEY, 201),
        ({"opened": Opened(tenant="default", client="", **OPENED), "segments": 0}, {}, 409),
        ({"opened": Opened(tenant="default", client="x", **OPENED), "segments": 0}, KEY, 409),
        ({"opened": Opened(tenant="umbra", client="", **OPENED), "segments": 0}, KEY, 409),
    ],
)
def test_a_number_that_the_worker_knows(
    config: GatewayConfig, state: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    """It is refused, but for the start that has opened it and has not reported."""
    answers: dict[str, object] = {"/orders/mine": known_as("mine", **state)}
    wanted = {"service_order_number": "mine"}
    with worker(answers) as known, gateway(replace(config, worker_urls=(known,))) as url:
        found, answer, _ = call(url, "POST", "/v1/orders", wanted, headers)
        assert (found, answer.get("reason")) == (status, "ORDER_IN_USE" if status == 409 else None)
        if status == 201:
            assert answer["server_timestamp_ms"] == OPENED["server_timestamp_ms"]
            assert answer["accept_until_ms"] == OPENED["accept_until_ms"]
        start(url, service_order_number="another")


def test_a_key_gives_its_order_again_whatever_became_of_it(config: GatewayConfig) -> None:
    """A gateway that doesn't remember asks the worker: same order, same server timestamp."""
    with gateway(config) as url:
        first = start(url, KEY)
    number = first["service_order_number"]
    times = {each: first[each] for each in OPENED}
    opened = Opened(tenant="default", client="", **times)
    answers: dict[str, object] = {f"/orders/{number}": known_as(number, opened=opened)}
    with worker(answers) as known, gateway(replace(config, worker_urls=(known,))) as url:
        second = start(url, KEY)
        changed = {"lease", "lease_expires_ms"}
        for name in first.keys() - changed:
            assert second[name] == first[name]
        item = segment(1, first["server_timestamp_ms"])
        assert upload(url, second, item)[0] == 200


def test_where_no_worker_answers_nobody_is_kept_from_starting(config: GatewayConfig) -> None:
    with gateway(replace(config, worker_urls=("http://127.0.0.1:1",))) as url:
        assert start(url, service_order_number="mine")["service_order_number"] == "mine"


def test_a_tenants_open_orders_are_bounded(closed: GatewayConfig, keys: Keys) -> None:
    with gateway(replace(closed, tenant_orders_max=2)) as url:
        anna, carl = keys.of("acme/anna"), keys.of("umbra/carl")
        first = start(url, anna)
        start(url, keys.of("acme/bert"))
        status, answer, headers = call(url, "POST", "/v1/orders", None, anna)
        assert (status, answer["reason"]) == (429, "QUOTA_ORDERS")
        assert int(headers["retry-after"]) > 0
        start(url, carl)
        end = segment(1, first["server_timestamp_ms"], 0, ends=True)
        assert upload(url, first, end, headers=anna)[0] == 200
        # Its worker keeps it for a while longer, so it still counts.
        assert call(url, "POST", "/v1/orders", None, anna)[1]["reason"] == "QUOTA_ORDERS"


def test_the_time_comes_with_its_scale(url: str) -> None:
    start(url)  # from now on it has the broker's time
    # A busy broker acknowledges late. Where it is quicker the next time, the scale may step.
    wait_until(lambda: is_one_scale(url, {"idempotency-key": uuid4().hex}), "the scale is one")


def is_one_scale(url: str, key: dict[str, str]) -> bool:
    """Whether the answers of all routes have one clock id; their times are right then."""
    _, first, _ = call(url, "GET", "/v1/time")
    _, second, _ = call(url, "GET", "/v1/time")
    grant, again = (call(url, "POST", "/v1/orders", None, key)[1] for _ in range(2))
    assert grant["server_timestamp_ms"] == again["server_timestamp_ms"]
    path = path_of(grant["service_order_number"], "/lease")
    _, renewed, _ = call(url, "POST", path, None, {"lease": grant["lease"]})
    _, answer = upload(url, grant, segment(1, grant["server_timestamp_ms"]))
    told = [first, second, grant, again, renewed, answer]
    if len({each["clock_id"] for each in told}) > 1:
        return False
    stamps = [each[name] for each in told for name in ("received_ms", "sent_ms")]
    assert stamps == sorted(stamps)  # a repeat gets the old timestamp, and the time of its answer
    assert len(json.dumps(answer["sent_ms"]).partition(".")[2]) <= 3
    return True
