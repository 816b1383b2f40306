"""No secret of a DSN gets out: into what commands print, their logs, tracebacks, or `ps`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from durabill.deploy.commands.cli import main
from durabill.deploy.local.stack import HOST, find_free_ports
from durabill.producers.gateway.server import GatewayConfig
from tests.broker.ledger_kit import new_ledger_dsn
from tests.broker.test_cli import COMMAND, environment
from tests.conftest import SECRET, Topics, readable_dsns, unreadable_dsns
from tests.waiting import HANG_S, wait_until

TAKES_A_DSN = (("ledger",), ("gateway",), ("order", "SO1"), ("totals",), ("demo",))


class Shell:
    """Runs commands in this process, which is quicker, and keeps all that they let out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        monkeypatch.setattr("os.umask", lambda mask: 0)  # of a process of its own, not of ours

    def run(self, *arguments: str) -> tuple[int, str]:
        self._monkeypatch.setattr("sys.argv", ["durabill", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int | None)
        return code or 0, "".join(self._capfd.readouterr())


@pytest.fixture
def shell(
    bootstrap_servers: str,
    topics: Topics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Shell:
    settings = {
        "bootstrap_servers": bootstrap_servers,
        "segments_topic": topics.segments,
        "totals_topic": topics.totals,
        "orders_topic": topics.orders,
        "dead_letters_topic": topics.dead_letters,
        "data_dir": str(tmp_path),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"DURABILL_{name.upper()}", value)
    return Shell(monkeypatch, capfd)


@pytest.mark.parametrize("command", TAKES_A_DSN, ids=lambda command: command[0])
def test_a_dsn_that_cannot_be_read_is_refused_by_name_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    for dsn in unreadable_dsns("db"):
        monkeypatch.setenv("DURABILL_LEDGER_DSN", dsn)
        code, output = shell.run(*command)
        assert (code, "secret" if "secret" not in output else output) == (2, "secret")
        assert "error: DURABILL_LEDGER_DSN: the DSN" in output
        assert "Traceback" not in output


@pytest.mark.parametrize("by_flag", [False, True])
@pytest.mark.parametrize("command", [("order", "SO1"), ("totals",), ("demo",)], ids=" ".join)
def test_a_dsn_whose_server_refuses_is_shown_without_its_secret(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    postgres_dsn: str,
    command: tuple[str, ...],
    by_flag: bool,
) -> None:
    where = psycopg.conninfo.conninfo_to_dict(postgres_dsn)
    place = str(where["host"]), int(str(where["port"])), str(where["dbname"]), str(where["user"])
    forms = readable_dsns(*place)
    for dsn in forms[:1] if by_flag else forms[::3] if command == ("demo",) else forms:
        flags = ("--ledger-dsn", dsn) if by_flag else ()
        monkeypatch.setenv("DURABILL_LEDGER_DSN", "" if by_flag else dsn)
        code, output = shell.run(*command, *flags)
        assert code == 1
        assert "secret" not in output
        assert by_flag == ("warning: --ledger-dsn holds a password" in output)
        assert "Traceback" not in output


@pytest.mark.parametrize("flag", ["--sasl-password", "--ssl-key-password"])
def test_a_password_by_flag_is_refused_and_not_offered(shell: Shell, flag: str) -> None:
    code, output = shell.run("totals", flag, SECRET)
    assert code == 2
    assert "secret" not in output
    variable = f"DURABILL_{flag[2:].upper().replace('-', '_')}"
    assert f"Set {variable}, or {variable}_FILE" in output
    assert flag not in shell.run("totals", "--help")[1]


def test_a_url_with_a_password_by_flag_is_warned_of(shell: Shell) -> None:
    url = "http://me:secret@127.0.0.1:1"
    _, output = shell.run(
        "order", "SO1", "--worker-urls", url, "--schema-registry-url", "http://h/a@b"
    )
    assert "warning: --worker-urls holds a password" in output
    assert "--schema-registry-url holds" not in output


def command_lines(mark: str) -> list[str]:
    """The command lines with `mark` in them, as every user sees them; at least one."""
    ran = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
    found = [line for line in ran.stdout.splitlines() if mark in line]
    assert found
    return found


@pytest.mark.parametrize("form", [1, 3])
def test_processes_show_no_secret_while_their_database_is_away(
    bootstrap_servers: str, topics: Topics, tmp_path: Path, form: int
) -> None:
    dsn = readable_dsns(HOST, find_free_ports(1)[0], "ledger", "me")[form]
    settings = environment(
        bootstrap_servers=bootstrap_servers,
        segments_topic=topics.segments,
        totals_topic=topics.totals,
        orders_topic=topics.orders,
        ledger_dsn=dsn,
        gateway_port="0",
        data_dir=str(tmp_path),
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        processes = [
            subprocess.Popen([*COMMAND, name], env=settings, stdout=out, stderr=out)
            for name in ("ledger", "gateway")
        ]
    try:
        wait_until(lambda: "PostgreSQL at" in log.read_text(), "it waits for PostgreSQL")
        assert [
            line for line in command_lines("durabill.deploy.commands.cli") if "secret" in line
        ] == []
        assert None is processes[0].poll()
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait(HANG_S)
    said = log.read_text()
    assert "PostgreSQL at me@127.0.0.1:" in said
    assert "secret" not in said
    assert processes[0].returncode == 0, said


def test_a_crash_shows_no_secret_in_its_traceback() -> None:
    code = (
        "from durabill.stream_processors.settings import load_settings\nimport os, traceback\n"
        "settings = load_settings(os.environ)\n"
        "raise RuntimeError(settings, [settings], {'settings': settings})\n"
    )
    dsn = readable_dsns("db", 1, "ledger", "me")[0]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(ledger_dsn=dsn, sasl_password=SECRET, ssl_key_password=SECRET),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RuntimeError: (Settings(" in ran.stderr
    assert "secret" not in ran.stderr
    assert "secret" not in repr(GatewayConfig({"sasl.password": SECRET}, ledger_dsn=dsn))


def test_a_secret_from_a_file_works_and_is_in_no_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, postgres_dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "dsn").write_text(new_ledger_dsn(postgres_dsn) + "\n")
    monkeypatch.setenv("DURABILL_LEDGER_DSN_FILE", str(tmp_path / "dsn"))
    assert shell.run("totals") == (0, "0 orders\n")
    assert "DURABILL_LEDGER_DSN" not in os.environ
