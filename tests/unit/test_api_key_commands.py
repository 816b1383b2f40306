"""`durabill keys create`, `list`, `rotate`, `revoke`: what they write, print and refuse."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durabill.deploy.commands.api_key_file import change_key_file, read_key_file
from durabill.deploy.commands.cli import main
from durabill.deploy.commands.gateway_config import are_leases_required, check_gateway
from durabill.producers.gateway.auth.api_keys import ApiKeyError, ApiKeyFile
from durabill.producers.gateway.auth.key_book import KeyBook
from durabill.producers.gateway.auth.key_changes import create, revoke
from durabill.schemas.errors import DurabillError, SettingsError
from durabill.stream_processors.settings import load_settings
from tests.waiting import HANG_S

NOW_MS = 1_900_000_000_000


class Shell:
    """Runs `durabill keys` in this process."""

    def __init__(
        self, path: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.path, self._patch, self._capfd = path, patch, capfd
        patch.setattr("os.umask", lambda mask: 0)  # of a process of its own, not of ours
        patch.setenv("DURABILL_API_KEYS_FILE", str(path))

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._patch.setattr("sys.argv", ["durabill", "keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int | None)
        return code or 0, *self._capfd.readouterr()

    def told(self, *arguments: str) -> Any:
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def opens(self, key: str) -> bool:
        return KeyBook(self.path).caller(key, NOW_MS) is not None


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(tmp_path / "new" / "keys.json", monkeypatch, capfd)


CREATE = ("create", "--tenant", "acme", "--client", "meters")


def test_a_key_is_shown_once_and_its_hash_is_kept(shell: Shell) -> None:
    code, out, err = shell.run(*CREATE)
    assert code == 0
    (key,) = out.split()
    assert "shown this once" in err
    assert key not in err
    assert stat.S_IMODE(shell.path.stat().st_mode) == 0o600
    assert shell.opens(key)
    secret = key.rpartition("_")[2]
    shown = "".join(str(each) for each in shell.run("list") + shell.run("list", "--json"))
    assert secret not in shown + shell.path.read_text()
    assert all(word in shown for word in ("acme", "meters", "report, read", "live"))


def test_keys_live_and_end(shell: Shell) -> None:
    first = shell.told(*CREATE, "--scopes", "admin,read")
    assert (first["tenant"], first["client"], first["scopes"]) == (
        "acme",
        "meters",
        ["read", "admin"],
    )
    second = shell.told("rotate", first["id"], "--grace-days", "36500")
    assert (second["replaces"], second["scopes"]) == (first["id"], first["scopes"])
    assert shell.opens(first["key"])
    assert shell.opens(second["key"])
    assert shell.told("revoke", first["id"])["state"] == "revoked"
    assert not shell.opens(first["key"])
    third = shell.told("rotate", second["id"], "--grace-days", "0")
    assert (shell.opens(second["key"]), shell.opens(third["key"])) == (False, True)
    states = [each["state"] for each in shell.told("list")["keys"]]
    assert states == ["revoked", "expired", "live"]


def test_a_key_may_end_by_itself(shell: Shell) -> None:
    told = shell.told(*CREATE, "--expires-days", "1.5")
    assert told["expires_ms"] - told["created_ms"] == 129_600_000
    assert not shell.opens(told["key"])  # at that time, years later


def test_no_keys_is_no_error(shell: Shell) -> None:
    assert shell.told("list")["keys"] == []
    assert "create" in shell.run("list")[2]
    assert not shell.path.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("create", "--tenant", "a b", "--client", "c"), "--tenant"),
        (("create", "--tenant", "t", "--client", ""), "--client"),
        ((*CREATE, "--scopes", "report,root"), "--scopes"),
        ((*CREATE, "--scopes", ""), "--scopes"),
        (("revoke", "nobody"), "no id of an API key"),
        (("revoke", "0" * 12), "there is no key"),
        (("rotate", "0" * 12), "there is no key"),
        (("rotate", "nobody"), "no id of an API key"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], named: str, shell: Shell) -> None:
    code, out, err = shell.run(*arguments)
    assert (code, out) == (2, "")
    assert named in err


def test_a_key_is_no_argument_and_is_not_repeated(shell: Shell) -> None:
    key = shell.told(*CREATE)["key"]
    for arguments in (
        ("rotate", key),
        ("revoke", key),
        ("revoke", f"x{key}"),
        ("revoke", "0" * 12, key),
        ("list", f"--key={key}"),
        (*CREATE, "--scopes", key),
        (*CREATE[:2], key, *CREATE[3:]),
    ):
        code, out, err = shell.run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert key.rpartition("_")[2] not in err


def test_a_damaged_file_is_left_as_it_is(shell: Shell) -> None:
    shell.told(*CREATE)
    shell.path.write_text(damaged := shell.path.read_text()[:-9])
    for arguments in (CREATE, ("list",), ("revoke", "0" * 12)):
        code, _, err = shell.run(*arguments)
        assert (code, "damaged" in err) == (2, True)
    assert shell.path.read_text() == damaged


def test_two_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def add(_: int) -> str:
        def change(file: ApiKeyFile) -> tuple[ApiKeyFile, str]:
            new, _, kept = create(
                file, "t", "c", ("read",), now_ms=0, expires_ms=None, entropy=os.urandom
            )
            return new, kept.id

        return change_key_file(path, change)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(add, range(40)))
    assert sorted(each.id for each in read_key_file(path).keys) == sorted(made)
    assert not list(tmp_path.glob(".keys.*[!k]"))  # no draft is left


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    change_key_file(
        path,
        lambda file: (
            create(file, "t", "c", (), now_ms=0, expires_ms=None, entropy=os.urandom)[0],
            None,
        ),
    )
    before = path.read_bytes()
    with pytest.raises(ApiKeyError):
        change_key_file(path, lambda file: revoke(file, "0" * 12, 0))
    assert path.read_bytes() == before
    with pytest.raises(ApiKeyError, match="can't be"):
        change_key_file(tmp_path / "keys" / "below", lambda file: (file, None))


def test_a_gateway_for_the_network_does_not_start_without_a_word(tmp_path: Path) -> None:
    """Before it connects to anything: there is no Kafka here."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DURABILL_")}
    environ |= {"DURABILL_BOOTSTRAP_SERVERS": "127.0.0.1:1", "DURABILL_DATA_DIR": str(tmp_path)}
    command = (sys.executable, "-m", "durabill", "gateway", "--gateway-host", "0.0.0.0")
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 2, ran.stderr
    told = ("DURABILL_GATEWAY_AUTH", "durabill keys create", "jwt", "proxy")
    assert all(word in ran.stderr for word in told)
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"gateway_host": "::"}, "DURABILL_GATEWAY_AUTH"),
        ({"gateway_host": "0.0.0.0", "gateway_auth": "keys"}, "durabill keys create"),
        ({"gateway_auth": "keys"}, "durabill keys create"),
        ({"gateway_auth": "jwt"}, "DURABILL_JWT_ISSUER"),
        ({"gateway_auth": "basic"}, "keys\\+jwt"),
        ({"gateway_tls_certificate": "x"}, "^DURABILL_GATEWAY_TLS_KEY is not set"),
        ({"gateway_tls_client_ca": "x"}, "^DURABILL_GATEWAY_TLS_CERTIFICATE is not set(.|\n)*KEY"),
        ({"gateway_tls_certificate": __file__, "gateway_tls_key": "y"}, "_…: y: No such file"),
    ],
)
def test_what_a_gateway_is_told_before_it_connects(
    settings: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DurabillError, match=named) as raised:
        check_gateway(load_settings({}, data_dir=str(tmp_path), **settings))
    assert raised.value.exit_code == 2


def test_keys_in_the_clear_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_key_file(
        tmp_path / "api-keys.json",
        lambda file: (
            create(file, "t", "c", (), now_ms=0, expires_ms=None, entropy=os.urandom)[0],
            None,
        ),
    )
    for host, is_warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        flags = {"gateway_host": host, "gateway_auth": "keys", "data_dir": str(tmp_path)}
        check_gateway(load_settings({}, **flags))
        assert ("without TLS" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("leases", "auth", "required"),
    [
        ("auto", "none", False),
        ("auto", "proxy", False),
        ("auto", "keys", True),
        ("auto", "jwt", True),
        ("optional", "keys", False),
        ("required", "none", True),
    ],
)
def test_leases_are_required_where_callers_are_known(
    leases: str, auth: str, required: bool
) -> None:
    settings = load_settings({}, leases=leases, gateway_auth=auth)
    assert are_leases_required(settings) == required


@pytest.mark.parametrize("leases", ["auto", "required"])
def test_leases_are_required_where_orders_have_to_be_opened(leases: str) -> None:
    """Without one, segments would be acknowledged as counting that are NOT_OPENED."""
    settings = load_settings({"DURABILL_OPENED_ONLY": "true"}, leases=leases, gateway_auth="none")
    check_gateway(settings)
    assert are_leases_required(settings)


def test_leases_that_may_be_missing_dont_go_with_orders_that_have_to_be_opened() -> None:
    settings = load_settings({"DURABILL_OPENED_ONLY": "true"}, leases="optional")
    with pytest.raises(SettingsError, match="DURABILL_LEASES"):
        check_gateway(settings)
