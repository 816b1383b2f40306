"""One hostile tenant beside nine good ones: its flood is refused, their totals come."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import decode_total
from tests.broker.authority_kit import Keys, make_api_keys, path_of, segment, start, upload
from tests.broker.gateway_kit import call, gateway
from tests.broker.ledger_kit import new_ledger_dsn
from tests.broker.worker_kit import deployment
from tests.waiting import wait_until

GOOD = [f"good-{at}/meter" for at in range(9)]
HOSTILE = "hostile/flood"
FLOODS = [*["upload"] * 12, *["start", "own number", "renew", "look up", "look for none"] * 4]
ORDERS_MAX = 40
FLOOD_SEGMENTS = 200
UPLOADS = 4


@contextmanager
def flood(url: str, keys: Keys) -> Iterator[Counter[tuple[str, int]]]:
    """A flood around a block, by every route; gives how often each has had each status."""
    grant = start(url, keys.of(HOSTILE))
    number, at_ms = grant["service_order_number"], grant["server_timestamp_ms"]
    shown = {"lease": grant["lease"], **keys.of(HOSTILE)}
    items = [segment(at, at_ms, at) for at in range(1, FLOOD_SEGMENTS + 1)]
    body, ended = json.dumps(items).encode(), threading.Event()
    statuses: Counter[tuple[str, int]] = Counter()
    own = itertools.count()

    def post(what: str) -> None:
        while not ended.is_set():
            named = {"service_order_number": f"flood-{next(own)}"}
            many = {"attributes": {f"{at:02}": "x" * 256 for at in range(16)}}
            method, path, content = {
                "upload": ("POST", path_of(number), body),
                "start": ("POST", "/v1/orders", many),
                "own number": ("POST", "/v1/orders", named),
                "renew": ("POST", path_of(number, "/lease"), None),
                "look up": ("GET", path_of(number, ""), None),
                "look for none": ("GET", path_of("none", ""), None),
            }[what]
            status, _, _ = call(url, method, path, content, shown)
            statuses[what, status] += 1

    threads = [threading.Thread(target=post, args=(each,)) for each in FLOODS]
    for each in threads:
        each.start()
    try:
        yield statuses
    finally:
        ended.set()
        for each in threads:
            each.join()


def report(url: str, headers: dict[str, str]) -> str:
    """An order of a good tenant, from its start to its end; every request must be taken."""
    grant = start(url, headers)
    at_ms = grant["server_timestamp_ms"]
    for number in range(1, UPLOADS + 1):
        ends = number == UPLOADS
        item = segment(number, at_ms + 10 * number, ends=ends)
        status, answer = upload(url, grant, item, headers=headers)
        assert (status, answer["accepted"]) == (200, 1), answer
    return str(grant["service_order_number"])


def refused(statuses: Counter[tuple[str, int]], what: str) -> bool:
    return statuses[what, 429] > 0


def test_one_hostile_tenant_beside_nine_good_ones(
    bootstrap_servers: str, postgres_dsn: str, tmp_path: Path
) -> None:
    keys = make_api_keys(tmp_path / "api.json", HOSTILE, *GOOD)
    with deployment(bootstrap_servers, tmp_path, settle_grace_s=0.2) as deployed:
        worker = deployed.start()
        config = GatewayConfig(
            {"bootstrap.servers": bootstrap_servers},
            deployed.topics.segments,
            access=keys.access,
            in_flight_segments_max=3 * FLOOD_SEGMENTS,
            tenant_orders_max=ORDERS_MAX,
            worker_urls=(f"http://127.0.0.1:{worker.port}",),
            ledger_dsn=new_ledger_dsn(postgres_dsn),
        )
        with gateway(config) as url:
            with flood(url, keys) as statuses:
                for what in ("upload", "start"):
                    wait_until(partial(refused, statuses, what), f"the flood is refused: {what}")
                with ThreadPoolExecutor(len(GOOD)) as pool:
                    reported = pool.map(lambda who: report(url, keys.of(who)), GOOD)
                    numbers = set(reported)
            assert statuses["upload", 200] > 0, "it isn't shut out either"
            assert statuses["start", 201] > 0
            assert {what for what, _ in statuses} == set(FLOODS)
            assert {status for _, status in statuses} <= {200, 201, 404, 429, 503}, statuses
            assert all(what.startswith("look") for what, status in statuses if status in (404, 503))
        deployed.wait_for_owners(worker)

        def totals() -> dict[str, Any]:
            found = [decode_total(each.value()) for each in deployed.found_totals()]
            return {each.service_order_number: each for each in found}

        wait_until(lambda: numbers <= totals().keys(), "the good tenants' totals")
        for number in numbers:
            total = totals()[number]
            assert (total.status, total.duration_ms) == ("COMPLETE", 10 * UPLOADS)
