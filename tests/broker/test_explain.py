"""`durabill explain` and `durabill leakage` on a real log, as people call them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from durabill.schemas.headers import FORWARDED_FROM, RESENT_FROM
from tests.broker.ledger_kit import new_ledger_dsn, running_ledger
from tests.broker.test_cli import run
from tests.broker.test_order import NUMBER, PARTITIONS, Log, letter_of, part
from tests.waiting import wait_until


@pytest.fixture
def log(bootstrap_servers: str, tmp_path: Path) -> Iterator[Log]:
    found = Log(bootstrap_servers, tmp_path)
    yield found
    found.delete()


def report(log: Log) -> None:
    """A record that was sent on, a repeat, a late one that was sent back, one from the future."""
    wrong = (log.own + 1) % PARTITIONS
    log.segment(3_000, 3, 2, end=True, headers=((FORWARDED_FROM, f"{wrong}/0".encode()),))
    log.segment(3_100, 1, 0)
    log.segment(3_200, 1, 0)
    log.segment(6_000, 2, 1, headers=((RESENT_FROM, b"letters/0/<b>\x1b"),))
    log.segment(6_100, 7, 900)
    other = next(each for each in map(str, range(99)) if part(each) == log.own)
    log.segment(90_000, 1, 0, key=other)


def test_an_order_is_explained_in_every_form(log: Log, tmp_path: Path) -> None:
    report(log)
    totals = log.totals()
    log.publish(totals[:1])
    svg, html = tmp_path / "order.svg", tmp_path / "order.html"
    html.write_text("one from before")
    ran = run("explain", NUMBER, "--json", "--svg", str(svg), "--html", str(html), **log.settings)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [each["verdict"] for each in told["records"]] == [
        "counted",
        "counted",
        "repeat, adds nothing",
        "counted",
        "dead letter: IN_THE_FUTURE",
    ]
    assert told["records"][2]["counted_before"] == told["records"][1]["gained"]
    assert told["records"][0]["forwarded_from"] == f"{(log.own + 1) % PARTITIONS}/0"
    assert told["records"][3]["resent_from"] == "letters/0/<b>\x1b"
    assert [(each["caused_by"], each["published"]) for each in told["revisions"]] == [
        ("settle_grace", True),
        ("correction_grace", False),
    ]
    assert [each["state"] for each in told["lives"][0]["states"]] == [
        *("ENDED", "SETTLED", "REOPENED", "SETTLED", "FORGOTTEN")
    ]
    assert f"wrote the picture to {svg}" in ran.stderr
    assert "5 records received" in "".join(ElementTree.parse(svg).getroot().itertext())
    page = html.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "letters/0/&lt;b&gt;\\u001b" in page
    assert [each.stat().st_mode & 0o777 for each in (svg, html)] == [0o600] * 2

    ran = run("explain", NUMBER, "--rows", "2", **log.settings)
    assert 'Order "SO-1\\u202e", partition' in ran.stdout
    assert "3 more, --rows 0 shows all" in ran.stdout
    assert f"      sent on from {(log.own + 1) % PARTITIONS}/0\n" in ran.stdout


def test_what_cant_be_explained_or_written_is_told(log: Log, tmp_path: Path) -> None:
    ran = run("explain", "never-seen", "--svg", str(tmp_path / "none.svg"), **log.settings)
    assert ran.returncode == 1
    assert ran.stderr.endswith("The log has no record of order never-seen.\n")
    assert not (tmp_path / "none.svg").exists()
    ran = run("explain", "x", "--html", str(tmp_path / "no" / "x.html"), **log.settings)
    assert ran.returncode == 1
    assert f"{tmp_path}/no: there is no such folder" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_leakage_of_topic_and_ledger(log: Log, tmp_path: Path, postgres_dsn: str) -> None:
    report(log)
    log.publish(log.totals())
    letters = log.settings["dead_letters_topic"]
    future = log.records[4]
    assert future.value is not None
    log.put(letters, NUMBER.encode(), future.value, letter_of(log, 4, b"IN_THE_FUTURE"))
    log.put(letters, b"lost", b"garbage", letter_of(log, 5, b"NOT_AVRO"))
    log.put(log.settings["totals_topic"], b"x", b"no total")
    dsn = new_ledger_dsn(postgres_dsn)
    kafka = {"bootstrap.servers": log.settings["bootstrap_servers"]}
    with running_ledger(kafka, log.settings["totals_topic"], dsn) as ledger:
        wait_until(lambda: ledger.stats.unreadable == 1, "all of the topic is recorded")

    path = tmp_path / "look-at.csv"
    ran = run("leakage", "--json", "--csv", str(path), **log.settings)
    assert ran.returncode == 0, ran.stderr
    topic = json.loads(ran.stdout)
    assert topic["unreadable_totals"] == 1
    assert topic["by_status"]["COMPLETE"]["orders"] == topic["all"]["orders"] == 1
    assert topic["all"]["proven_ms"] == 3_000
    assert topic["dead_letters"] == {
        "IN_THE_FUTURE": {"count": 1, "time_ms": 1_000},
        "NOT_AVRO": {"count": 1, "time_ms": 0},
    }
    assert [(each["service_order_number"], each["reasons"]) for each in topic["look_at_first"]] == [
        (NUMBER, ["dead letters"]),
        ("lost", ["no total, only dead letters"]),
    ]
    with open(path, encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2

    ran = run("leakage", "--source", "ledger", "--json", **log.settings, ledger_dsn=dsn)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told.pop("source").startswith("the ledger at ")
    assert {**told, "source": topic["source"], "unreadable_totals": 1} == topic

    ran = run("leakage", "--top", "1", **log.settings)
    assert "1 order with dead letters and no total" in ran.stdout
    assert "1 record of the topic" in ran.stderr
