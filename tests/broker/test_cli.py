"""The `durabill` command as its users have it: processes, exit codes, what they print."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from durabill.deploy.commands.cli import _run, app
from durabill.schemas import PARTITIONER, SegmentEvent, encode_segment
from tests.unit.documents import python_block
from tests.waiting import HANG_S

COMMAND = (sys.executable, "-m", "durabill.deploy.commands.cli")
PATIENCE_S = 180.0  # a worker may have to compile first


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these DURABILL_ settings and no others."""
    others = {name: value for name, value in os.environ.items() if "DURABILL_" not in name}
    return {**others, **{f"DURABILL_{name.upper()}": value for name, value in settings.items()}}


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def eventually(what: str, look: Callable[[], Any]) -> Any:
    """Return the first true answer of `look`; fail after a while."""
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        answer = look()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"in vain: {what}")


@dataclass(frozen=True)
class Deployment:
    """Settings of a deployment, and how its processes announced themselves."""

    settings: dict[str, str]
    workers: list[dict[str, Any]]
    gateway: dict[str, Any]

    def json_of(self, *arguments: str) -> list[Any]:
        ran = run(*arguments, "--json", **self.settings)
        assert ran.returncode == 0, ran.stderr
        return [json.loads(line) for line in ran.stdout.splitlines()]

    def totals_of(self, *orders: str) -> list[Any]:
        """What `totals` tells of these orders."""
        return [each for each in self.json_of("totals") if each["service_order_number"] in orders]


def start(
    stack: ExitStack, folder: Path, settings: dict[str, str], name: str, mark: str
) -> dict[str, Any]:
    """Start a process, wait for its announcement, and have it stopped by SIGTERM at the end."""
    log = folder / f"{mark}.log"
    out = stack.enter_context((folder / f"{mark}.out").open("w+"))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, name, "--json"], env=environment(**settings), stdout=out, stderr=errors
        )

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0, log.read_text()

    stack.callback(stop)

    def announced() -> Any:
        assert process.poll() is None, log.read_text()
        lines = Path(out.name).read_text().splitlines()
        return json.loads(lines[0]) if lines else None

    answer: dict[str, Any] = eventually(f"{mark} starts", announced)
    assert name == answer["started"]
    return answer


def answer_of(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=HANG_S / 2) as response:
            return json.load(response)
    except OSError:
        return None


@contextmanager
def named(bootstrap_servers: str, folder: Path) -> Iterator[dict[str, str]]:
    """Settings with topics of their own around a block; nothing has been created yet."""
    mark = f"cli-{uuid.uuid4().hex[:8]}"
    settings = {
        "bootstrap_servers": bootstrap_servers,
        "application_id": mark,
        "segments_topic": f"{mark}.segments",
        "totals_topic": f"{mark}.totals",
        "orders_topic": f"{mark}.orders",
        "dead_letters_topic": f"{mark}.dead-letters",
        "seal_topic": f"{mark}.seal-checkpoints",
        "settle_grace_s": "1",
        "idle_timeout_s": "4",
        "data_dir": str(folder),
    }
    try:
        yield settings
    finally:
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        topics = admin.list_topics(timeout=HANG_S).topics
        present = [name for name in topics if name.startswith(mark)]
        for future in admin.delete_topics(present).values() if present else ():
            future.result(HANG_S)


@pytest.fixture
def names(bootstrap_servers: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings with topics of this test's own; nothing has been created yet."""
    with named(bootstrap_servers, tmp_path) as settings:
        yield settings


@contextmanager
def deployed(bootstrap_servers: str, postgres_dsn: str, folder: Path) -> Iterator[Deployment]:
    """Two workers, a ledger and a gateway around a block; topics and database are their own."""
    database = f"cli_{uuid.uuid4().hex[:8]}"
    with (
        named(bootstrap_servers, folder) as names,
        psycopg.connect(postgres_dsn, autocommit=True) as connection,
        ExitStack() as stack,
    ):
        connection.execute(f"CREATE DATABASE {database}")
        stack.callback(connection.execute, f"DROP DATABASE {database} WITH (FORCE)")
        dsn = psycopg.conninfo.make_conninfo(postgres_dsn, dbname=database)
        settings = {**names, "ledger_dsn": dsn, "gateway_port": "0"}
        created = run("topics", "create", "--partitions", "4", **settings)
        assert created.returncode == 0, created.stderr
        # Before the workers: it finds their addresses in the data folder as they come.
        gateway = start(stack, folder, settings, "gateway", "gateway")
        workers = [start(stack, folder, settings, "worker", f"worker-{i}") for i in range(2)]
        start(stack, folder, settings, "ledger", "ledger")

        def all_assigned() -> bool:
            states = [answer_of(f"{worker['url']}/status") for worker in workers]
            return [len(state["partitions"]) if state else 0 for state in states] == [2, 2]

        eventually("each worker has two partitions", all_assigned)
        yield Deployment(settings, workers, gateway)


@pytest.fixture(scope="module")
def deployment(
    bootstrap_servers: str, postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A deployment that tests share: each looks at its own orders alone."""
    folder = tmp_path_factory.mktemp("deployment")
    with deployed(bootstrap_servers, postgres_dsn, folder) as made:
        yield made


def _commands() -> Iterator[tuple[str, ...]]:
    yield ()
    for command in app.registered_commands:
        assert command.callback is not None
        yield (command.name or command.callback.__name__,)
    for group in app.registered_groups:
        assert group.name is not None
        yield (group.name,)
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            yield group.name, command.name or command.callback.__name__


@pytest.mark.parametrize("command", list(_commands()), ids=" ".join)
def test_help_teaches_by_example(command: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(app, [*command, "--help"])
    assert ran.exit_code == 0, ran.output
    body = ran.stdout.partition("Usage:")[2].partition("\n")[2]
    says_all_itself = command and command[-1] in ("kafka", "postgres", "topics", "stop", "status")
    assert "durabill" in body or says_all_itself or command == ("topics", "check")


def test_help_of_the_very_command() -> None:
    ran = run("--help")
    assert ran.returncode == 0, ran.stderr
    assert "durabill demo" in ran.stdout


def test_help_cuts_no_flag_and_no_word_on_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [_run([each, "--help"]) for each in ("gateway", "audit")] == [0, 0]
    told = capsys.readouterr().out.replace("…_FILE", "")
    assert "--schema-registry-certificate-" in told
    assert "…" not in told


def test_all_wrong_settings_are_told_at_once_with_exit_code_2() -> None:
    ran = run("worker", "--settle-grace-s", "soon", gateway_port="x", typo="1")
    assert ran.returncode == 2
    for word in ("DURABILL_SETTLE_GRACE_S", "DURABILL_GATEWAY_PORT", "DURABILL_TYPO"):
        assert f"error: {word}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_kafka_it_says_how_to_get_one(tmp_path: Path) -> None:
    ran = run("ledger", data_dir=str(tmp_path))
    assert ran.returncode == 2
    assert "durabill kafka start" in ran.stderr
    assert "DURABILL_LEDGER_DSN" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_worker_refuses_topics_that_would_bill_by_the_clients_clock(
    names: dict[str, str],
) -> None:
    created = run("topics", "create", "--partitions", "2", "--json", **names)
    assert created.returncode == 0, created.stderr
    assert json.loads(created.stdout)["partitions"] == 2
    assert run("topics", "check", **names).returncode == 0

    wrong = f"{names['application_id']}.by-client"
    admin = AdminClient({"bootstrap.servers": names["bootstrap_servers"]})
    admin.create_topics([NewTopic(wrong, 2, 1)])[wrong].result(HANG_S)
    ran = run("worker", **{**names, "segments_topic": wrong})
    assert ran.returncode == 1
    assert "message.timestamp.type" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_topic_that_is_not_there_is_told(names: dict[str, str]) -> None:
    ran = run("worker", **names)
    assert ran.returncode == 1
    assert "durabill topics create" in ran.stderr


def test_status_of_what_does_not_run(tmp_path: Path) -> None:
    for name in ("kafka", "postgres"):
        ran = run(name, "status", "--json", data_dir=str(tmp_path))
        assert ran.returncode == 3
        assert json.loads(ran.stdout)["running"] is False


def test_the_readmes_producer_is_billed_and_shown(deployment: Deployment) -> None:
    names: dict[str, Any] = {}
    exec(python_block("from kafka import"), names)
    start_ms = int(time.time() * 1000) - 60_000
    orders = [f"readme/{i} ü" for i in range(6)]
    for number in orders:
        servers, topic = (deployment.settings[k] for k in ("bootstrap_servers", "segments_topic"))
        names["send"](servers, topic, number, start_ms)

    def all_billed() -> Any:
        found = deployment.totals_of(*orders)
        return found if len(found) == len(orders) else None

    totals = eventually("six totals in the ledger", all_billed)
    assert {("COMPLETE", 14_200, 2)} == {
        (each["status"], each["duration_ms"], each["segments"]) for each in totals
    }
    for number in orders:
        # Whichever worker is asked, the one that owns the order answers.
        shown = eventually("its live state", partial(told_live, deployment, number))
        assert [each["number"] for each in shown["records"]] == [1, 2]
        assert [each["verdict"] for each in shown["records"]] == ["counted", "counted"]
        assert [[start_ms, start_ms + 14_200]] == shown["intervals"]
        assert shown["live"]["phase"] == "SETTLED"
        assert [total["revision"] for total in shown["totals"]] == [1]
    text = run("order", orders[0], **deployment.settings)
    assert text.returncode == 0, text.stderr
    assert "14.200 s proven of 14.200 s" in text.stdout
    assert run("order", "never-seen", **deployment.settings).returncode == 1
    with psycopg.connect(deployment.settings["ledger_dsn"]) as connection:
        rows = connection.execute("SELECT status, orders FROM ledger_status").fetchall()
    counts: dict[str, int] = dict(rows)
    assert counts["COMPLETE"] >= len(orders)
    told = eventually("all is well", partial(told_well, deployment))
    assert (told["ok"], told["problems"], told["partition_count"]) == (True, [], 4)
    assert {each["url"] for each in deployment.workers} == {
        each["owner"] for each in told["partitions"]
    }
    assert told["ledger"]["totals"] == len(deployment.json_of("totals"))
    assert (told["ledger"]["disputed"], told["ledger"]["unreadable"]) == (0, 0)
    assert told["ledger"]["last_order_number"] in orders


def told_live(deployment: Deployment, number: str) -> Any:
    """What `order` tells, once the order's worker answers in time."""
    (shown,) = deployment.json_of("order", number)
    return shown if shown["live"] else None


def told_well(deployment: Deployment) -> Any:
    """What `status` tells, once it tells of no problem."""
    told = json.loads(run("status", "--json", **deployment.settings).stdout)
    return told if told["ok"] else None


def test_status_goes_on_without_kafka_workers_and_ledger(tmp_path: Path) -> None:
    dsn = "postgresql://nobody:secret@127.0.0.1:1/ledger"
    away = {"bootstrap_servers": "127.0.0.1:1", "ledger_dsn": dsn, "data_dir": str(tmp_path)}
    ran = run("status", "--json", worker_urls="http://127.0.0.1:1/", **away)
    assert ran.returncode == 1, ran.stderr
    kafka, ledger, worker = json.loads(ran.stdout)["problems"]
    assert "Kafka at 127.0.0.1:1 (DURABILL_BOOTSTRAP_SERVERS) can't be reached" in kafka
    assert "the ledger at nobody@127.0.0.1:1/ledger can't be asked" in ledger
    assert worker == "worker http://127.0.0.1:1 can't be asked: Connection refused"
    assert "secret" not in ran.stdout + ran.stderr
    ran = run("status", bootstrap_servers="127.0.0.1:1", data_dir=str(tmp_path))
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "2 problems")
    assert "- no worker is known" in ran.stdout
    assert run("status", settle_grace_s="soon").returncode == 2


def test_the_gateway_finds_the_workers_beside_it(deployment: Deployment) -> None:
    orders = f"{deployment.gateway['url']}/v1/orders"
    as_json = {"content-type": "application/json"}
    request = urllib.request.Request(orders, b"{}", as_json)
    with urllib.request.urlopen(request, timeout=HANG_S) as response:
        grant = json.load(response)
    start_ms = grant["server_timestamp_ms"]
    segment = {
        "business_data_number": 1,
        "start_ms": start_ms,
        "end_ms": start_ms + 700,
        "end_identifier": False,
    }
    url = f"{orders}/{grant['service_order_number']}"
    request = urllib.request.Request(f"{url}/segments", json.dumps(segment).encode(), as_json)
    urllib.request.urlopen(request, timeout=HANG_S).close()

    def live() -> Any:
        """The order is shown once its opening was read; what is waited for is its segment."""
        found = (answer_of(url) or {}).get("live")
        return found if found and found["segments"] else None

    shown = eventually("the live state", live)
    assert (shown["duration_ms"], shown["phase"]) == (700, "OPEN")


def test_a_worker_for_the_network_needs_a_token(names: dict[str, str]) -> None:
    ran = run("worker", "--worker-host", "0.0.0.0", **names)
    assert ran.returncode == 2
    assert "DURABILL_WORKER_TOKEN" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_readmes_sdk_example_is_billed(
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    example = python_block("from durabill import")
    exec(example.replace("http://127.0.0.1:8080", deployment.gateway["url"]), {})
    number = capsys.readouterr().out.strip()
    (total,) = eventually("its total", lambda: deployment.totals_of(number))
    assert (number, "COMPLETE", 1) == (
        total["service_order_number"],
        total["status"],
        total["segments"],
    )


def test_a_dead_letter_is_listed_repaired_and_billed(deployment: Deployment) -> None:
    settings = deployment.settings
    now_ms = int(time.time() * 1000)
    bad = SegmentEvent("letter-1", 1, now_ms, now_ms + 3_600_000, True)
    producer = Producer(
        {"bootstrap.servers": settings["bootstrap_servers"], "partitioner": PARTITIONER}
    )
    producer.produce(settings["segments_topic"], encode_segment(bad), b"letter-1")
    assert producer.flush(HANG_S) == 0
    (letter,) = eventually("a dead letter", lambda: deployment.json_of("dead-letters"))
    assert ("IN_THE_FUTURE", encode_segment(bad).hex()) == (letter["reason"], letter["value"])
    assert deployment.json_of("dead-letters", "--reason", "TOO_LATE") == []
    assert run("dead-letters", "--reason", "TOO_LAZY", **settings).returncode == 2
    assert run("dead-letters", "resend", **settings).returncode == 2

    place = f"{letter['partition']}/{letter['offset']}"
    illegal = run("dead-letters", "resend", place, "--end-ms", "5", **settings)
    assert illegal.returncode == 1
    assert "BAD_TIME_SEQUENCE" in illegal.stderr
    deployment.json_of("dead-letters", "resend", place, "--end-ms", str(now_ms + 500))
    (total,) = eventually("its total", lambda: deployment.totals_of("letter-1"))
    assert (
        total["service_order_number"],
        total["status"],
        total["duration_ms"],
    ) == ("letter-1", "COMPLETE", 500)
    (shown,) = deployment.json_of("order", "letter-1")
    assert [each["verdict"] for each in shown["records"]] == [
        "dead letter: IN_THE_FUTURE",
        "counted",
    ]


def test_a_small_fleet_and_its_truth(deployment: Deployment) -> None:
    (report,) = deployment.json_of("fleet", "--orders", "20", "--segments", "400", "--seed", "5")
    truth = report["truth_path"]

    def exact() -> bool:
        ran = run("totals", "--check", truth, "--json", **deployment.settings)
        found = json.loads(ran.stdout)
        assert set(found) == {"topic", "ledger"}
        return ran.returncode == 0

    eventually("every total of the fleet, exact", exact)
    assert run("fleet", "--fault", "lots=1", **deployment.settings).returncode == 2
