"""One hostile tenant beside nine good ones: its flood is refused, their totals come."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import decode_total
from tests.broker.authority_kit import Keys, make_api_keys, path_of, segment, start, upload
from tests.broker.gateway_kit import call, gateway
from tests.broker.worker_kit import deployment
from tests.waiting import wait_until

GOOD = [f"good-{at}/meter" for at in range(9)]
HOSTILE = "hostile/flood"
FLOODERS = 12
FLOOD_SEGMENTS = 200
UPLOADS = 4


@contextmanager
def flood(url: str, keys: Keys) -> Iterator[dict[int, int]]:
    """A flood around a block; gives how often each status has come."""
    grant = start(url, keys.of(HOSTILE))
    number, at_ms = grant["service_order_number"], grant["server_timestamp_ms"]
    shown = {"lease": grant["lease"], **keys.of(HOSTILE)}
    items = [segment(at, at_ms, at) for at in range(1, FLOOD_SEGMENTS + 1)]
    body, ended, statuses = json.dumps(items).encode(), threading.Event(), dict[int, int]()

    def post() -> None:
        while not ended.is_set():
            status, _, _ = call(url, "POST", path_of(number), body, shown)
            statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=post) for _ in range(FLOODERS)]
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


def test_one_hostile_tenant_beside_nine_good_ones(bootstrap_servers: str, tmp_path: Path) -> None:
    keys = make_api_keys(tmp_path / "api.json", HOSTILE, *GOOD)
    with deployment(bootstrap_servers, tmp_path, settle_grace_s=0.2) as deployed:
        worker = deployed.start()
        config = GatewayConfig(
            {"bootstrap.servers": bootstrap_servers},
            deployed.topics.segments,
            access=keys.access,
            in_flight_segments_max=3 * FLOOD_SEGMENTS,
        )
        with gateway(config) as url:
            with flood(url, keys) as statuses:
                wait_until(lambda: statuses.get(429, 0) > 0, "the flood is refused")
                with ThreadPoolExecutor(len(GOOD)) as pool:
                    reported = pool.map(lambda who: report(url, keys.of(who)), GOOD)
                    numbers = set(reported)
            assert statuses.get(200, 0) > 0, "it isn't shut out either"
            assert set(statuses) <= {200, 429}, statuses
        deployed.wait_for_owners(worker)

        def totals() -> dict[str, Any]:
            found = [decode_total(each.value()) for each in deployed.found_totals()]
            return {each.service_order_number: each for each in found}

        wait_until(lambda: numbers <= totals().keys(), "the good tenants' totals")
        for number in numbers:
            total = totals()[number]
            assert (total.status, total.duration_ms) == ("COMPLETE", 10 * UPLOADS)
