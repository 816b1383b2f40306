"""A lease that is renewed, through gateways, workers and the audit: late by the lease alone."""

from dataclasses import replace
from pathlib import Path

from durabill.producers.gateway.authority import AuthorityConfig
from durabill.producers.gateway.key_files import make_keys
from durabill.producers.gateway.key_sets import Kind, new_keys
from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import Status, decode_total
from durabill.stream_processors.audit.replay import Engine
from tests.broker.audit_kit import audited, settings_of, told
from tests.broker.authority_kit import path_of, segment, start, upload
from tests.broker.gateway_kit import call, gateway
from tests.broker.traffic_kit import now_ms
from tests.broker.worker_kit import deployment
from tests.waiting import wait_until

SHORT_MS, LONG_MS, WINDOW_MS = 2_000, 3_600_000, 500


def test_a_renewed_lease_bills_what_is_late_for_the_one_before(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    file = tmp_path / "leases.json"
    make_keys(file, new_keys(Kind.LEASE))
    with deployment(
        bootstrap_servers, tmp_path, partitions=1, correction_window_s=WINDOW_MS / 1_000
    ) as made:
        worker = made.start_and_wait()
        short = AuthorityConfig(lease_keys_file=file, lease_ms=SHORT_MS)
        config = GatewayConfig(
            {"bootstrap.servers": bootstrap_servers},
            made.segments,
            correction_window_ms=WINDOW_MS,
            authority=short,
        )
        longer = replace(config, authority=replace(short, lease_ms=LONG_MS))
        with gateway(config) as opens, gateway(longer) as renews:
            grant = start(opens, service="gpu")
            number, begin_ms = grant["service_order_number"], grant["server_timestamp_ms"]
            shown = {"lease": grant["lease"]}
            status, renewed, _ = call(renews, "POST", path_of(number, "/lease"), None, shown)
            assert status == 200
            until_ms = renewed["accept_until_ms"]
            assert until_ms == renewed["lease_expires_ms"] >= begin_ms + LONG_MS
            late_ms = max(grant["accept_until_ms"], begin_ms + 1_000 + WINDOW_MS)
            wait_until(lambda: now_ms() > late_ms + 500, "the first lease is over")
            late = segment(1, begin_ms), segment(2, begin_ms + 10, ends=True)
            assert upload(renews, renewed, *late)[0] == 200
        made.wait_for_truth()
        state = worker.order(number)[1]
        assert state["opened"]["accept_until_ms"] == until_ms
        assert worker.stop() == 0
        *_, arrived, ended = made.log()
        assert min(arrived.append_ms, ended.append_ms) > late_ms
        totals = [decode_total(each.value() or b"") for each in made.found_totals()]
        assert [(each.status, each.duration_ms) for each in totals] == [(Status.COMPLETE, 20)]
        assert [each.key() for each in made.found_openings()] == [number.encode()]
        assert made.found_letters() == []
        for engine in Engine:  # each replays the log
            result = audited(settings_of(made), engine=engine, with_ledger=False)
            assert told(result) == []
            assert (result.openings, result.openings_proven) == (1, 1)
