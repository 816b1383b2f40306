"""From what workers answer to rows, problems and an exit code; and what a terminal is shown."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from durabill.deploy.commands.ask_workers import ask_page, ask_workers
from durabill.deploy.commands.status import _show
from durabill.deploy.commands.status_report import (
    Answer,
    Report,
    make_report,
    read_answer,
    short_ms,
    short_policy,
)
from durabill.deploy.terminal import plain
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.engine.policies import PolicyRecord, Terms, from_here
from tests.waiting import HANG_S

A, B = "http://127.0.0.1:1001", "http://127.0.0.1:1002"
READY = {"ready": True, "problems": []}


def policy(grace_ms: int = 30_000, from_offset: int = 0) -> dict[str, Any]:
    times = {
        "settle_grace_ms": grace_ms,
        "idle_timeout_ms": 300_000,
        "correction_window_ms": 86_400_000,
        "interim_interval_ms": 0,
        "opened_only": False,
    }
    terms = {"policy": times, "registry": False, "rules": 3}
    return {"from_offset": from_offset, "terms": terms}


def task(**more: Any) -> dict[str, Any]:
    return {
        "next_offset": 17,
        "lag": 3,
        "unpublished_s": 0.0,
        "checkpointed_offset": 17,
        "orders": 5,
        "records": 17,
        "clock_marks": 1,
        "held": None,
        "is_broken": False,
        "waiting_for_transaction_s": 0.0,
        "policy": [policy()],
        "clock_ms": 1_000,
        "oldest_deadline_ms": 2_000,
        "openings_passed_on": 8,
        "openings_repeated": 2,
        "openings_extended": 1,
        "openings_waiting": 4,
        "strays": 0,
        **more,
    }


def status(*partitions: int, **more: Any) -> dict[str, Any]:
    return {
        "application_id": "app",
        "now_ms": 10_000,
        "last_checkpoint_ms": 8_500,
        "partition_count": 4,
        "partitions": {str(each): task(**more) for each in partitions},
    }


def report(*answers: Answer, count: int | None = 4) -> Report:
    return make_report("app", answers, count)


def test_all_is_well() -> None:
    found = report(
        read_answer(A, status(2, 0), READY), read_answer(B, status(1, 3, orders=7), READY)
    )
    assert found.problems == []
    assert [(each.partition, each.owner) for each in found.partitions] == [
        (0, A),
        (1, B),
        (2, A),
        (3, B),
    ]
    assert found.unowned == []
    assert [each.checkpoint_age_ms for each in found.answers] == [1_500, 1_500]
    told = found.as_json()
    assert told["ok"] is True
    row = {**task(orders=7), "partition": 1, "owner": B}
    del row["records"], row["clock_ms"]
    assert row == told["partitions"][1]
    assert told["workers"][0]["partitions"] == [0, 2]


def test_what_others_wrote_among_the_results_is_a_note() -> None:
    told = status(0, 1, 3)
    told["partitions"]["2"] = task(strays=7)
    found = report(read_answer(A, told, READY))
    assert (found.problems, found.as_json()["notes"]) == ([], found.notes)
    (note,) = found.notes
    assert note.startswith("partition 2: ")
    assert "7 records" in note


def test_a_table_shows_what_was_opened(capsys: pytest.CaptureFixture[str]) -> None:
    _show(report(read_answer(A, status(0, 1, 2, 3, openings_passed_on=1_234), READY)))
    lines = capsys.readouterr().out.splitlines()
    (names,) = (each for each in lines if "to be reported" in each)
    assert names.index("to be reported") < names.index("passed on") < names.index("marks")
    assert sum("1,234" in each for each in lines) == 4


def test_a_partition_that_waits_for_a_transaction_is_no_problem() -> None:
    answer = read_answer(A, status(0, 1, 2, 3, waiting_for_transaction_s=12.5), READY)
    assert report(answer).problems == []


WHY = "partition 2 can't be folded on from offset 20, order 'SO1': " + "x" * 400


@pytest.mark.parametrize("broken", [False, True])
def test_a_held_partition_is_told_once_and_in_whole(broken: bool) -> None:
    told = status(0, 1, 3)
    told["partitions"]["2"] = task(held=WHY, is_broken=broken)
    unready = {"ready": False, "problems": [f"partition 2 is held: {WHY}", "timers: still"]}
    problems = report(read_answer(A, told, unready)).problems
    assert [
        f"worker {A} isn't ready: partition 2 is held; timers: still",
        f"partition 2 is {'stopped' if broken else 'held'} at offset 17: {WHY}",
    ] == problems


def test_partitions_that_nobody_has() -> None:
    found = report(read_answer(A, status(0, 2), READY))
    assert found.unowned == [1, 3]
    assert found.problems == ["nobody has partitions 1, 3"]
    silent = Answer(B, why_not="timed out")
    assert [
        f"worker {B} can't be asked: timed out",
        "nobody has partition 3 (a worker that can't be asked may have them)",
    ] == report(read_answer(A, status(0, 1, 2), READY), silent).problems


def test_without_kafka_the_workers_know_how_many_partitions_there_are() -> None:
    found = make_report("app", [read_answer(A, status(0), READY)], None, problems=["no Kafka"])
    assert found.unowned == [1, 2, 3]
    assert found.problems[0] == "no Kafka"
    assert report(Answer(A, why_not="gone"), count=None).unowned == []


def test_nobody_at_all() -> None:
    found = report()
    assert "no worker is known" in found.problems[0]
    assert found.unowned == [0, 1, 2, 3]


def test_two_that_claim_a_partition() -> None:
    found = report(read_answer(A, status(0, 1, 2), READY), read_answer(B, status(2, 3), READY))
    assert len(found.problems) == 1
    assert f"partition 2 is claimed by {A} and {B}" in found.problems[0]
    assert len(found.partitions) == 5


def test_a_worker_of_another_deployment_owns_nothing_of_ours() -> None:
    other = status(0, 1, 2, 3) | {"application_id": "other"}
    found = report(read_answer(A, other, READY))
    assert [f"worker {A} has another application id: other"] == found.problems[:1]
    assert found.unowned == [0, 1, 2, 3]


def test_a_worker_that_is_not_ready() -> None:
    starting = status() | {"last_checkpoint_ms": None}
    unready = {"ready": False, "problems": ["it has no partitions: it joins the group"]}
    found = report(read_answer(A, status(0, 1, 2, 3), READY), read_answer(B, starting, unready))
    assert [f"worker {B} isn't ready: it has no partitions: it joins the group"] == found.problems
    assert found.answers[1].checkpoint_age_ms is None
    silent = read_answer(A, status(0, 1, 2, 3), None, why_no_readiness="timed out")
    assert [f"worker {A} isn't ready: timed out"] == report(silent).problems


def test_different_policies_are_told_in_one_line() -> None:
    theirs = status(2, 3, policy=[policy(3_000, 90)])
    both = read_answer(A, status(0, 1), READY), read_answer(B, theirs, READY)
    problems = report(*both).problems
    assert len(problems) == 1
    for part in (f"{A} by 30s/5m/1d/never", f"{B} by 3s/5m/1d/never", "same settings"):
        assert part in problems[0]
    # One that has just changed, for all partitions alike, is no difference.
    changed = [policy(), policy(3_000, 90)]
    same = report(
        read_answer(A, status(0, 1, policy=changed), READY), read_answer(B, theirs, READY)
    )
    assert same.problems == []
    assert short_policy(same.partitions[0].task) == "30s/5m/1d/never @0, then 3s/5m/1d/never @90"


@pytest.mark.parametrize(
    "answer", [[], {}, "no", {"partitions": {}}, status(0) | {"partitions": {"x": task()}}]
)
def test_what_is_no_workers_status(answer: Any) -> None:
    found = read_answer(A, answer, READY)
    assert found.status is None
    assert "no worker's status" in found.why_not


def test_a_worker_of_the_version_before_is_understood() -> None:
    old = status(0)
    del old["now_ms"], old["partition_count"], old["partitions"]["0"]["is_broken"]
    found = read_answer(A, old, READY)
    assert found.status is not None
    assert found.checkpoint_age_ms is None


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (90_000, "90s"),
        (60_000, "1m"),
        (5_400_000, "90m"),
        (3_600_000, "1h"),
        (86_400_000, "1d"),
        (90_000_000, "25h"),
    ],
)
def test_short_durations(duration_ms: int, text: str) -> None:
    assert text == short_ms(duration_ms)


def test_a_terminal_obeys_nothing_from_outside() -> None:
    assert plain("a\x1b[2J\nb ü") == "a\\u001b[2J\\nb ü"


@pytest.mark.parametrize(
    ("offset", "expected"), [(0, 3), (9, 3), (10, 2), (11, 2), (19, 2), (20, 1), (99, 1)]
)
def test_the_records_in_force_and_after(offset: int, expected: int) -> None:
    history = tuple(PolicyRecord(each, Terms(Policy())) for each in (5, 10, 20))
    assert history[-expected:] == from_here(history, offset)
    assert from_here((), offset) == ()


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that sends a byte now and then, and never ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not done.wait(0.05):
                connection.sendall(b" ")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    done.set()
    thread.join(HANG_S)
    listener.close()


@pytest.mark.parametrize("asks_for_an_order", [False, True])
def test_a_server_that_drips_is_left(
    dripping: str, asks_for_an_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabill.deploy.commands.ask_workers.TIMEOUT_S", 0.5)
    started_s = time.monotonic()
    if asks_for_an_order:
        found, why_not = ask_workers([dripping], "", "SO1")
    else:
        found, why_not = ask_page(dripping, "", "/status", timeout_s=0.5)
    assert found is None
    assert "no end" in why_not
    assert time.monotonic() - started_s < 60  # the whole of it takes hours


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://x/"])
def test_nobody_there(url: str) -> None:
    for found, why_not in (ask_page(url, "", "/status"), ask_workers([url], "", "SO1")):
        assert found is None
        assert why_not


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\n\r\nnull",
        b"HTTP/1.1 503 Away\r\n\r\nnull",
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 503 Away\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_what_is_no_worker_is_told(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for found, why_not in (ask_page(url, "", "/status"), ask_workers([url], "", "SO1")):
            assert found is None
            assert why_not
        thread.join(HANG_S)
