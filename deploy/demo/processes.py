"""What the demo runs on: servers and `durabill` processes of its own, all of them stopped again.

Everything lies in `<data_dir>/demo`: the servers' data, a home folder (log, pid) for each process,
the truth. A run that was killed leaves its processes behind; the next one stops them first. Where
addresses of existing servers are given, those are used instead, with topics, a consumer group and
a database schema that no other run has, removed at the end.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
from confluent_kafka.admin import AdminClient
from psycopg import sql

from durabill.deploy.connect import await_kafka
from durabill.deploy.files import data_folder, open_private, private_folder
from durabill.deploy.local.kafka import UNHURRIED, LocalKafka
from durabill.deploy.local.postgres import LocalPostgres
from durabill.deploy.local.stack import Daemon, StackError, find_free_ports
from durabill.deploy.migrate import migrate
from durabill.deploy.topics import create_topics
from durabill.stream_processors.audit.seal.keys import make_key_file
from durabill.stream_processors.dsn import connect
from durabill.stream_processors.kafka.options import quiet
from durabill.stream_processors.settings import PREFIX, Settings

READY_TIMEOUT_S = 240.0  # the very first start of a worker compiles for up to a minute or two
_STOP_STEPS = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0))
_NAMES = ("gateway", "worker", "seal", "ledger")  # in the order in which they are stopped
_HTTP_TIMEOUT_S = 3.0
SEAL_INTERVAL_S = 1.0


class Stage:
    """Servers and processes for one run. A context manager: stops them, also after an error.

    `settings` holds the run's addresses and names once it has been entered; `urls` the worker's
    and the gateway's. With `keep` everything goes on running if all went well.
    """

    def __init__(
        self, settings: Settings, partitions: int, *, keep: bool, say: Callable[[str], None]
    ) -> None:
        self.data_dir = Path(settings.data_dir).absolute()
        self.folder = demo_folder(settings)
        self.settings = settings
        self.urls: dict[str, str] = {}
        self.is_own_kafka = not settings.bootstrap_servers
        self.is_own_postgres = not settings.ledger_dsn
        self.keep = keep
        self._partitions = partitions
        self._say = say
        self._exits = contextlib.ExitStack()
        self._schema: str | None = None
        self._topics_made = False

    def __enter__(self) -> Self:
        private_folder(self.folder, passable=True)
        self._exits.enter_context(_only_one(self.folder))
        try:
            stop_demo(self.folder)
            LocalKafka(self.folder).remove()
            LocalPostgres(self.folder).remove()
            for name in ("seal", "archive"):  # of the servers that are gone
                shutil.rmtree(self.folder / f"{name}.d", ignore_errors=True)
            self._share_jars()
            self._start()
        except BaseException:
            self._end(failed=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(failed=error is not None)

    def check(self) -> None:
        """Raise StackError, with the end of its log, if one of the processes has died."""
        for name in _NAMES:
            daemon = Daemon(name, self.folder / name)
            if daemon.pid() is None:
                raise StackError(f"The {name} has died. {daemon.log_tail()}")

    def _share_jars(self) -> None:
        """Have the jars in the data folder, so that demo and local stack fetch them once."""
        data_folder(self.data_dir / "jars")
        here = self.folder / "jars"
        if not here.exists():
            here.symlink_to(Path("..") / "jars")

    def _start(self) -> None:
        changes: dict[str, Any] = {"data_dir": str(self.folder)}
        if self.is_own_kafka:
            self._say("starting Kafka")
            changes["bootstrap_servers"] = LocalKafka(
                self.folder, more=UNHURRIED, say=self._say
            ).start()
        else:
            await_kafka(self.settings)
            run = f"durabill-demo-{secrets.token_hex(4)}"
            changes["application_id"] = run
            for role in ("segments", "totals", "orders", "dead_letters"):
                changes[f"{role}_topic"] = f"{run}.{role.replace('_', '-')}"
            changes["seal_topic"] = f"{run}.seal-checkpoints"
        if self.is_own_postgres:
            self._say("starting PostgreSQL")
            changes["ledger_dsn"] = LocalPostgres(self.folder, say=self._say).start()
        else:
            self._schema = f"durabill_demo_{secrets.token_hex(4)}"
            changes["ledger_dsn"] = _with_schema(self.settings.ledger_dsn, self._schema)
        worker_port, gateway_port = find_free_ports(2)
        self.urls = {
            "worker": f"http://127.0.0.1:{worker_port}",
            "gateway": f"http://127.0.0.1:{gateway_port}",
        }
        ours = {"worker_host": "127.0.0.1", "gateway_host": "127.0.0.1"}
        ports = {"worker_port": worker_port, "gateway_port": gateway_port}
        changes |= {**ours, **ports, "worker_urls": self.urls["worker"]}
        self.settings = msgspec.structs.replace(self.settings, **changes)
        self._make_key()
        self._create_topics()
        migrate(self.settings.ledger_dsn)
        self._say(
            "starting worker, ledger, sealer, gateway (the very first start compiles for a minute)"
        )
        for name in _NAMES:
            self._spawn(name)
        self._await("worker", f"{self.urls['worker']}/status", self._has_all_partitions)
        self._await("gateway", f"{self.urls['gateway']}/readyz", lambda answer: True)

    def _create_topics(self) -> None:
        self._topics_made = True
        create_topics(
            quiet(self.settings.librdkafka()),
            self.settings.all_topics,
            partitions=self._partitions,
        )

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Stop one of the processes, and start it again afterwards."""
        Daemon(name, self.folder / name).stop(_STOP_STEPS)
        yield
        self._spawn(name)

    def _make_key(self) -> None:
        """Make the key that signs this run's checkpoints, and the places of seal and archive."""
        key = self.folder / "seal.key"
        key.unlink(missing_ok=True)
        public = make_key_file(key)
        with open(self.folder / "seal.pub", "w", opener=open_private) as file:
            print(public, file=file)
        self.settings = msgspec.structs.replace(
            self.settings,
            seal_key_file=str(key),
            seal_dir=str(self.folder / "seal.d"),
            seal_interval_s=SEAL_INTERVAL_S,
            archive_dir=str(self.folder / "archive.d"),
        )

    def _spawn(self, name: str) -> None:
        home = self.folder / name
        private_folder(home)
        command = [sys.executable, "-m", "durabill.deploy.commands.cli", name]
        Daemon(name, home).spawn(command, env=environment(self.settings))

    def _await(self, name: str, url: str, is_ready: Callable[[Any], bool]) -> None:
        def ready() -> bool:
            answer = get_json(url)
            return answer is not None and is_ready(answer)

        Daemon(name, self.folder / name).wait_until_ready(ready, READY_TIMEOUT_S)

    def _has_all_partitions(self, status: Any) -> bool:
        return len(status["partitions"]) == self._partitions

    def _end(self, *, failed: bool) -> None:
        """Stop everything, whatever happens; with `keep` only if something went wrong."""
        if failed or not self.keep:
            # A second Ctrl-C must not leave a server behind.
            with self._exits, deaf_to_signals():
                stop_demo(self.folder)
                if not failed:
                    self._remove_traces()
        self._exits.close()

    def _remove_traces(self) -> None:
        """Remove what the run made in servers that aren't its own; kept for a look if it failed."""
        if not self.is_own_kafka and self._topics_made:
            admin = AdminClient(quiet(self.settings.librdkafka()))  # held until it has answered
            futures = admin.delete_topics(list(self.settings.all_topics.by_role.values()))
            for future in futures.values():
                future.result(timeout=30)
        if self._schema is not None:
            with connect(self.settings.ledger_dsn, autocommit=True) as connection:
                name = sql.Identifier(self._schema)
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(name))


def demo_folder(settings: Settings) -> Path:
    """Return the folder that holds all of a demo's files."""
    return Path(settings.data_dir).absolute() / "demo"


def stop_demo(folder: Path) -> None:
    """Stop whatever a demo in this folder runs; nothing happens where nothing does."""
    for name in _NAMES:
        if (folder / name).exists():
            Daemon(name, folder / name).stop(_STOP_STEPS)
    LocalPostgres(folder).stop()
    LocalKafka(folder).stop()


def environment(settings: Settings) -> Mapping[str, str]:
    """Return this process's environment with exactly these settings in it."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    defaults = Settings()
    ours = {
        PREFIX + name.upper(): str(getattr(settings, name))
        for name in Settings.__struct_fields__
        if getattr(settings, name) != getattr(defaults, name)
    }
    return {**others, **ours}


def get_json(url: str) -> Any:
    """Return what a page answers, None where there is no answer or an error."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as response:
            return msgspec.json.decode(response.read())
    except (OSError, msgspec.DecodeError):  # urllib's errors are OSErrors
        return None


def _with_schema(dsn: str, schema: str) -> str:
    """Make a schema of our own in somebody's database; return the DSN that works in it."""
    with connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    options = psycopg.conninfo.conninfo_to_dict(dsn).get("options") or ""
    return psycopg.conninfo.make_conninfo(dsn, options=f"{options} -csearch_path={schema}".strip())


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "a", opener=open_private) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StackError(
                f"Another demo runs in {folder}. Wait for it, or give this one another --data-dir."
            ) from error
        yield


@contextlib.contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Let a second Ctrl-C not stop the cleaning up; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
