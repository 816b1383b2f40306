"""The demo as a newcomer runs it, small: it must be right, and leave nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import JARS_DIR
from tests.waiting import HANG_S

COMMAND = (sys.executable, "-m", "durabill.deploy.commands.cli", "demo")
SMALL = ("--orders", "60", "--segments", "3000", "--seed", "11")


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if "DURABILL_" not in name}
    return {**others, "DURABILL_DATA_DIR": str(data_dir), **more}


def left_over(data_dir: Path) -> list[str]:
    """The command lines of processes that name the data folder, or have it as their setting."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            settings = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # gone, or another user's: PostgreSQL's command line can be read all the same
        if str(data_dir) in command or f"DURABILL_DATA_DIR={data_dir}" in settings:
            found.append(command)
    return found


@pytest.fixture
def with_jars(data_dir: Path) -> Path:
    """A data folder that has the broker's jars already, if they have been fetched before."""
    if JARS_DIR.exists():
        shutil.copytree(JARS_DIR, data_dir / "jars", symlinks=True)
    return data_dir


def test_a_small_demo_is_right_and_leaves_nothing(with_jars: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, *SMALL, "--json"],
        env=environment(with_jars),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["orders"] == 60 + report["services_by_sdk"]
    assert report["segments"] >= 3_000
    assert report["duplicates"] > 0
    assert report["totals"] >= report["orders"]
    assert report["totals_checked"] >= 2 * report["totals"]
    assert report["wrong_totals"] == report["wrong_dead_letters"] == 0
    assert report["dead_letters"] == sum(report["dead_letters_by_reason"].values()) > 0
    assert 0 <= report["p50_latency_ms"] <= report["p99_latency_ms"]
    assert report["problems"] == []
    # Whether the audit finds what is wrong is for its own tests; here: it ran, over all of it.
    assert report["proven"] == report["audited"] == report["sealed"] == report["totals"]
    assert report["archived"] >= report["records"]
    page, picture, receipt = (
        Path(report[name]).read_text() for name in ("report_path", "picture_path", "receipt_path")
    )
    assert f"all {report['totals']} totals are proven" in page
    assert report["look_at"][0] in picture
    assert f"Service order number: {report['look_at'][0]}" in receipt
    assert left_over(with_jars) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_interrupted_stops_everything(
    with_jars: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*COMMAND, *SMALL], env=environment(with_jars), stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        seen = []
        for line in demo.stderr:
            seen.append(line)
            if line.startswith("wave 1"):
                break
        assert len(left_over(with_jars)) >= 5, seen
        demo.send_signal(number)
        assert demo.wait(HANG_S) == 128 + number
    give_up_s = time.monotonic() + HANG_S
    while left_over(with_jars) and time.monotonic() < give_up_s:
        time.sleep(0.2)
    assert left_over(with_jars) == []


def traces(bootstrap_servers: str, postgres_dsn: str) -> set[str]:
    """The names of topics and schemas that demos made in servers that aren't their own."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    topics = admin.list_topics(timeout=HANG_S).topics
    with psycopg.connect(postgres_dsn) as connection:
        schemas = connection.execute("SELECT nspname FROM pg_namespace").fetchall()
    names = {*topics, *(name for (name,) in schemas)}
    return {name for name in names if name.startswith(("durabill-demo-", "durabill_demo_"))}


def test_a_demo_on_given_servers_leaves_no_trace(
    with_jars: Path, bootstrap_servers: str, postgres_dsn: str
) -> None:
    given = environment(
        with_jars, DURABILL_BOOTSTRAP_SERVERS=bootstrap_servers, DURABILL_LEDGER_DSN=postgres_dsn
    )
    before = traces(bootstrap_servers, postgres_dsn)
    ran = subprocess.run(
        [*COMMAND, *SMALL, "--json"],
        env=given,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert json.loads(ran.stdout.splitlines()[-1])["wrong_totals"] == 0
    assert not (with_jars / "demo" / "kafka").exists()
    assert traces(bootstrap_servers, postgres_dsn) <= before
