"""`durabill conformance` as people run it: what it prints, when it ends, and its exit code."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from durabill.producers.conformance.features import FEATURES, NAMES
from tests.waiting import HANG_S, wait_until

COMMAND = [sys.executable, "-m", "durabill", "conformance"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=HANG_S, check=False
    )


def test_it_serves_until_it_is_told_to_stop_and_judges_what_it_saw(tmp_path: Path) -> None:
    ready, token = tmp_path / "play.env", tmp_path / "token"
    command = [*COMMAND, "serve", "--json", "--ready-file", str(ready), "--token-file", str(token)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, "it serves")
            variables = dict(line.split("=", 1) for line in ready.read_text().splitlines())
            assert variables.keys() == {
                "BASE_URL",
                "ORDERS",
                "SEGMENTS",
                "INTERVAL_MS",
                "TOKEN_FILE",
            }
            assert variables["TOKEN_FILE"] == str(token)
            assert token.read_text() == "conformance-token-1"
            url = f"{variables['BASE_URL']}/v1/time"
            with urllib.request.urlopen(url, timeout=HANG_S) as answer:
                said = json.load(answer)
            assert said["received_ms"] <= said["sent_ms"]
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=HANG_S)
        finally:
            process.kill()
    assert process.returncode == 1
    told = json.loads(out)
    assert not told["conforms"]
    assert [each["name"] for each in told["features"]] == [each for each in NAMES if each != "ends"]
    assert {each["name"]: each["verdict"] for each in told["features"]}["no_loss"] == "fail"


def test_a_client_that_does_nothing_is_told_so() -> None:
    ran = run("serve", "--features", "no_loss,numbers", "--", sys.executable, "-c", "")
    assert ran.returncode == 1
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("not seen  numbers")
    assert lines[1].startswith("fail      no_loss")
    assert lines[-1] == "The client does not conform."


def test_a_client_that_does_not_end_well_is_told_so() -> None:
    ran = run("serve", "--features", "ends", "--", sys.executable, "-c", "raise SystemExit(3)")
    assert ran.returncode == 1
    assert "its exit code is 3" in ran.stdout


def test_what_cannot_be_done_is_said_in_a_line() -> None:
    ran = run("serve", "--features", "no_loss,patience")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "No features: patience." in ran.stderr
    ran = run("serve", "--", "/no/such/client")
    assert ran.returncode == 2
    assert "No such file" in ran.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = run("serve", "--port", str(taken.getsockname()[1]))
    assert ran.returncode == 2
    assert os.strerror(errno.EADDRINUSE).lower() in ran.stderr.lower()


def test_the_features_are_listed() -> None:
    told = json.loads(run("features", "--json").stdout)
    assert [(each["name"], each["required"]) for each in told] == [
        (each.name, each.is_required) for each in FEATURES
    ]
