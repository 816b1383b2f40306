"""The cluster that chaos comes over: every process of Durabill, Kafka, PostgreSQL, and a proxy.

All of it lies in one temporary folder. The processes are started again when they end by
themselves, as a process manager would, and each such end is kept with its last words. Nothing is
left when the context ends; what a killed run left behind, the next one clears away.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from durabill.deploy.demo.processes import deaf_to_signals, environment, get_json
from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from durabill.deploy.local.stack import Daemon, StackError, birth_mark, find_free_ports
from durabill.deploy.migrate import migrate
from durabill.deploy.topics import create_topics
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.settings import Settings
from tests.chaos.brokers import Brokers, kill_all
from tests.chaos.schedule import PROXIED, WORKERS_FIRST
from tests.waiting import HANG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
JARS_DIR = ROOT / ".durabill" / "jars"
PREFIX = "durabill-chaos-"
PARTITIONS = 6
READY_S = 240.0  # the very first start of a worker compiles
STOP_S = 45.0
LAST_WORDS_BYTES = 1_500
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 5.0
_LOOK_S = 0.1
_RESTARTS_OF_POSTGRES = 20
_CLOCK_OFF = """
import sys, time
off_s, plain, plain_ns = int(sys.argv.pop(1)), time.time, time.time_ns
time.time = lambda: plain() + off_s
time.time_ns = lambda: plain_ns() + off_s * 10**9
print(f"the clock is {off_s} s off", file=sys.stderr, flush=True)
from durabill.deploy.commands.cli import main
main()
"""
"""What a process runs whose wall clock is wrong. All of ours ask Python for the time."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that ended though nobody had asked it to; `code` as subprocess tells it."""

    name: str
    at_s: float
    code: int | None
    last_words: str


class Process:
    """One `durabill` process that is kept running; all methods may be called from any thread."""

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self.name = name
        self.url = ""
        if name.startswith("worker"):
            self.url = f"http://{settings.worker_host}:{settings.worker_port}"
        self._settings = settings
        home = folder / name
        home.mkdir()
        self._daemon = Daemon(name, home)
        self._lock = threading.RLock()
        self._wanted = False
        self._pause_s = _PAUSE_FIRST_S
        self._started_s = 0.0

    def start(self, clock_off_s: int = 0) -> int:
        """Start it, and want it running from now on; return its pid.

        Its wall clock is so far ahead of the others' until it is started again.
        """
        with self._lock:
            self._wanted = True
            self._started_s = time.monotonic()
            command = [sys.executable, "-m", "durabill.deploy.commands.cli"]
            if clock_off_s:
                command = [sys.executable, "-c", _CLOCK_OFF, str(clock_off_s)]
            command.append(self.name.partition("-")[0])
            environ = environment(self._settings)
            # A whole minute of retries in the log says no more than its end.
            return self._daemon.spawn(command, env=environ, cwd=ROOT)

    def pid(self) -> int | None:
        """Return the pid of the running process."""
        with self._lock:
            return self._daemon.pid()

    def kill(self) -> tuple[int | None, int | None]:
        """End it at once and leave it so; return its pid and exit code."""
        with self._lock:
            self._wanted = False
            pid = self._daemon.pid()
            self._daemon.stop([(signal.SIGCONT, 0.0), (signal.SIGKILL, 10.0)])
            return pid, self._code()

    def stop(self) -> int | None:
        """Ask it to end and return its exit code; raise StackError if it doesn't."""
        with self._lock:
            self._wanted = False
            self._daemon.stop([(signal.SIGCONT, 0.0), (signal.SIGTERM, STOP_S)])
            return self._code()

    def _code(self) -> int | None:
        """Return the exit code, once the last of its threads is gone too."""
        until_s = time.monotonic() + HANG_S
        while (code := self._daemon.exit_code()) is None and time.monotonic() < until_s:
            time.sleep(0.01)
        return code

    def signal(self, number: signal.Signals) -> int | None:
        """Send a signal to it; return its pid, None if it doesn't run."""
        with self._lock:
            pid = self._daemon.pid()
            if pid is not None:
                os.kill(pid, number)
            return pid

    def log_tail(self) -> str:
        """Return its last words."""
        try:
            content = self._daemon.log_path.read_bytes()
        except FileNotFoundError:
            return ""
        return content[-LAST_WORDS_BYTES:].decode(errors="replace").strip()

    def look_after(self, now_s: float, began_s: float) -> Exit | None:
        """Start it again if it has ended by itself; return that end."""
        with self._lock:
            if not self._wanted or self._daemon.pid() is not None:
                return None
            code = self._code()
            if now_s - self._started_s > 4 * _PAUSE_MAX_S:
                self._pause_s = _PAUSE_FIRST_S
            if now_s - self._started_s < self._pause_s:
                return None
            found = Exit(self.name, round(now_s - began_s, 1), code, self.log_tail())
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
            self.start()
            return found


class Cluster:
    """A running cluster; a context manager. See the module's docstring."""

    def __init__(
        self, settings: Settings, brokers: int, *, keep: bool, say: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o755)  # PostgreSQL's user must be able to enter
        self.exits: list[Exit] = []
        self.processes: dict[str, Process] = {}
        self.began_s = time.monotonic()
        self._keep = keep
        self._say = say
        self._over = contextlib.ExitStack()
        self._end = threading.Event()
        self._guard = threading.Thread(target=self._look_after, name="guard", daemon=True)
        self.brokers = Brokers(self.folder, brokers, JARS_DIR, say)
        self._postgres = LocalPostgres(self.folder, fsync=False)

    # -- begin and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with deaf_to_signals():
            self._end.set()
            if self._guard.is_alive():
                self._guard.join()
            for process in self.processes.values():
                process.kill()
            self._over.close()
            clear_away(self.folder, keep=self._keep)
        if self._keep:
            self._say(f"kept: {self.folder}")

    def _start(self) -> None:
        ports = find_free_ports(2 * self.brokers.count)
        with ThreadPoolExecutor(1) as beside:
            dsn = beside.submit(self._postgres.start)
            self._over.enter_context(self.brokers.running(ports))
        self.settings = msgspec.structs.replace(
            self.settings,
            bootstrap_servers=self.brokers.servers,
            ledger_dsn=dsn.result(),
            data_dir=str(self.folder),
        )
        create_topics(
            self.kafka,
            self.settings.topics,
            partitions=PARTITIONS,
        )
        self.brokers.watch(*self.settings.topics.by_role.values())
        migrate(self.settings.ledger_dsn)
        for name in ("gateway", *WORKERS_FIRST, "ledger"):
            self.add(name)
        self._guard.start()
        self.wait_for(self.all_shared_out, READY_S, "the workers have shared out the partitions")
        gateway = f"{self.gateway_url}/readyz"
        self.wait_for(lambda: get_json(gateway) is not None, READY_S, "the gateway is ready")

    def _look_after(self) -> None:
        while not self._end.wait(_LOOK_S):
            for process in list(self.processes.values()):
                found = process.look_after(time.monotonic(), self.began_s)
                if found is not None:
                    self.exits.append(found)
            at_s = round(time.monotonic() - self.began_s, 1)
            for number, code, words in self.brokers.ended():
                self.exits.append(Exit(f"broker-{number}", at_s, code, words))

    # -- processes ----------------------------------------------------------------------------

    @property
    def kafka(self) -> dict[str, str]:
        """Return how to reach the broker directly; librdkafka's own words are left out."""
        return quiet(self.settings.librdkafka())

    @property
    def gateway_url(self) -> str:
        """Return where the gateway listens."""
        return f"http://127.0.0.1:{self._gateway_port}"

    def add(self, name: str) -> Process:
        """Start another process of this name, with a port of its own."""
        (port,) = find_free_ports(1)
        changes: dict[str, Any] = {"worker_port": port, "gateway_port": port}
        if name == "gateway":
            self._gateway_port = port
        if name in PROXIED:
            changes["bootstrap_servers"] = self.brokers.front
        settings = msgspec.structs.replace(self.settings, **changes)
        process = Process(name, self.folder, settings)
        process.start()
        self.processes[name] = process
        return process

    def workers(self) -> list[Process]:
        """Return the workers that ought to run."""
        return [each for name, each in self.processes.items() if name.startswith("worker")]

    def forget(self, name: str) -> None:
        """Let go of a process that is not coming back."""
        del self.processes[name]

    def shared_out(self, *, without: str = "") -> set[int]:
        """Return the partitions that the workers say they own, but for one of them."""
        owned: set[int] = set()
        for worker in self.workers():
            if worker.name == without:
                continue
            status = get_json(f"{worker.url}/status")
            if status is not None:
                owned |= {int(each) for each in status["partitions"]}
        return owned

    def states(self) -> str:
        """Return what each worker says of itself, for reports of what hangs."""
        return "; ".join(
            f"{each.name} (pid {each.pid()}): {get_json(f'{each.url}/status')}"
            for each in self.workers()
        )

    def all_shared_out(self) -> bool:
        """Tell whether every partition has an owner."""
        return len(self.shared_out()) == PARTITIONS

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return when the condition holds; raise StackError with all last words if it doesn't."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s:
                words = (f"--- {each.name}\n{each.log_tail()}" for each in self.processes.values())
                raise StackError("\n".join([f"not within {timeout_s:g} s: {what}", *words]))
            time.sleep(0.2)

    # -- servers ------------------------------------------------------------------------------

    def kill_postgres(self) -> int:
        """End PostgreSQL at once; return its pid, which is gone."""
        return _kill(self._postgres.status().pid, "PostgreSQL")

    def start_postgres(self) -> None:
        """Start PostgreSQL again, once the processes that it left behind have noticed its end."""
        for attempt in range(_RESTARTS_OF_POSTGRES):
            try:
                dsn = self._postgres.start()
            except StackError:
                if attempt == _RESTARTS_OF_POSTGRES - 1:
                    raise
                time.sleep(0.5)
            else:
                assert dsn == self.settings.ledger_dsn, "its port was taken meanwhile"
                return


def process_state(pid: int) -> str:
    """Return Linux's letter for what a process does: T is stopped; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def sweep() -> None:
    """Stop and remove what runs of this user left that were killed themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        mine = folder.stat().st_uid == os.geteuid()
        kept = (folder / "kept").exists()
        if mine and not kept and pid.isdigit() and birth_mark(int(pid)) is None:
            clear_away(folder, keep=False)


def clear_away(folder: Path, *, keep: bool) -> None:
    """Stop everything that runs in the folder, and remove it, or else mark it as kept."""
    for home in folder.iterdir():
        if (home / "process.json").exists() and home.name not in ("kafka", "postgres"):
            Daemon(home.name, home).stop([(signal.SIGKILL, 10.0)])
    postgres = LocalPostgres(folder)
    if keep:
        LocalKafka(folder).stop()
        postgres.stop()
        (folder / "kept").touch()
        return
    kill_all(folder)
    postgres.remove()
    shutil.rmtree(folder)


def _kill(pid: int | None, name: str) -> int:
    assert pid is not None, f"{name} runs"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: birth_mark(pid) is None, f"{name} has ended by SIGKILL")
    return pid
