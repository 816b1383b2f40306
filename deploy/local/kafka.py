"""A real Apache Kafka on this machine: KRaft nodes, each broker and controller in one process.

One broker lives in `<data_dir>/kafka`: the files of `local.stack`, `server.properties` (written
anew by each start), `logs` (topics, offsets, transactions: what must survive a restart), `tmp`
(native codecs). Of a cluster that folder has the state and the lock alone, and each node has the
rest in `<data_dir>/kafka/node-<number>`. How many brokers a folder has is decided by its first
start, for good.
"""

import base64
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durabill.deploy.local.jars import ensure_jars
from durabill.deploy.local.java import find_java
from durabill.deploy.local.kafka_node import KafkaNode, Launch, Layout
from durabill.deploy.local.stack import Daemon, StackError, check_port, choose_port

HEAP_MB = 768
CLUSTER_HEAP_MB = 256
"""Of each node, where there are several: with what Java needs besides, some 350 MB in all."""

UNHURRIED = {"broker.session.timeout.ms": 600_000}
"""Settings (`more`) for a single broker on a machine that may be starved: by Kafka's default its
own controller takes it for dead when 9 s pass without its heartbeat, and then no partition has a
leader. Not for one that may be killed: its successor has to wait until the session is over."""

BROKERS_MAX = 9
_LAST_GRACE_S = 3.0


@dataclass(frozen=True)
class NodeStatus:
    """One broker of a local Kafka; `pid` is None when it doesn't run."""

    number: int
    pid: int | None
    address: str | None


@dataclass(frozen=True)
class KafkaStatus:
    """Whether all brokers' processes run, and where. `bootstrap_servers` is also told while they
    are stopped, once they have been started: the next start takes the same addresses if they are
    still free. `pid` is the first broker's; `nodes` has all of them."""

    running: bool
    pid: int | None
    bootstrap_servers: str | None
    data_dir: Path
    nodes: tuple[NodeStatus, ...] = ()

    @property
    def usable(self) -> bool:
        """Tell whether enough brokers run for clients to be served: more than half of them."""
        return 2 * sum(node.pid is not None for node in self.nodes) > len(self.nodes)


class LocalKafka:
    """A Kafka with its records under `data_dir`. Needs no network once it has its jars.

    `brokers` None: as many as the folder has, one where it has none yet. Three have three copies
    of everything, of which two must be in sync. `port` None: the ports of the last start, else
    free ones; more brokers take those that follow a given one. `jars_dir` None: `<data_dir>/jars`.
    `proxied` (port to listen on, port to advertise), for each broker: a second listener, for
    clients that come through a proxy. Whoever asks there is told to come back to the second port,
    the proxy's. `more` are further settings of the brokers, by Kafka's names.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        brokers: int | None = None,
        jars_dir: Path | None = None,
        heap_mb: int | None = None,
        proxied: Sequence[tuple[int, int]] = (),
        more: Mapping[str, object] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._brokers = brokers
        self._jars_dir = jars_dir.absolute() if jars_dir else self.data_dir / "jars"
        self._heap_mb = heap_mb
        self._proxied = proxied
        self._more = dict(more or {})
        self._say = say
        self._home = self.data_dir / "kafka"
        self._state = Daemon("Kafka", self._home)  # of one broker it is the process as well
        self._made: dict[int, KafkaNode] = {}

    def start(self) -> str:
        """Starts the brokers, or those that don't run, or finds them running; returns their
        addresses once each answers.

        Raises StackError, which says what to do, and leaves no process behind then.
        """
        with self._state.lock():
            self._check_count()
            if all(node.pid() is not None for node in self.nodes()):
                return self._running_address()
            self._check_given_ports()
            launch = self._launch()
            return self._start(launch)

    def stop(self) -> None:
        """Stops the brokers as they wish to be stopped; nothing happens when none is running."""
        if self._home.exists():
            with self._state.lock():
                *others, last = self.nodes()
                for node in (*others, last):
                    node.wake()  # a frozen one would be asked in vain by those that stop before it
                for node in others:
                    node.halt()
                if others:
                    # The last one asks in vain for a quorum that it could leave. Its files are the
                    # same either way, since each write was handed to the system.
                    last.halt(_LAST_GRACE_S)
                else:
                    last.halt()

    def remove(self) -> None:
        """Stops the brokers and deletes their records and settings; the jars stay."""
        self.stop()
        if self._home.exists():
            shutil.rmtree(self._home)

    def status(self) -> KafkaStatus:
        """What is known from the files and the process list; asks the brokers nothing."""
        layout = self._known()
        servers = None if layout is None else layout.bootstrap_servers()
        nodes = tuple(
            NodeStatus(node.number, node.pid(), None if layout is None else node.address)
            for node in self.nodes()
        )
        running = all(node.pid is not None for node in nodes)
        return KafkaStatus(running, nodes[0].pid, servers, self.data_dir, nodes)

    # -- the brokers one by one ---------------------------------------------------------------

    def count(self) -> int:
        """Returns how many brokers there are, or will be after the first start."""
        known = self._known()
        return (self._brokers or 1) if known is None else len(known.ports)

    def nodes(self) -> tuple[KafkaNode, ...]:
        """Returns all brokers, in the order of their numbers."""
        return tuple(self.node(number) for number in range(1, self.count() + 1))

    def node(self, number: int) -> KafkaNode:
        """Returns the broker of this number; they are numbered from 1."""
        count = self.count()
        if not 1 <= number <= count:
            raise StackError(f"There is no broker {number}: this Kafka has 1 to {count}.")
        if number not in self._made:
            alone = count == 1
            self._made[number] = KafkaNode(
                number,
                self._home if alone else self._home / f"node-{number}",
                name="Kafka" if alone else f"Kafka's broker {number}",
                lock=self._state.lock,
                layout=self._layout,
                launch=self._launch,
            )
        return self._made[number]

    # -- starting -----------------------------------------------------------------------------

    def _check_count(self) -> None:
        known, wanted = self._known(), self._brokers
        if wanted is not None and not 1 <= wanted <= BROKERS_MAX:
            raise StackError(f"A local Kafka has 1 to {BROKERS_MAX} brokers, not {wanted}.")
        if None not in (known, wanted) and self.count() != wanted:
            raise StackError(
                f"The Kafka in {self.data_dir} has {_many(self.count())} and can't become one "
                f"with {_many(wanted or 1)}: its records would have to be copied. Start it with "
                f"{self.count()}, or choose another data folder."
            )
        if self._proxied and len(self._proxied) != self.count():
            raise StackError(f"{len(self._proxied)} proxied listeners for {_many(self.count())}.")

    def _check_given_ports(self) -> None:
        """Before the jars are fetched, which may take a minute."""
        nodes = self.nodes()
        if self._port is not None and all(node.pid() is None for node in nodes):
            for at in range(len(nodes)):
                check_port("Kafka", self._port + at)

    def _running_address(self) -> str:
        layout = self._layout()
        if self._port not in (None, layout.ports[0]):
            raise StackError(
                f"Kafka runs already, at {layout.bootstrap_servers()}. Stop it first to start it "
                f"on port {self._port}."
            )
        # A starter was killed before they were ready, or they are stuck: then this says so.
        self._await_all()
        return layout.bootstrap_servers()

    def _await_all(self) -> None:
        everybody = {node.number for node in self.nodes()}
        for node in self.nodes():
            node.wait_until_ready(everybody)

    def _launch(self) -> Launch:
        if set(":,") & set(f"{self.data_dir}{self._jars_dir}"):
            raise StackError(
                f"Kafka and Java separate paths by ':' and ','; {self.data_dir} has one of "
                "them. Choose another data folder."
            )
        java = find_java()
        jars = ensure_jars(self._jars_dir, self._say)
        heap_mb = self._heap_mb or (HEAP_MB if self.count() == 1 else CLUSTER_HEAP_MB)
        class_path = ":".join(str(jar) for jar in jars)
        return Launch(java, class_path, heap_mb, self._more, self._proxied)

    def _start(self, launch: Launch) -> str:
        nodes = self.nodes()
        missing = [node for node in nodes if node.pid() is None]
        if len(missing) == len(nodes):
            self._remember(self._choose_layout(len(nodes)))
        else:
            for node in missing:
                node.check_ports()
        layout = self._layout()
        try:
            with ThreadPoolExecutor(len(missing)) as pool:
                for booted in [pool.submit(node.boot, launch, layout) for node in missing]:
                    booted.result()
            self._await_all()
        except BaseException:  # an interrupt too must not leave a half-started broker
            for node in missing:
                node.halt()
            raise
        return layout.bootstrap_servers()

    def _choose_layout(self, count: int) -> Layout:
        known = self._known()
        taken: set[int] = set()

        def pick(given: int | None, remembered: int | None) -> int:
            port = choose_port("Kafka", given, remembered)
            while given is None and port in taken:  # found as free, but for another of ours
                port = choose_port("Kafka", None, None)
            taken.add(port)
            return port

        nothing: tuple[int | None, ...] = (None,) * count
        given = [None if self._port is None else self._port + each for each in range(count)]
        last = known.ports if known else nothing
        ports = tuple(pick(*each) for each in zip(given, last, strict=True))
        last = known.controller_ports if known else nothing
        controller_ports = tuple(pick(None, port) for port in last)
        return Layout(known.cluster_id if known else _new_cluster_id(), ports, controller_ports)

    # -- what is kept -------------------------------------------------------------------------

    def _known(self) -> Layout | None:
        """Return what the last start kept, None before the first."""
        state = self._state.state()
        if "brokers" in state:
            ports, controllers = tuple(state["ports"]), tuple(state["controller_ports"])
            return Layout(state["cluster_id"], ports, controllers)
        if "cluster_id" in state:
            return Layout(state["cluster_id"], (state["port"],), (state["controller_port"],))
        return None

    def _layout(self) -> Layout:
        known = self._known()
        if known is None:
            raise StackError(f"The Kafka in {self.data_dir} was never started.")
        return known

    def _remember(self, layout: Layout) -> None:
        state: dict[str, Any] = {"cluster_id": layout.cluster_id}
        if len(layout.ports) == 1:
            state |= {"port": layout.ports[0], "controller_port": layout.controller_ports[0]}
        else:
            state |= {"brokers": len(layout.ports), "ports": layout.ports}
            state |= {"controller_ports": layout.controller_ports}
        self._state.remember(state)


def _many(brokers: int) -> str:
    return "1 broker" if brokers == 1 else f"{brokers} brokers"


def _new_cluster_id() -> str:
    """As Kafka's own `random-uuid`: 22 characters of URL-safe base64, not starting with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
