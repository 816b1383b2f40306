"""The local PostgreSQL: starting and stopping it, and root beside a user that it can't trust."""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from durabill.deploy.files import ForeignFolder, data_folder, private_folder
from durabill.deploy.local.postgres import ROOT_FALLBACK_DIR, LocalPostgres
from durabill.deploy.local.server_user import hand_over, server_account
from durabill.deploy.local.stack import HOST, NO_SYSTEM_TOOLS, Account, StackError

as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
OPEN_TO_OTHERS = 0o077


@pytest.fixture
def account() -> Account:
    found = server_account()
    assert found is not None
    return found


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A folder of root's own, which nobody may change, read or take over through a link."""
    folder = tmp_path / "treasure"
    folder.mkdir(mode=0o700)
    (folder / "file").write_text("root's own")
    (folder / "file").chmod(0o600)
    (folder / "empty").mkdir(mode=0o700)
    return folder


@pytest.fixture
def guarded(treasure: Path) -> Iterator[Path]:
    """The treasure; the test fails if anything about it is another afterwards."""

    def look() -> list[tuple[str, int, int, str]]:
        paths = [treasure, *sorted(treasure.rglob("*"))]
        facts = [(str(each), each.lstat()) for each in paths]
        content = (treasure / "file").read_text()
        return [(name, found.st_uid, found.st_mode, content) for name, found in facts]

    before = look()
    yield treasure
    assert before == look()


def as_the_server(account: Account, script: str, *arguments: Path) -> None:
    """Runs a shell script as the user whose folder it is: the attacker."""
    subprocess.run(
        ["/bin/sh", "-ec", script, "sh", *map(str, arguments)],
        user=account.uid,
        group=account.gid,
        extra_groups=(),
        check=True,
        cwd="/",
    )


def test_postgres_starts_once_stops_and_keeps_address_and_rows(data_dir: Path) -> None:
    postgres = LocalPostgres(data_dir, fsync=False)
    dsn = postgres.start()
    first = postgres.status()
    assert (first.running, first.dsn) == (True, dsn)
    assert LocalPostgres(data_dir).start() == dsn
    assert postgres.status() == first
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    postgres.stop()
    assert (postgres.status().running, postgres.status().dsn) == (False, dsn)

    assert postgres.start() == dsn
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(psycopg.conninfo.make_conninfo(dsn, password="guess"))
    postgres.stop()
    assert not postgres.status().running


@as_root_only
def test_postgres_as_root_finds_a_place_when_its_user_cannot_enter_ours(data_dir: Path) -> None:
    private = data_dir / "private"
    private.mkdir(mode=0o700)
    postgres = LocalPostgres(private, fsync=False)
    try:
        with psycopg.connect(postgres.start()) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        assert Path(row[0]).is_relative_to(ROOT_FALLBACK_DIR)
    finally:
        postgres.remove()
    assert private.stat().st_mode & 0o777 == 0o700
    assert not Path(row[0]).exists()


def test_data_whose_password_is_gone_is_told_at_once(data_dir: Path) -> None:
    postgres = LocalPostgres(data_dir, fsync=False)
    postgres.start()
    postgres.stop()
    state = data_dir / "postgres" / "state.json"
    kept = state.read_text()
    state.unlink()
    with pytest.raises(StackError, match="whose password went with a data folder"):
        LocalPostgres(data_dir).start()
    state.write_text(kept)
    postgres.remove()


def test_remembered_port_in_use_is_replaced(data_dir: Path) -> None:
    postgres = LocalPostgres(data_dir, fsync=False)
    postgres.start()
    postgres.stop()
    before = psycopg.conninfo.conninfo_to_dict(postgres.status().dsn or "")
    passwords = data_dir / "postgres" / "pgpass"
    password = passwords.read_text().rpartition(":")[2]
    with socket.create_server((HOST, int(str(before["port"])))):
        after = psycopg.conninfo.conninfo_to_dict(postgres.start())
    assert after["port"] != before["port"]
    assert passwords.read_text() == f"127.0.0.1:{after['port']}:*:durabill:{password}"
    assert len(password) > 20


# --- who may read it ----------------------------------------------


def open_to_others(folder: Path) -> list[str]:
    """What others may read, write or list under the folder, itself excluded."""
    found = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        may_pass = stat.S_ISDIR(mode) and mode & 0o777 == 0o711 and os.geteuid() == 0
        if mode & OPEN_TO_OTHERS and not may_pass:
            found.append(f"{path.relative_to(folder)} {mode & 0o777:o}")
    return found


def test_nothing_of_postgres_is_for_others_and_its_dsn_holds_no_password(data_dir: Path) -> None:
    before = os.umask(0o000)
    try:
        dsn = LocalPostgres(data_dir, fsync=False).start()
    finally:
        os.umask(before)
    assert open_to_others(data_dir) == []
    assert "password" not in psycopg.conninfo.conninfo_to_dict(dsn)
    password = (data_dir / "postgres" / "pgpass").read_text().strip().rpartition(":")[2]
    assert password not in dsn
    command_lines = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True)
    assert password not in command_lines.stdout


def test_folders_of_an_older_version_are_closed_but_not_the_data_folder(data_dir: Path) -> None:
    home = data_dir / "postgres"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    (home / "server.log").write_text("old")
    (home / "server.log").chmod(0o644)
    postgres = LocalPostgres(data_dir, fsync=False)
    postgres.start()
    assert data_dir.stat().st_mode & 0o777 == 0o755
    assert (0o711 if os.geteuid() == 0 else 0o700) == home.stat().st_mode & 0o777
    assert open_to_others(data_dir) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_new_folders_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = private_folder(tmp_path / "data" / "kafka" / "deep")
        data_folder(tmp_path / "other")
    finally:
        os.umask(before)
    passable = 0o711 if os.geteuid() == 0 else 0o700
    modes = [each.stat().st_mode & 0o777 for each in (folder, folder.parent, tmp_path / "other")]
    assert [0o700, passable, passable] == modes


# --- root beside a user that it can't trust ------------------------

TRAPS = """
cd "$1"
for name in cluster cluster.new password binaries binaries.new server.log postgresql.conf; do
    rm -rf "$name"
    ln -s "$2" "$name"
done
"""


@as_root_only
def test_links_in_the_servers_folder_lead_root_nowhere(
    data_dir: Path, guarded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NO_SYSTEM_TOOLS, "1")  # binaries are copied then: more to go wrong
    postgres = LocalPostgres(data_dir, fsync=False)
    account = server_account()
    assert account is not None
    server = data_dir / "postgres" / "server"
    private_folder(server.parent, passable=True)
    hand_over(server, account)
    as_the_server(account, TRAPS, server, guarded)
    with pytest.raises(StackError, match="initdb failed"):  # `cluster` is there, and no cluster
        postgres.start()
    as_the_server(account, 'rm "$1/cluster"', server)
    with psycopg.connect(postgres.start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    postgres.stop()
    as_the_server(
        account,
        'cd "$1"; for f in PG_VERSION postgresql.conf pg_hba.conf; do ln -sf "$2/file" $f; done; '
        'mkdir -p a/b; ln -s "$2" a/b/c; ln -s / root',
        server / "cluster",
        guarded,
    )
    with pytest.raises(StackError) as refused:
        postgres.start()
    assert "root's own" not in str(refused.value)
    postgres.remove()
    assert not server.exists()
    assert list(data_dir.glob("postgres*")) == []


@as_root_only
def test_binaries_that_root_runs_are_not_in_the_servers_hands(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NO_SYSTEM_TOOLS, "1")
    LocalPostgres(data_dir, fsync=False).start()
    (binary,) = (data_dir / "postgres").glob("*/*/*/bin/postgres")
    for path in (binary, *binary.parents):
        if path == data_dir.parent:
            break
        found = path.stat()
        assert (found.st_uid, found.st_mode & 0o022) == (0, 0), path


@as_root_only
def test_a_version_that_never_ends_holds_nobody_up(
    data_dir: Path, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabill.deploy.local.server_user.WAIT_S", 0.5)
    server = data_dir / "postgres" / "server"
    private_folder(server.parent, passable=True)
    hand_over(server, account)
    as_the_server(account, 'mkdir "$1/cluster"; mkfifo "$1/cluster/PG_VERSION"', server)
    with pytest.raises(StackError, match="timed out"):
        LocalPostgres(data_dir).start()


@as_root_only
@pytest.mark.parametrize("planted", ["link", "file", "another's", "not empty", "open"])
def test_only_an_empty_folder_of_roots_own_is_handed_over(
    data_dir: Path, account: Account, guarded: Path, planted: str
) -> None:
    folder = data_dir / "server"
    if planted == "link":
        folder.symlink_to(guarded / "empty")
    elif planted == "file":
        folder.write_text("")
    else:
        folder.mkdir(mode=0o700)
    if planted == "another's":
        os.chown(folder, account.uid + 1, account.gid)
    elif planted == "not empty":
        os.link(guarded / "file", folder / "file")
    elif planted == "open":
        folder.chmod(0o777)
    before = folder.lstat()
    with pytest.raises(StackError, match="Remove it"):
        hand_over(folder, account)
    assert before.st_uid == folder.lstat().st_uid
    if planted == "not empty":
        (folder / "file").unlink()


@as_root_only
def test_an_empty_folder_is_handed_over_once_and_stays(data_dir: Path, account: Account) -> None:
    folder = data_dir / "server"
    for _ in range(2):
        hand_over(folder, account)
        found = folder.stat()
        assert (account.uid, account.gid, 0o700) == (
            found.st_uid,
            found.st_gid,
            found.st_mode & 0o777,
        )
        (folder / "content").touch()


@as_root_only
def test_root_takes_no_orders_from_another_users_data_folder(
    data_dir: Path, account: Account, guarded: Path
) -> None:
    home = data_dir / "postgres"
    home.mkdir()
    (home / "state.json").write_text(f'{{"port": 1, "server_dir": "{guarded}"}}')
    shutil.chown(home, account.uid)
    for order in (LocalPostgres(data_dir).start, LocalPostgres(data_dir).remove):
        with pytest.raises(ForeignFolder, match="belongs to another user"):
            order()
    assert LocalPostgres(data_dir).status().pid is None
    assert not (home / "pgpass").exists()
    shutil.rmtree(home)


@as_root_only
@pytest.mark.parametrize("whose", ["the folder's", "the link's"])
def test_root_closes_no_folder_through_another_users_link(
    data_dir: Path, account: Account, treasure: Path, whose: str
) -> None:
    treasure.chmod(0o755)
    link = data_dir / "kafka"
    link.symlink_to(treasure)
    if whose == "the link's":
        os.lchown(link, account.uid, account.gid)
    else:
        shutil.chown(treasure, account.uid)
    with pytest.raises(ForeignFolder):
        private_folder(link)
    assert treasure.stat().st_mode & 0o777 == 0o755
    link.unlink()


@as_root_only
def test_a_link_of_ones_own_to_a_bigger_disk_is_followed(data_dir: Path, treasure: Path) -> None:
    treasure.chmod(0o755)
    (data_dir / "kafka").symlink_to(treasure)
    private_folder(data_dir / "kafka")
    assert treasure.stat().st_mode & 0o777 == 0o700


@as_root_only
def test_a_data_folder_of_another_user_is_refused(data_dir: Path, account: Account) -> None:
    folder = data_dir / "theirs"
    folder.mkdir()
    shutil.chown(folder, account.uid)
    with pytest.raises(ForeignFolder, match="theirs belongs to another user"):
        LocalPostgres(folder).start()
    assert list(folder.iterdir()) == []
