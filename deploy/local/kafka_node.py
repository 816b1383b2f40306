"""One node of a local Kafka: a KRaft broker and controller in one detached process.

`local.kafka` makes nodes and decides on their ports. A node knows its home folder, writes its
`server.properties` anew at each start, and can be stopped, killed, frozen and thawed by itself.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from durabill.deploy.files import open_private, private_folder
from durabill.deploy.local.stack import HOST, Daemon, StackError, port_is_free

READY_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_FORMAT_TIMEOUT_S = 120
_GRACE_S = 30.0
_KILL_S = 10.0
_GONE_S = 10.0


@dataclass(frozen=True)
class Layout:
    """Who is in a cluster, and where: its id, and the nodes' ports, node 1's first."""

    cluster_id: str
    ports: tuple[int, ...]
    controller_ports: tuple[int, ...]

    def bootstrap_servers(self) -> str:
        """Return the addresses of all brokers, as clients take them."""
        return ",".join(f"{HOST}:{port}" for port in self.ports)

    def voters(self) -> str:
        """Return the controllers, as `controller.quorum.voters` has them."""
        numbered = enumerate(self.controller_ports, 1)
        return ",".join(f"{number}@{HOST}:{port}" for number, port in numbered)


@dataclass(frozen=True)
class Launch:
    """How nodes are started: the Java, its class path and heap, and settings by Kafka's names."""

    java: Path
    class_path: str
    heap_mb: int
    settings: Mapping[str, object]
    proxied: Sequence[tuple[int, int]]


class KafkaNode:
    """Node `number` (from 1) of a local cluster. `start` and `stop` hold the cluster's lock.

    `layout` and `launch` are asked when the node is started, since ports may be chosen by then.
    """

    def __init__(
        self,
        number: int,
        home: Path,
        *,
        name: str,
        lock: Callable[[], contextlib.AbstractContextManager[None]],
        layout: Callable[[], Layout],
        launch: Callable[[], Launch],
    ) -> None:
        self.number = number
        self.home = home
        self.name = name
        self._lock = lock
        self._layout = layout
        self._launch = launch
        self._daemon = Daemon(name, home)

    # -- what is known of it ------------------------------------------------------------------

    def pid(self) -> int | None:
        """Return the pid of its process, also of a frozen one; None when it doesn't run."""
        return self._daemon.pid()

    def exit_code(self) -> int | None:
        """Return how the process ended that this object started, None while it runs."""
        return self._daemon.exit_code()

    @property
    def address(self) -> str:
        """Return host:port of this one broker."""
        return f"{HOST}:{self._layout().ports[self.number - 1]}"

    def log_tail(self) -> str:
        """Return where its log is, and the last lines of it."""
        return self._daemon.log_tail()

    # -- by itself, while the others go on ----------------------------------------------------

    def start(self) -> None:
        """Start this node at the ports it had, or find it running; return once it takes part.

        Raises StackError if one of its ports was taken meanwhile, or too few of the others run.
        """
        with self._lock():
            if self.pid() is None:
                self.check_ports()
                self.boot(self._launch(), self._layout())
            self.wait_until_ready({self.number})

    def stop(self) -> None:
        """Stop it as it wishes to be stopped: it hands over its partitions first."""
        with self._lock():
            self.halt()

    def kill(self) -> int:
        """End it at once (SIGKILL), frozen or not; return its pid, which is gone then."""
        pid = self._running()
        self._daemon.stop([(signal.SIGKILL, _KILL_S)])
        return pid

    def freeze(self) -> int:
        """Stop its time (SIGSTOP): its connections stay open, and nothing answers."""
        return self._send(signal.SIGSTOP)

    def thaw(self) -> int:
        """Let it go on (SIGCONT)."""
        return self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> int:
        pid = self._running()
        os.kill(pid, number)
        return pid

    def _running(self) -> int:
        pid = self.pid()
        if pid is None:
            raise StackError(f"{self.name} does not run.")
        return pid

    # -- for local.kafka, which holds the lock -----------------------------------------------

    def check_ports(self) -> None:
        """Raise StackError when the ports of a node that is to join others are in use."""
        at = self.number - 1
        for port in (self._layout().ports[at], self._layout().controller_ports[at]):
            until_s = time.monotonic() + _GONE_S  # the last threads of a killed process have it
            while not port_is_free(port) and time.monotonic() < until_s:
                time.sleep(0.05)
            if not port_is_free(port):
                raise StackError(
                    f"Port {port} on {HOST}, which {self.name} had, is in use by another program. "
                    "Stop that program, or stop all brokers and start them again: then they find "
                    "other ports."
                )

    def boot(self, launch: Launch, layout: Layout) -> None:
        """Spawn the process, formatting its storage before the very first start."""
        private_folder(self.home / "tmp")
        properties = self.home / "server.properties"
        with open(properties, "w", opener=open_private) as file:
            file.write(self._properties(launch, layout))
        java: list[str | Path] = [launch.java, f"-Xmx{launch.heap_mb}m"]
        java += [f"-Djava.io.tmpdir={self.home / 'tmp'}"]
        class_path: list[str | Path] = ["-cp", launch.class_path]
        if not (self.home / "logs" / "meta.properties").exists():
            tool = [*java, *class_path, "kafka.tools.StorageTool"]
            self._format(tool, properties, layout.cluster_id)
        options = ["-XX:+ExitOnOutOfMemoryError", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        options += ["-Dorg.slf4j.simpleLogger.showDateTime=true"]
        options += ["-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX"]
        self._daemon.spawn([*java, *options, *class_path, "kafka.Kafka", properties])

    def wait_until_ready(self, members: set[int]) -> None:
        """Return once this broker answers and counts all of `members` among the living."""
        layout = self._layout()
        self._daemon.wait_until_ready(lambda: self._answers(layout, members), READY_TIMEOUT_S)

    def wake(self) -> None:
        """Let it go on if it is frozen; nothing happens when it isn't, or doesn't run."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)

    def halt(self, grace_s: float = _GRACE_S) -> None:
        """Stop the process, a frozen one too; kill it when it hasn't stopped in time."""
        steps = ((signal.SIGCONT, 0.0), (signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_S))
        self._daemon.stop(steps)

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

    def _answers(self, layout: Layout, members: set[int]) -> bool:
        """True when this very broker (by its cluster's id) answers an AdminClient."""
        port = layout.ports[self.number - 1]
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            return False  # spares librdkafka's complaints about refused connections
        # log_level 0: until the broker is ready, failed attempts are expected.
        client = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "log_level": 0})
        try:
            metadata = client.list_topics(timeout=_PROBE_TIMEOUT_S)
        except KafkaException:
            return False
        return members <= set(metadata.brokers) and metadata.cluster_id == layout.cluster_id

    def _properties(self, launch: Launch, layout: Layout) -> str:
        at = self.number - 1
        broker = f"{HOST}:{layout.ports[at]}"
        controller = f"{HOST}:{layout.controller_ports[at]}"
        copies = min(3, len(layout.ports))
        in_sync_min = max(1, copies - 1)
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.number,
            # Voters by configuration, not in the metadata log: so a restart may change the port.
            "controller.quorum.voters": layout.voters(),
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.home / "logs",
            "auto.create.topics.enable": "false",
            "num.partitions": 4,
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync_min,
            # A leader that lacks acknowledged records would take them out of the evidence.
            "unclean.leader.election.enable": "false",
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 4,
            # Committed offsets are needed as long as the log, not for the default of 7 days.
            "offsets.retention.minutes": 5_256_000,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync_min,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync_min,
            "share.coordinator.state.topic.num.partitions": 1,
            # 128 MB by default, taken from a heap that is small here.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        }
        if launch.proxied:
            listening, advertised = (f"PROXIED://{HOST}:{port}" for port in launch.proxied[at])
            settings["listeners"] = f"{settings['listeners']},{listening}"
            settings["advertised.listeners"] = f"{settings['advertised.listeners']},{advertised}"
            settings["listener.security.protocol.map"] = (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
            )
        settings |= launch.settings
        return "".join(f"{name}={value}\n" for name, value in settings.items())
