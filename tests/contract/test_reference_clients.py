"""Clients in other languages, and our own: over HTTP by conformance, into Kafka by their totals.

Where a toolchain isn't on the machine, its client is skipped, and says so.
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.schemas import Status, decode_total
from tests.broker.gateway_kit import gateway
from tests.broker.worker_kit import deployment
from tests.contract.clients_kit import (
    BUILDERS,
    TITLES,
    CannotBuild,
    Outcome,
    all_played,
    feature_table,
    verdicts_of,
)
from tests.unit.documents import section
from tests.vectors import FOLDER
from tests.vectors.records import segments_file
from tests.waiting import HANG_S, wait_until

pytestmark = pytest.mark.slow  # compilers, the first time for a minute; the play takes seconds

ORDERS, SEGMENTS, INTERVAL_MS = 2, 10, 100


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What the conformance server says of each client."""
    return all_played()


def build(name: str) -> list[str]:
    """Return a client's command, or skip the test with the reason."""
    try:
        return BUILDERS[name]()
    except CannotBuild as error:
        pytest.skip(f"the client in {TITLES[name]} can't be built here: {error}")


@pytest.mark.parametrize("name", TITLES)
def test_it_conforms_over_http(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    if outcome.matrix is None:
        pytest.skip(f"the client in {TITLES[name]} can't be built here: {outcome.said}")
    wrong = [each for each in outcome.matrix["features"] if each["verdict"] != "pass"]
    assert outcome.matrix["conforms"], (wrong, outcome.said)


def test_the_matrix_in_the_documents_is_what_came_of_it(outcomes: dict[str, Outcome]) -> None:
    told = section("docs/clients.md", "## The feature matrix")
    rows = re.findall(r"^\| `\w+` \|.*$", told, re.M)
    cells = {row.split("|")[1].strip(" `"): row.split("|")[3:-1] for row in rows}
    marks = {"yes": "pass", "no": "fail", "-": "not seen"}
    documented = {
        name: {feature: marks[cell[at].strip()] for feature, cell in cells.items()}
        for at, name in enumerate(TITLES)
    }
    assert feature_table(documented) in told
    for name, outcome in outcomes.items():
        if outcome.matrix is not None:
            assert documented[name] == verdicts_of(outcome), "python -m tests.contract.clients_kit"


@pytest.mark.parametrize("name", BUILDERS)
def test_it_writes_the_vectors_bytes(name: str) -> None:
    ran = subprocess.run(
        [*build(name), "vectors", str(FOLDER / "segments.json")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    expected = [
        [each["value_hex"], each["murmur2"], *map(str, each["partitions"].values())]
        for each in segments_file()["segments"]
    ]
    assert [line.split() for line in ran.stdout.splitlines()] == expected


def test_what_they_send_is_billed(bootstrap_servers: str, tmp_path: Path) -> None:
    """Into Kafka, and over HTTP by a real gateway, which judges by leases and by the clock."""
    commands: dict[str, list[str]] = {}
    reasons = []
    for name, builder in BUILDERS.items():
        try:
            commands[name] = builder()
        except CannotBuild as error:
            reasons.append(f"{TITLES[name]}: {error}")
    if not commands:
        pytest.skip("; ".join(reasons))
    with deployment(bootstrap_servers, tmp_path) as deployed, ExitStack() as stack:
        kafka: dict[str, Any] = {"bootstrap.servers": bootstrap_servers}
        config = GatewayConfig(kafka, deployed.segments, report_interval_ms=INTERVAL_MS)
        variables = {
            "BASE_URL": stack.enter_context(gateway(config)),
            "BOOTSTRAP_SERVERS": bootstrap_servers,
            "TOPIC": deployed.segments,
            "ORDERS": str(ORDERS),
            "SEGMENTS": str(SEGMENTS),
            "INTERVAL_MS": str(INTERVAL_MS),
        }
        runs = [[*each, mode] for each in commands.values() for mode in ("kafka", "http")]
        with ThreadPoolExecutor(len(runs)) as pool:
            written = list(pool.map(lambda command: send(command, variables), runs))
        worker = deployed.start_and_wait()
        wait_until(lambda: len(deployed.found_totals()) >= ORDERS * len(runs), "all totals")
        assert worker.stop() == 0
        totals = [decode_total(each.value()) for each in deployed.found_totals()]
        assert deployed.found_letters() == []
        assert {each.status for each in totals} == {Status.COMPLETE}
        assert {(each.segments, each.duplicates, each.gap_ms) for each in totals} == {
            (SEGMENTS, 0, 0)
        }
        straight = {order for orders in written for order in orders}
        assert len(straight) == ORDERS * len(commands)  # over HTTP the numbers are the gateway's
        exact_ms = SEGMENTS * INTERVAL_MS
        for each in totals:
            is_exact = each.service_order_number in straight
            assert is_exact == (each.service_order_number[:3] in ("JAV", "GO-", "TS-"))
            assert each.duration_ms == exact_ms if is_exact else each.duration_ms >= exact_ms
    if reasons:
        pytest.skip(f"without {'; '.join(reasons)}")


def send(command: list[str], variables: dict[str, str]) -> list[str]:
    """Run a client to its end; return the order numbers that it tells."""
    ran = subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()
