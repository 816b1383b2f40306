"""Clients in other languages, and our own: over HTTP by conformance, into Kafka by their totals.

Where a toolchain isn't on the machine, its client is skipped, and says so.
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from durabill.schemas import Status, decode_total
from tests.broker.worker_kit import deployment, wait_until
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

pytestmark = pytest.mark.slow  # compilers, the first time for a minute; the play takes seconds

ORDERS, SEGMENTS, INTERVAL_MS = 3, 20, 500


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
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    expected = [
        [each["value_hex"], each["murmur2"], *map(str, each["partitions"].values())]
        for each in segments_file()["segments"]
    ]
    assert [line.split() for line in ran.stdout.splitlines()] == expected


def test_totals_of_what_they_write_into_kafka(bootstrap_servers: str, tmp_path: Path) -> None:
    commands: dict[str, list[str]] = {}
    reasons = []
    for name, builder in BUILDERS.items():
        try:
            commands[name] = builder()
        except CannotBuild as error:
            reasons.append(f"{TITLES[name]}: {error}")
    if not commands:
        pytest.skip("; ".join(reasons))
    with deployment(bootstrap_servers, tmp_path) as deployed:
        variables = {
            "BOOTSTRAP_SERVERS": bootstrap_servers,
            "TOPIC": deployed.segments,
            "ORDERS": str(ORDERS),
            "SEGMENTS": str(SEGMENTS),
            "INTERVAL_MS": str(INTERVAL_MS),
        }

        def write(command: list[str]) -> list[str]:
            ran = subprocess.run(
                [*command, "kafka"],
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr
            return ran.stdout.split()

        with ThreadPoolExecutor(len(commands)) as pool:
            written = list(pool.map(write, commands.values()))
        worker = deployed.start_and_wait()
        wait_until(lambda: len(deployed.found_totals()) >= ORDERS * len(commands), "all totals")
        assert worker.stop() == 0
        totals = [decode_total(each.value()) for each in deployed.found_totals()]
        assert {each.service_order_number for each in totals} == {
            order for orders in written for order in orders
        }
        assert {each.status for each in totals} == {Status.COMPLETE}
        assert {each.duration_ms for each in totals} == {SEGMENTS * INTERVAL_MS}
        assert {(each.segments, each.duplicates, each.gap_ms) for each in totals} == {
            (SEGMENTS, 0, 0)
        }
        assert deployed.found_letters() == []
    if reasons:
        pytest.skip(f"without {'; '.join(reasons)}")
