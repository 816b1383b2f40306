"""Who may ask a gateway, over HTTP: keys, scopes, tenants, limits."""

import logging
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from durabill.producers.gateway.auth.access import AccessLimits
from durabill.producers.gateway.auth.api_keys import SCOPE_NAMES, ApiKeyFile
from durabill.producers.gateway.auth.config import AccessConfig
from durabill.producers.gateway.routes import ROUTES, Route
from durabill.producers.gateway.server import GatewayConfig, make_app
from durabill.schemas.errors import SettingsError
from durabill.schemas.order_state import Opened
from tests.broker.access_kit import NOTHING_HERE, Keys
from tests.broker.gateway_kit import call, exchange, gateway
from tests.broker.ledger_kit import new_ledger_dsn
from tests.broker.test_gateway_lookup import asked as asked_workers
from tests.broker.test_gateway_lookup import insert_total, worker
from tests.conftest import Topics
from tests.state_kit import a_state, as_json
from tests.waiting import wait_until

Headers = dict[str, str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    found = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    found.write(ApiKeyFile(1, ()))
    return found


@pytest.fixture(scope="module")
def by_scope(keys: Keys) -> dict[str, Headers]:
    return {scope: keys.add("acme", scope) for scope in SCOPE_NAMES}


@pytest.fixture(scope="module")
def url(keys: Keys, by_scope: dict[str, Headers]) -> Iterator[str]:
    with gateway(keys.config(clock=lambda: 10**18)) as base_url:
        yield base_url


# What those are told who may not, and what is left of it in the answer to a HEAD.
WALLS = [(401, "UNAUTHORIZED"), (401, ""), (403, "INSUFFICIENT_SCOPE"), (403, "")]


def path_of(route: Route) -> str:
    return route.path.replace("{number}", "SO1")


# Which scope each route needs: by hand, so that a new one is thought about.
SCOPES = {
    "startOrder": "report",
    "renewLease": "report",
    "addSegments": "report",
    "addUploads": "report",
    "getOrder": "read",
    "getClients": "admin",
    "getReceiptKeys": None,
    "getTime": None,
    "getHealth": None,
    "getReadiness": None,
    "getOpenapi": None,
    "getDocs": None,
}


def test_every_route_has_its_scope() -> None:
    assert {each.operation: each.scope for each in ROUTES} == SCOPES


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
@pytest.mark.parametrize("method", ["as it is", "HEAD"])
def test_a_route_is_for_its_scope_alone(
    route: Route, method: str, url: str, by_scope: dict[str, Headers]
) -> None:
    if method == "HEAD" and route.method != "GET":
        return
    verb = route.method if method == "as it is" else method
    shown: list[tuple[str | None, Headers]] = [(None, {}), *by_scope.items()]
    found: dict[str | None, object] = {}
    for who, headers in shown:
        status, answer, _ = call(url, verb, path_of(route), None, headers)
        found[who] = status, answer["reason"] if status >= 400 and answer else ""
    if route.scope is None:
        assert not [each for each in found.values() if each in WALLS]
        return
    assert found.pop(None) in WALLS[:2]
    assert found.pop(route.scope) not in WALLS
    assert not [each for each in found.values() if each not in WALLS[2:]]


def test_what_is_wanted_is_said(url: str, by_scope: dict[str, Headers]) -> None:
    status, answer, headers = call(url, "GET", "/v1/orders/SO1")
    assert (status, answer["reason"]) == (401, "UNAUTHORIZED")
    assert headers["www-authenticate"] == "Bearer"
    wrong = {"authorization": "Bearer dbk_0"}
    _, _, headers = call(url, "GET", "/v1/orders/SO1", None, wrong)
    assert headers["www-authenticate"] == 'Bearer error="invalid_token"'
    status, answer, headers = call(url, "GET", "/v1/orders/SO1", None, by_scope["report"])
    assert (status, answer["reason"]) == (403, "INSUFFICIENT_SCOPE")
    assert headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read"'


def test_who_asks_is_known_before_a_byte_of_the_body(url: str) -> None:
    """The body of somebody unknown is not even waited for, with `Expect` it is not asked for."""
    head = (
        "POST /v1/orders/SO1/segments HTTP/1.1\r\nhost: localhost\r\n"
        "content-type: application/json\r\ncontent-length: 500000\r\n"
    )
    for more in ("", "expect: 100-continue\r\n"):
        found = exchange(url, f"{head}{more}\r\n".encode(), wait_for_end=False)
        assert found.startswith(b"HTTP/1.1 401 ")
        assert b"100 Continue" not in found


def test_two_authorization_headers_are_refused(url: str, by_scope: dict[str, Headers]) -> None:
    good = by_scope["read"]["authorization"]
    for values in ((good, good), (good, "Bearer x"), ("Bearer x", good)):
        lines = "".join(f"authorization: {each}\r\n" for each in values)
        sent = f"GET /v1/orders/SO1 HTTP/1.1\r\nhost: localhost\r\n{lines}connection: close\r\n\r\n"
        found = exchange(url, sent.encode())
        assert found.startswith(b"HTTP/1.1 400 ")
        assert b"BAD_AUTHORIZATION" in found


def test_bytes_that_are_no_text_open_nothing(url: str) -> None:
    for value in (b"Bearer \xff\xfe", b"Bearer dbk_\xc3\xa9", b"\xff", b"Bearer " + b"x" * 8_000):
        sent = b"GET /v1/orders/SO1 HTTP/1.1\r\nhost: localhost\r\nauthorization: " + value
        found = exchange(url, sent + b"\r\nconnection: close\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 401 ")
    sent = b"GET /v1/time HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + b"x" * 50_000
    assert exchange(url, sent + b"\r\n\r\n").startswith(b"HTTP/1.0 400 ")


def test_a_key_in_the_url_opens_nothing(url: str, by_scope: dict[str, Headers]) -> None:
    key = by_scope["read"]["authorization"].removeprefix("Bearer ")
    assert call(url, "GET", f"/v1/orders/SO1?access_token={key}")[0] == 401


def test_a_gateway_that_listens_elsewhere_without_a_word_does_not_start() -> None:
    kafka = {"bootstrap.servers": NOTHING_HERE}
    with pytest.raises(SettingsError, match="DURABILL_GATEWAY_AUTH"):
        make_app(GatewayConfig(kafka, host="0.0.0.0"))
    proxied = GatewayConfig(
        kafka, host="0.0.0.0", access=AccessConfig("proxy"), delivery_timeout_ms=100
    )
    with gateway(proxied) as url:
        local = url.replace("0.0.0.0", "127.0.0.1")
        assert call(local, "POST", "/v1/orders")[0] == 503  # no Kafka here, but let in


def test_a_caller_is_told_its_limit_and_held_to_it(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    one, other = keys.add("acme", "read"), keys.add("acme", "read")
    limits = AccessLimits(requests_per_s=1)
    with gateway(keys.config(access_limits=limits, monotonic=lambda: 10**12)) as url:
        for left in range(9, -1, -1):
            status, _, headers = call(url, "GET", "/v1/orders/a%0Ab", None, one)
            assert (status, headers["ratelimit-policy"]) == (422, '"caller";q=10;w=10')
            assert headers["ratelimit"] == f'"caller";r={left};t={10 - left}'
        status, answer, headers = call(url, "GET", "/v1/orders/a%0Ab", None, one)
        assert (status, answer["reason"]) == (429, "TOO_MANY_REQUESTS")
        assert (headers["retry-after"], headers["ratelimit"]) == ("1", '"caller";r=0;t=10')
        assert call(url, "GET", "/v1/orders/a%0Ab", None, other)[0] == 422
        assert "ratelimit" not in call(url, "GET", "/v1/time", None, one)[2]


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    good = keys.add("acme", "read")
    limits = AccessLimits(failures_per_min=3)
    with gateway(keys.config(access_limits=limits, monotonic=lambda: 10**12)) as url:
        wrong = {"authorization": "Bearer " + "dbk_" + "0" * 12 + "_" + "0" * 64}
        found = [call(url, "GET", "/v1/orders/SO1", None, wrong) for _ in range(5)]
        assert [status for status, _, _ in found] == [401, 401, 401, 429, 429]
        assert found[-1][1]["reason"] == "TOO_MANY_FAILURES"
        assert found[-1][2]["retry-after"] == "20"
        assert call(url, "GET", "/v1/orders/a%0Ab", None, good)[0] == 422


def test_a_key_that_is_made_or_revoked_is_known_without_a_restart(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    keys.write(ApiKeyFile(1, ()))
    with gateway(keys.config()) as url:
        new = keys.add("acme", "read")

        def status() -> int:
            return call(url, "GET", "/v1/orders/a%0Ab", None, new)[0]

        wait_until(lambda: status() == 422, "the key is known")
        keys.write(ApiKeyFile(1, ()))
        wait_until(lambda: status() == 401, "the key is gone")


# -- tenants -------------------------------------------------------------------------------------


def opened_by(number: str, tenant: str | None) -> object:
    state = as_json(a_state(number))
    if tenant is not None:
        opened = Opened(tenant=tenant, client="", server_timestamp_ms=0, accept_until_ms=1)
        state["opened"] = {name: getattr(opened, name) for name in opened.__struct_fields__}
    return state


ORDERS = {
    "OWN": ("acme", True),
    "OTHERS": ("other", False),
    "acme:own": (None, True),
    "acme:theirs": ("other", False),
    "other:theirs": (None, False),
    "OLD": (None, False),  # opened by nobody: the default tenant's
}


def test_a_tenant_sees_its_own_orders_alone(tmp_path: Path) -> None:
    """Of a worker, also one of an older version, which doesn't look whose an order is."""
    keys = Keys(tmp_path / "keys")
    own, admin = keys.add("acme", "read"), keys.add("acme", "read", "admin")
    default = keys.add("default", "read")
    states = {
        f"/orders/{number.replace(':', '%3A')}": opened_by(number, tenant)
        for number, (tenant, _) in ORDERS.items()
    }
    with worker(states) as knows, gateway(keys.config([knows])) as url:
        _, unknown, unknown_headers = call(url, "GET", "/v1/orders/NOBODYS", None, own)
        asked_workers.clear()
        for number, (_, is_own) in ORDERS.items():
            path = f"/v1/orders/{number}"
            status, answer, headers = call(url, "GET", path, None, own)
            assert status == (200 if is_own else 404), number
            if not is_own:  # word for word as of a number that nobody has
                assert answer == unknown
                names = ("content-length", "content-type", "ratelimit-policy")
                assert [headers[each] for each in names] == [unknown_headers[e] for e in names]
            assert call(url, "GET", path, None, admin)[0] == 200
        assert call(url, "GET", "/v1/orders/OLD", None, default)[0] == 200
        # The worker was asked in the same way whosever it was.
        assert len([path for path, _ in asked_workers if path.endswith("&tenant=acme")]) == 6


def test_a_tenant_sees_its_own_totals_alone(postgres_dsn: str, tmp_path: Path) -> None:
    """Of the ledger: by the opening that a total rests on, and else by the number."""
    dsn = new_ledger_dsn(postgres_dsn)
    with psycopg.connect(dsn) as connection:
        for number in ORDERS:
            insert_total(connection, number)
        connection.execute("INSERT INTO orders " + OPENINGS)
    keys = Keys(tmp_path / "keys")
    own, admin = keys.add("acme", "read"), keys.add("acme", "read", "admin")
    with worker({}) as knows_none, gateway(keys.config([knows_none], ledger_dsn=dsn)) as url:
        _, unknown, _ = call(url, "GET", "/v1/orders/NOBODYS", None, own)
        for number, (_, is_own) in ORDERS.items():
            status, answer, _ = call(url, "GET", f"/v1/orders/{number}", None, own)
            assert status == (200 if is_own else 404), number
            assert is_own or answer == unknown
            assert call(url, "GET", f"/v1/orders/{number}", None, admin)[0] == 200


# What the ledger has of the orders that somebody opened.
OPENINGS = """
    (service_order_number, tenant, client, service, attributes, server_timestamp_ms,
     report_interval_ms, accept_until_ms, source_partition, source_offset,
     orders_topic, orders_partition, orders_offset, orders_append_ms)
    VALUES ('OWN', 'acme', '', '', '{}', 0, 1, 1, 0, 0, 'o', 0, 0, 0),
           ('OTHERS', 'other', '', '', '{}', 0, 1, 1, 0, 0, 'o', 0, 1, 0),
           ('acme:theirs', 'other', '', '', '{}', 0, 1, 1, 0, 0, 'o', 0, 2, 0)
"""


def test_without_authentication_all_orders_are_seen() -> None:
    states = {f"/orders/{number}": opened_by(number, "acme") for number in ("A", "B")}
    with worker(states) as knows:
        config = GatewayConfig({"bootstrap.servers": NOTHING_HERE}, worker_urls=(knows,))
        with gateway(config) as url:
            assert [call(url, "GET", f"/v1/orders/{each}")[0] for each in "AB"] == [200, 200]


def test_an_order_is_its_openers_from_start_to_end(
    bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    """Its lease opens it to nobody else, and what was stored a moment ago shows to nobody else."""
    keys = Keys(tmp_path / "keys")
    own, other = keys.add("acme", "read", "report"), keys.add("other", "read", "report")
    kafka = {"bootstrap.servers": bootstrap_servers}
    with worker({}) as knows_none:
        config = keys.config(
            [knows_none], kafka=kafka, topic=topics.segments, delivery_timeout_ms=30_000
        )
        with gateway(config) as url:
            status, grant, _ = call(url, "POST", "/v1/orders", None, own)
            assert status == 201, grant
            number, now_ms = grant["service_order_number"], grant["server_timestamp_ms"]
            path, lease = f"/v1/orders/{number}", {"lease": grant["lease"]}
            times = {"start_ms": now_ms, "end_ms": now_ms + 1, "end_identifier": False}
            body = {"business_data_number": 1, **times}
            status, answer, _ = call(url, "POST", f"{path}/segments", body, own | lease)
            assert (status, answer["accepted"]) == (200, 1)
            status, answer, _ = call(url, "POST", f"{path}/segments", body, other | lease)
            assert (status, answer["reason"]) == (403, "LEASE_OF_ANOTHER")
            assert call(url, "POST", f"{path}/lease", None, other | lease)[0] == 403
            assert call(url, "POST", f"{path}/segments", body, other)[0] == 401
            for shown, reason in ((lease, "LEASE_OF_ANOTHER"), ({}, "LEASE_MISSING")):
                upload = {"service_order_number": number, "segments": [body], **shown}
                status, answer, _ = call(url, "POST", "/v1/segments", {"uploads": [upload]}, other)
                (judged,) = answer["uploads"]
                assert (status, judged["stored"]) == (200, 0)
                assert [each["reason"] for each in judged["errors"]] == [reason]
            # The worker has not read it yet: that is told to whose it is.
            assert call(url, "GET", path, None, own)[0] == 503
            assert call(url, "GET", path, None, other)[0] == 404
            status, grant, _ = call(
                url, "POST", "/v1/orders", {"service_order_number": "m1"}, other
            )
            assert (status, grant["service_order_number"]) == (201, "other:m1")


def test_no_secret_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = Keys(tmp_path / "keys")
    good = keys.add("acme", "read", "report")
    key = good["authorization"].removeprefix("Bearer ")
    with (
        caplog.at_level(logging.DEBUG),
        gateway(keys.config(access_log=True, delivery_timeout_ms=100)) as url,
    ):
        for headers in (good, {"authorization": f"Bearer {key}0"}, {"authorization": key}):
            call(url, "GET", f"/v1/orders/SO1?access_token={key}", None, headers)
            call(url, "GET", f"/v1/orders/{key}", None, headers)
            call(url, "POST", "/v1/orders", None, headers)
        config = keys.config()
    records = [repr(vars(each)) for each in caplog.records]
    texts = [*caplog.messages, *records, repr(config), "".join(capfd.readouterr())]
    assert any("/v1/orders/SO1?access_token=dbk_" in each for each in texts)
    assert len([each for each in texts if "is not let in: UNAUTHORIZED" in each]) == 2  # damped
    secret = key.rpartition("_")[2]
    assert not [text for text in texts if secret in text]
