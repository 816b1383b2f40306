"""A real Apache Kafka on this machine: one KRaft node, broker and controller in one process.

In `<data_dir>/kafka`: the files of `deploy.stack`, `server.properties` (written anew by each
start), `logs` (topics, offsets, transactions: what must survive a restart), `tmp` (native
codecs).
"""

import base64
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.files import open_private, private_folder
from deploy.jars import ensure_jars
from deploy.java import find_java
from deploy.stack import HOST, Daemon, StackError, choose_port, find_free_ports, port_is_free

HEAP_MB = 768
READY_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_FORMAT_TIMEOUT_S = 60
_STOP_STEPS = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))


@dataclass(frozen=True)
class KafkaStatus:
    """Whether the broker's process runs, and where. `bootstrap_servers` is also told while it is
    stopped, once it has been started: the next start takes the same address if it is still free."""

    running: bool
    pid: int | None
    bootstrap_servers: str | None
    data_dir: Path


class LocalKafka:
    """A single-node Kafka with its records under `data_dir`. Needs no network once it has its jars.

    `port` None: the port of the last start, else a free one. `jars_dir` None: `<data_dir>/jars`.
    `proxied` (port to listen on, port to advertise): a second listener, for clients that come
    through a proxy. Whoever asks there is told to come back to the second port, the proxy's.
    `more` are further settings of the broker, by Kafka's names.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        jars_dir: Path | None = None,
        heap_mb: int = HEAP_MB,
        proxied: tuple[int, int] | None = None,
        more: Mapping[str, object] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._jars_dir = jars_dir.absolute() if jars_dir else self.data_dir / "jars"
        self._heap_mb = heap_mb
        self._proxied = proxied
        self._more = dict(more or {})
        self._say = say
        self._home = self.data_dir / "kafka"
        self._daemon = Daemon("Kafka", self._home)

    def start(self) -> str:
        """Starts the broker, or finds it running; returns its address once it answers.

        Raises StackError, which says what to do, and leaves no process behind then.
        """
        with self._daemon.lock():
            if self._daemon.pid() is not None:
                return self._running_address()
            if set(":,") & set(f"{self.data_dir}{self._jars_dir}"):
                raise StackError(
                    f"Kafka and Java separate paths by ':' and ','; {self.data_dir} has one of "
                    "them. Choose another data folder."
                )
            java = find_java()
            jars = ensure_jars(self._jars_dir, self._say)
            return self._start(java, ":".join(str(jar) for jar in jars))

    def stop(self) -> None:
        """Stops the broker as it wishes to be stopped; nothing happens when it is not running."""
        if self._home.exists():
            with self._daemon.lock():
                self._daemon.stop(_STOP_STEPS)

    def remove(self) -> None:
        """Stops the broker and deletes its records and settings; the jars stay."""
        self.stop()
        if self._home.exists():
            shutil.rmtree(self._home)

    def status(self) -> KafkaStatus:
        """What is known from the files and the process list; asks the broker nothing."""
        pid = self._daemon.pid()
        port = self._daemon.state().get("port")
        address = None if port is None else f"{HOST}:{port}"
        return KafkaStatus(pid is not None, pid, address, self.data_dir)

    def _running_address(self) -> str:
        state = self._daemon.state()
        address = f"{HOST}:{state['port']}"
        if self._port is not None and self._port != state["port"]:
            raise StackError(
                f"Kafka runs already, at {address}. Stop it first to start it on port {self._port}."
            )
        # Its starter was killed before it was ready, or it is stuck: then this says so.
        self._daemon.wait_until_ready(lambda: self._answers(state), READY_TIMEOUT_S)
        return address

    def _start(self, java: Path, class_path: str) -> str:
        remembered = self._daemon.state()
        state: dict[str, Any] = {
            "port": choose_port("Kafka", self._port, remembered.get("port")),
            "controller_port": remembered.get("controller_port"),
            "cluster_id": remembered.get("cluster_id") or _new_cluster_id(),
        }
        controller_port = state["controller_port"]
        if controller_port in (None, state["port"]) or not port_is_free(controller_port):
            # Nothing listens on the broker's port yet, so it may be found as free again.
            others = [port for port in find_free_ports(2) if port != state["port"]]
            state["controller_port"] = others[0]
        self._daemon.remember(state)
        private_folder(self._home / "tmp")
        properties = self._home / "server.properties"
        with open(properties, "w", opener=open_private) as file:
            file.write(self._properties(state))
        base: list[str | Path] = [
            java,
            f"-Xmx{self._heap_mb}m",
            f"-Djava.io.tmpdir={self._home / 'tmp'}",
        ]
        base += ["-cp", class_path]
        if not (self._home / "logs" / "meta.properties").exists():
            self._format([*base, "kafka.tools.StorageTool"], properties, state["cluster_id"])
        options = ["-XX:+ExitOnOutOfMemoryError", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        options += ["-Dorg.slf4j.simpleLogger.showDateTime=true"]
        options += ["-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX"]
        try:
            self._daemon.spawn([base[0], *options, *base[1:], "kafka.Kafka", properties])
            self._daemon.wait_until_ready(lambda: self._answers(state), READY_TIMEOUT_S)
        except BaseException:  # an interrupt too must not leave a half-started broker
            self._daemon.stop(_STOP_STEPS)
            raise
        return f"{HOST}:{state['port']}"

    def _format(self, tool: list[str | Path], properties: Path, cluster_id: str) -> None:
        command = [*tool, "format", "--cluster-id", cluster_id, "--config", str(properties)]
        try:
            ran = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_FORMAT_TIMEOUT_S,
                umask=0o077,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"Kafka's storage could not be formatted: {error}") from error
        if ran.returncode != 0:
            output = (ran.stdout + ran.stderr).strip()
            raise StackError(f"Kafka's storage could not be formatted: {output}")

    def _answers(self, state: dict[str, Any]) -> bool:
        """True when this very broker (by its cluster id) answers an AdminClient."""
        try:
            socket.create_connection((HOST, state["port"]), timeout=1).close()
        except OSError:
            return False  # spares librdkafka's complaints about refused connections
        # log_level 0: until the broker is ready, failed attempts are expected.
        client = AdminClient({"bootstrap.servers": f"{HOST}:{state['port']}", "log_level": 0})
        try:
            metadata = client.list_topics(timeout=_PROBE_TIMEOUT_S)
        except KafkaException:
            return False
        return bool(metadata.brokers) and metadata.cluster_id == state["cluster_id"]

    def _properties(self, state: dict[str, Any]) -> str:
        broker = f"{HOST}:{state['port']}"
        controller = f"{HOST}:{state['controller_port']}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            # Voters by configuration, not in the metadata log: so a restart may change the port.
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self._home / "logs",
            "auto.create.topics.enable": "false",
            "num.partitions": 4,
            "default.replication.factor": 1,
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            # Committed offsets are needed as long as the log, not for the default of 7 days.
            "offsets.retention.minutes": 5_256_000,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            # 128 MB by default, taken from a heap that is small here.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        }
        if self._proxied is not None:
            listening, advertised = (f"PROXIED://{HOST}:{port}" for port in self._proxied)
            settings["listeners"] = f"{settings['listeners']},{listening}"
            settings["advertised.listeners"] = f"{settings['advertised.listeners']},{advertised}"
            settings["listener.security.protocol.map"] = (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
            )
        settings |= self._more
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _new_cluster_id() -> str:
    """As Kafka's own `random-uuid`: 22 characters of URL-safe base64, not starting with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
