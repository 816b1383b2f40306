"""What users see: of wrong uses one line each, of strange order numbers every character.

Commands run side by side, for most of their time is Python's start.
"""

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from durabill import __version__
from durabill.schemas import PARTITIONER, encode_total
from tests.broker.test_cli import COMMAND, environment, eventually, run, start
from tests.unit.test_schemas import TOTAL
from tests.waiting import HANG_S

AWAY = "127.0.0.1:1"
Ran = subprocess.CompletedProcess[str]


def side_by_side(commands: list[tuple[str, ...]], **settings: str) -> Iterator[Ran]:
    with ThreadPoolExecutor(3) as pool:
        yield from pool.map(lambda arguments: run(*arguments, **settings), commands)


def the_line(ran: Ran) -> str:
    """Return the one line of an error."""
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def test_a_wrong_use_is_told_in_one_line_with_exit_code_2(tmp_path: Path) -> None:
    wrong = {
        ("order", "-1"): "No such option: -1. What begins with a dash goes after `--`:"
        " durabill order -- -1. See: durabill order --help",
        ("totals", "-1"): "durabill order -- -1. See: durabill totals --help",
        ("totals", "SO-1"): "For one order: durabill order NUMBER",
        ("totals", "--status", "complete\u202e"): r'--status "complete\u202e" is none of COMPLETE,',
        ("dead-letters", "resend", "-1"): "A place is PARTITION/OFFSET, such as 0/17",
        ("dead-letters", "resend", "0-17"): "0-17 is no place; a place is PARTITION/OFFSET",
        ("dead-letters", "lst"): "No such command 'lst'. Did you mean 'list'?",
        ("dead-letters", "--json", "list"): "--json goes after `list`",
        ("dead-letters", "--reason", "TOO_LAZY"): "TOO_LAZY is none of NOT_AVRO, ",
        (
            "kafka",
            "start",
            "--port",
            "70000",
        ): "'--port': Input should be less than or equal to",
        ("worker", "--worker-porto", "1"): "--worker-port",
        ("nosuch",): "No such command 'nosuch'",
        ("fleet", "--compression", "zip"): "--compression zip is none of none, gzip, snappy",
        ("fleet", "--gateway-url", "nosuch"): "is no address such as http://127.0.0.1:8080",
        ("gateway", "--report-interval-s", "0.0001"): "it must be at least 0.001",
        ("worker", "--settle-grace-s", "soon"): "SETTLE_GRACE_S='soon': it must be a number",
        ("worker", "--settle-grace-s", "1e99"): "it must be at most 315360000",
        ("gateway", "--gateway-port", "70000"): "it must be at most 65535",
        ("gateway", "--gateway-connections", "1.5"): "it must be a whole number",
        ("gateway", "--gateway-access-log", "maybe"): "it must be true or false",
    }
    commands = side_by_side(list(wrong), data_dir=str(tmp_path), bootstrap_servers=AWAY)
    for words, ran in zip(wrong.values(), commands, strict=True):
        assert ran.returncode == 2
        assert words in the_line(ran)


def test_arguments_and_settings_that_are_no_utf8_are_refused() -> None:
    for command in (("order", "a\udcff"), ("totals", "--check", "a\udcff"), ("worker",)):
        ran = run(*command, worker_host="a\udcff" if command == ("worker",) else "127.0.0.1")
        assert ran.returncode == 2
        assert "is no text in UTF-8" in the_line(ran)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_in_use_is_told_at_once_before_anything_is_joined(
    tmp_path: Path, taken_port: int
) -> None:
    port = str(taken_port)
    commands: list[tuple[str, ...]] = [
        ("worker", "--worker-port", port),
        ("gateway", "--gateway-port", port),
        ("kafka", "start", "--port", port),
        ("postgres", "start", "--port", port),
        ("gateway", "--gateway-host", "192.0.2.1", "--gateway-auth", "proxy"),
    ]
    # Kafka is away: who looked for it first would wait for half a minute, and say so.
    *ran, elsewhere = side_by_side(commands, data_dir=str(tmp_path), bootstrap_servers=AWAY)
    for each in ran:
        assert each.returncode == 1
        assert "is in use by another program" in the_line(each)
        assert "--worker-port" in each.stderr or "worker" not in each.args
    assert "192.0.2.1 is no address of this machine" in the_line(elsewhere)
    assert not (tmp_path / "kafka" / "state.json").exists()


def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    commands: list[tuple[str, ...]] = [
        ("kafka", "start", "--data-dir", str(file)),
        ("postgres", "start", "--data-dir", str(file / "below")),
        ("demo", "--data-dir", str(file)),
        ("kafka", "start", "--data-dir", "/proc/nothing"),
        ("kafka", "status", "--data-dir", str(file)),
    ]
    for ran in side_by_side(commands):
        assert ran.returncode == 1
        assert "--data-dir" in the_line(ran)


@pytest.mark.parametrize("stream", ["/dev/full", "closed", "gone"])
def test_a_result_that_cannot_be_written_is_no_success(tmp_path: Path, stream: str) -> None:
    words = {"/dev/full": "No space left on device", "closed": "it is closed", "gone": ""}[stream]
    commands = [("--help",), ("--version",), ("kafka", "status", "--json"), ("postgres", "status")]
    for arguments in commands:
        reader, writer = os.pipe()
        os.close(reader)
        shell = 'exec "$@" >&-' if stream == "closed" else 'exec "$@"'
        with open(writer if stream == "gone" else "/dev/full", "wb") as out:
            ran = subprocess.run(
                ["sh", "-c", shell, "sh", *COMMAND, *arguments],
                env=environment(data_dir=str(tmp_path)),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                timeout=HANG_S,
                check=False,
            )
        if stream != "gone":
            os.close(writer)
        is_status = "status" in arguments and "--json" not in arguments
        failed = 141 if stream == "gone" else 1
        assert ran.returncode == (3 if is_status else failed), ran.stderr
        expected = [f"error: standard output can't be written: {words}"] if words else []
        assert ran.stderr.splitlines() == expected


def test_results_come_where_nobody_hears_the_words(tmp_path: Path) -> None:
    for end in ("2>&-", "2>/dev/full"):
        ran = subprocess.run(
            ["sh", "-c", f'exec "$@" {end}', "sh", *COMMAND, "kafka", "stop"],
            env=environment(data_dir=str(tmp_path)),
            capture_output=True,
            timeout=HANG_S,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


# --- with a Kafka -----------------------------------------------------------------------------

NUMBERS = ["abc", "abc ", " abc", "a\u202eb", "a\u2028b", "a\u200bb", "a\xa0b", "-1", "日本-7"]
SHOWN = ["abc", '"abc "', '" abc"', r'"a\u202eb"', r'"a\u2028b"', r'"a\u200bb"', r'"a\u00a0b"']
SHOWN += ["-1", "日本-7"]


@pytest.fixture
def topics(bootstrap_servers: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings with topics of totals and dead letters that hold strange order numbers."""
    mark = f"screens-{uuid.uuid4().hex[:8]}"
    totals, orders, letters = (f"{mark}.{each}" for each in ("totals", "orders", "dead-letters"))
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    made = [NewTopic(each, 1, 1) for each in (totals, orders, letters)]
    for future in admin.create_topics(made).values():
        future.result(HANG_S)
    producer = Producer({"bootstrap.servers": bootstrap_servers, "partitioner": PARTITIONER})
    for number in NUMBERS:
        total = replace(TOTAL, service_order_number=number)
        producer.produce(totals, encode_total(total), number.encode())
        headers: dict[str, str | bytes | None] = {
            **{"reason": b"NOT_AVRO", "detail": f"is {number}\x1b[2J".encode()},
            **{"source_topic": b"s\xe2\x80\xae", "source_partition": b"0", "source_offset": b"0"},
        }
        headers["source_offset"] = str(NUMBERS.index(number)).encode()
        producer.produce(letters, b"", number.encode(), headers=headers)
    assert producer.flush(HANG_S) == 0
    yield {
        "bootstrap_servers": bootstrap_servers,
        "totals_topic": totals,
        "orders_topic": orders,
        "dead_letters_topic": letters,
        "data_dir": str(tmp_path),
    }
    for future in admin.delete_topics([totals, orders, letters]).values():
        future.result(HANG_S)


def test_strange_order_numbers_are_seen_and_exact_in_json(
    topics: dict[str, str], tmp_path: Path
) -> None:
    truth, other = tmp_path / "truth.jsonl", tmp_path / "other"
    truth.write_text(json.dumps({"kind": "run", "order_prefix": ""}) + "\n")
    other.write_text("root:x:0:0\n")
    listed, as_json, checked, no_truth, letters, same, letters_json = side_by_side(
        [
            ("totals",),
            ("totals", "--json"),
            ("totals", "--check", str(truth)),
            ("totals", "--check", str(other)),
            ("dead-letters",),
            ("dead-letters", "list", "--since-minutes", "1e18"),
            ("dead-letters", "list", "--json"),
        ],
        **topics,
    )
    assert set(SHOWN) == {line.partition("  revision")[0] for line in listed.stdout.splitlines()}
    assert listed.stderr.splitlines()[-1] == "9 orders"
    found = [json.loads(line)["service_order_number"] for line in as_json.stdout.splitlines()]
    assert sorted(NUMBERS) == sorted(found)
    assert checked.returncode == 1
    for shown in SHOWN:
        assert f"order {shown} revision" in checked.stdout
    assert no_truth.returncode == 1
    assert f"{other} is no truth file of `durabill fleet`: line 1" in the_line(no_truth)
    assert letters.stdout == same.stdout
    for line, shown in zip(letters.stdout.splitlines(), SHOWN, strict=True):
        assert f'  "s\\u202e" 0/{SHOWN.index(shown)}  {shown}  is ' in line
        assert line.isprintable()
    keys = [bytes.fromhex(json.loads(each)["key"]) for each in letters_json.stdout.splitlines()]
    assert [number.encode() for number in NUMBERS] == keys


def _is_of_first_start(line: str) -> bool:
    """Tell whether a line is of what a first start makes: tables, and keys to sign with."""
    return " applied " in line or ".key_files made " in line


ROLES = ("segments", "totals", "orders", "dead_letters")


def test_each_process_says_what_it_is_that_it_is_ready_and_that_it_stopped(
    bootstrap_servers: str, postgres_dsn: str, tmp_path: Path
) -> None:
    mark = f"screens-{uuid.uuid4().hex[:8]}"
    settings = {
        "bootstrap_servers": bootstrap_servers,
        "application_id": mark,
        **{f"{role}_topic": f"{mark}.{role}" for role in ROLES},
        "data_dir": str(tmp_path),
        "gateway_port": "0",
        "ledger_dsn": postgres_dsn,
    }
    assert run("topics", "create", "--partitions", "2", **settings).returncode == 0
    with ExitStack() as stack:
        told = {
            name: start(stack, tmp_path, settings, name, name)
            for name in ("worker", "ledger", "gateway")
        }
        log = tmp_path / "worker.log"
        eventually("the worker is ready", lambda: "ready: partitions 0-1 of 2" in log.read_text())
    for name in told:
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        first, *_, last = lines = [each for each in lines if not _is_of_first_start(each)]
        assert (
            f"durabill.process durabill {__version__} {name}: application id {mark}, topic" in first
        )
        assert f"Kafka {bootstrap_servers}, pid {told[name]['pid']}" in first
        assert last.endswith(f"durabill.process {name} stopped")
        assert sum("ready" in each for each in lines) == 1
        # What it reads from where is the ledger's third line.
        assert len(lines) == (4 if name == "ledger" else 3), lines
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    names = [name for name in admin.list_topics(timeout=HANG_S).topics if name.startswith(mark)]
    for future in admin.delete_topics(names).values():
        future.result(HANG_S)
