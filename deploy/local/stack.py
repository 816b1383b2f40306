"""Starting, watching and stopping the servers of the local stack (Kafka, PostgreSQL).

A server is a detached process in a session of its own: a Ctrl-C at the command that started it does
not reach it, and any later process can stop it. What is known of it lies in its *home* folder:

    process.json   pid and birth mark of the running process; gone when it was stopped cleanly
    state.json     what a restart must find again (ports, cluster id, password)
    server.log     what it printed since its last start; server.log.1 is the start before
    lock           held (flock) while somebody starts or stops it

A pid alone proves nothing, since the system gives pids out again. So process.json also holds the
process's *birth mark* (boot id and start tick), and nothing is ever signalled whose mark differs.
All of it is for its owner alone, and root touches no home folder that is another user's.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durabill.deploy.files import data_folder, open_private, private_folder
from durabill.deploy.local.ports import PORT_MAX, why_not_listen
from durabill.schemas.errors import DurabillError

HOST = "127.0.0.1"
NO_SYSTEM_TOOLS = "DURABILL_NO_SYSTEM_TOOLS"
LOG_TAIL_LINES = 20

# Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing connections:
# there, a port that a stopped server should find again may be taken by anybody's client meanwhile.
_PORT_MIN, _PORT_MAX = 20_000, 32_000

# Children of this very process: kept so that they can be reaped, else they would stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}
REAP_S = 10.0


class StackError(DurabillError):
    """The local stack cannot do what was asked; the text says why and what to do about it."""


@dataclass(frozen=True)
class Account:
    """The user that a server runs as, when that is not the caller."""

    name: str
    uid: int
    gid: int


def system_tools_allowed() -> bool:
    """False when DURABILL_NO_SYSTEM_TOOLS=1: Java, the jars and PostgreSQL then come from pip."""
    return os.environ.get(NO_SYSTEM_TOOLS, "") in ("", "0")


def port_is_free(port: int) -> bool:
    """True when a server could listen on HOST:port now."""
    return why_not_listen(HOST, port) is None


def find_free_ports(count: int, host: str = HOST) -> tuple[int, ...]:
    """`count` different ports of `host` on which nothing listens now."""
    found: list[int] = []
    dice = random.SystemRandom()
    for _ in range(1_000):
        if len(found) == count:
            return tuple(found)
        port = dice.randrange(_PORT_MIN, _PORT_MAX)
        if port not in found and why_not_listen(host, port) is None:
            found.append(port)
    raise StackError(f"No {count} free ports on {host} between {_PORT_MIN} and {_PORT_MAX}.")


def choose_port(name: str, given: int | None, remembered: int | None) -> int:
    """The given port, else that of the last start, else a free one. A given port must be free."""
    if given is not None:
        check_port(name, given)
        return given
    if remembered is not None and port_is_free(remembered):
        return remembered
    return find_free_ports(1)[0]


def check_port(name: str, port: int) -> None:
    """Raises StackError when the server `name` could not take the port that it was given."""
    if not 1 <= port <= PORT_MAX:
        raise StackError(f"{name} cannot take port {port}: ports are 1 to {PORT_MAX}.")
    why = why_not_listen(HOST, port)
    if why is not None:
        what = why.removeprefix("it ") if why.startswith("it ") else f"cannot be had ({why})"
        raise StackError(
            f"Port {port} on {HOST} {what}, {name} cannot take it. Stop what has it, give another"
            " port, or give none to have a free one found."
        )


def birth_mark(pid: int) -> str | None:
    """A text that no other process with this pid ever has; None when no such process runs."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in brackets may hold spaces and brackets itself; fields are counted after it.
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19]}"
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return None if not found or found[0].startswith("Z") else " ".join(found[1:])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces `path` at once, so that no reader ever sees half of it. For its owner only."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=1)
    os.replace(fresh, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StackError(
            f"{path} is damaged ({error}). Mend it, or remove the folder to begin anew."
        ) from error
    assert isinstance(content, dict), f"{path} holds {content!r}"
    return content


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; waits for other processes that hold it."""
    data_folder(path.parent)
    with open(path, "a", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reap_all() -> None:
    """Takes note of the end of every child of ours that is gone, whoever stopped it. Where another
    process did, the record that names the child is gone as well."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)  # another thread may have noticed it as well


def _reap(pid: int) -> None:
    """Takes note of the end of a child of ours, which has ended but may not be gone yet."""
    child = _children.pop(pid, None)
    if child is not None:
        child.wait(REAP_S)


class Daemon:
    """One detached server process with its home folder. Not thread safe; processes may share it."""

    def __init__(self, name: str, home: Path, *, passable: bool = False) -> None:
        self.name = name
        self.home = home.absolute()
        self._passable = passable  # by the server's user, on the way to its own folder
        self.log_path = self.home / "server.log"
        self._record_path = self.home / "process.json"
        self._state_path = self.home / "state.json"
        self._child: subprocess.Popen[bytes] | None = None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held around start and stop, so that two commands at once do not start two servers."""
        data_folder(self.home.parent)
        private_folder(self.home, passable=self._passable)
        return locked(self.home / "lock")

    def state(self) -> dict[str, Any]:
        """What `remember` kept; empty before the first start."""
        return _read_json(self._state_path)

    def remember(self, state: Mapping[str, Any]) -> None:
        """Keeps `state` for the next start."""
        _write_json(self._state_path, state)

    def pid(self) -> int | None:
        """The pid of the running server that `spawn` started, here or in another process."""
        _reap_all()
        record = _read_json(self._record_path)
        pid = record.get("pid")
        if not isinstance(pid, int):
            return None
        return pid if birth_mark(pid) == record.get("birth_mark") else None

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
    ) -> int:
        """Starts `command` detached, output to the log, and records it. Returns its pid."""
        if self.pid() is not None:
            raise StackError(f"{self.name} runs already (pid {self.pid()}).")
        if self.log_path.exists():
            os.replace(self.log_path, self.log_path.with_name("server.log.1"))
            self.log_path.with_name("server.log.1").chmod(0o600)
        with open(self.log_path, "wb", opener=open_private) as log:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd or self.home,
                start_new_session=True,
                umask=0o077,
                **as_account(account),
            )
        _children[child.pid] = self._child = child
        # None when it has died already: then the record matches nothing, as it should.
        _write_json(self._record_path, {"pid": child.pid, "birth_mark": birth_mark(child.pid)})
        return child.pid

    def exit_code(self) -> int | None:
        """How the process ended that this very object spawned last, negative for a signal. None
        while it runs, and where there is none."""
        return None if self._child is None else self._child.poll()

    def wait_until_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Returns when `ready()` is true. Raises StackError, with the log's end, when the process
        dies first or `timeout_s` pass; the process is then left as it is."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self.pid() is None:
                raise StackError(f"{self.name} ended before it was ready. {self.log_tail()}")
            if ready():
                return
            if time.monotonic() >= deadline_s:
                raise StackError(
                    f"{self.name} was not ready within {timeout_s:g} s. {self.log_tail()}"
                )
            time.sleep(0.1)

    def stop(self, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
        """Sends each signal in turn, waiting its seconds for the process to end. Returns True when
        a process was stopped, False when none ran. Raises StackError when it survives them all."""
        pid = self.pid()
        if pid is None:
            self._record_path.unlink(missing_ok=True)
            return False
        for number, wait_s in steps:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it ended between the look and the signal
            except PermissionError as error:
                raise StackError(
                    f"{self.name} (pid {pid}) was started by another user; stop it as that user."
                ) from error
            deadline_s = time.monotonic() + wait_s
            while time.monotonic() < deadline_s:
                if self.pid() is None:
                    self._record_path.unlink(missing_ok=True)
                    _reap(pid)
                    return True
                time.sleep(0.05)
        raise StackError(f"{self.name} (pid {pid}) does not stop. {self.log_tail()}")

    def log_tail(self) -> str:
        """Where the log is and its last lines, to be put at the end of a message."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return f"There is no log at {self.log_path}."
        if not lines:
            return f"Its log {self.log_path} is empty."
        tail = "\n  ".join(lines[-LOG_TAIL_LINES:])
        return f"The end of its log {self.log_path}:\n  {tail}"


def as_account(account: Account | None) -> dict[str, Any]:
    """The arguments of `subprocess` that run a command as `account`, with no group but its own."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": ()}
