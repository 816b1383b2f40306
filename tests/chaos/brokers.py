"""The brokers that chaos comes over: one, or three with copies of everything on each.

It knows who leads what, so that a fault can be aimed at a leader, a follower or a coordinator, and
waits until all copies are in sync again, so that no two of them are ever missing by accident.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import (
    Consumer,
    ElectionType,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, TopicMetadata

from durabill.deploy.local.kafka import LocalKafka
from durabill.deploy.local.kafka_node import KafkaNode
from durabill.deploy.local.stack import StackError
from tests.chaos.proxy import Line, Proxy

ALONE = {
    # A broker that was killed may come back when the controller has missed it for so long.
    "broker.session.timeout.ms": 3_000,
    "broker.heartbeat.interval.ms": 500,
}
TOGETHER = {
    # So long a frozen follower stays in sync by name, and holds back what the leader appends.
    "broker.session.timeout.ms": 6_000,
    "broker.heartbeat.interval.ms": 500,
    # Leaders stay where a fault has moved them, until one that moves leaders brings them back.
    "auto.leader.rebalance.enable": "false",
}
GROUPS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"
_IN_SYNC_S = 90.0
_ANSWER_S = 5.0
_LOOK_S = 0.2


class Brokers:
    """A running Kafka; `line` is how the proxied clients reach it. Methods from any thread."""

    def __init__(
        self, folder: Path, count: int, jars_dir: Path, say: Callable[[str], None]
    ) -> None:
        self.count = count
        self.line: Line
        self.front = ""
        self.servers = ""
        self._folder = folder
        self._jars_dir = jars_dir
        self._say = say
        self._wanted: set[int] = set()
        self._topics: tuple[str, ...] = ()
        self._kafka: LocalKafka
        self._admin: AdminClient

    @contextlib.contextmanager
    def running(self, ports: tuple[int, ...]) -> Iterator[None]:
        """Start them around a block; `ports` are two free ones a broker. Who made the folder
        stops them."""
        pairs = list(zip(ports[::2], ports[1::2], strict=True))
        self._kafka = LocalKafka(
            self._folder,
            brokers=self.count,
            jars_dir=self._jars_dir,
            proxied=pairs,
            more=ALONE if self.count == 1 else TOGETHER,
            say=self._say,
        )
        with contextlib.ExitStack() as exits:
            proxies = [exits.enter_context(Proxy(listening, target)) for target, listening in pairs]
            self.line = Line(proxies)
            self.front = ",".join(f"127.0.0.1:{listening}" for _, listening in pairs)
            self.servers = self._kafka.start()
            eager: dict[str, str | int | float | bool] = {
                "bootstrap.servers": self.servers,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
            self._admin = AdminClient(eager)
            self._wanted = {node.number for node in self._kafka.nodes()}
            yield

    # -- one by one ---------------------------------------------------------------------------

    def kill(self, number: int) -> int:
        """End a broker at once; return its pid, which is gone."""
        self._wanted.discard(number)
        return self._node(number).kill()

    def stop(self, number: int) -> None:
        """Stop a broker as it wishes to be stopped."""
        self._wanted.discard(number)
        self._node(number).stop()

    def start(self, number: int) -> None:
        """Start a broker again, at the same address, and wait until it takes part."""
        self._node(number).start()
        self._wanted.add(number)

    def freeze(self, number: int) -> int:
        """Stop a broker's time; return its pid."""
        return self._node(number).freeze()

    def thaw(self, number: int) -> None:
        """Let a broker go on."""
        self._node(number).thaw()

    def kill_all(self) -> list[int]:
        """End all brokers at once; return their pids."""
        return [self.kill(node.number) for node in self._kafka.nodes()]

    def start_all(self) -> None:
        """Start all brokers again."""
        servers = self._kafka.start()
        assert servers == self.servers, "a port was taken meanwhile"
        self._wanted = {node.number for node in self._kafka.nodes()}

    def _node(self, number: int) -> KafkaNode:
        return self._kafka.node(number)

    def ended(self) -> Iterator[tuple[int, int | None, str]]:
        """Yield (number, exit code, last words) of brokers that ended by themselves, once each."""
        for number in sorted(self._wanted):
            node = self._node(number)
            if node.pid() is None and number in self._wanted:
                self._wanted.discard(number)
                yield number, node.exit_code(), node.log_tail()

    # -- who has what -------------------------------------------------------------------------

    def watch(self, *topics: str) -> None:
        """Count these topics among what must be in sync; the first is the segments'."""
        self._topics = topics

    def living(self) -> set[int]:
        """Return the brokers that the cluster counts among the living."""
        return set(self._admin.list_topics(timeout=_ANSWER_S).brokers)

    def leaders(self, topic: str = "") -> dict[int, int]:
        """Return the leader of each partition of a topic, the segments' if none is given."""
        found = self._metadata(topic or self._topics[0])
        return {number: each.leader for number, each in found.partitions.items()}

    def leader_most(self) -> int:
        """Return the broker that leads most partitions of segments."""
        return self._by_leads()[-1]

    def leader_least(self) -> int:
        """Return the broker that leads fewest partitions of segments, so follows in most."""
        return self._by_leads()[0]

    def _by_leads(self) -> list[int]:
        leads = Counter(self.leaders().values())
        return sorted((node.number for node in self._kafka.nodes()), key=lambda n: (leads[n], n))

    def coordinator(self, topic: str, name: str) -> int:
        """Return the broker that coordinates a group, or transactions, of this name."""
        leaders = self.leaders(topic)
        return leaders[_java_hash(name) % len(leaders)]

    def _metadata(self, topic: str) -> TopicMetadata:
        return self._admin.list_topics(topic, timeout=_ANSWER_S).topics[topic]

    def in_sync(self) -> bool:
        """Tell whether every copy of everything is in sync; False too if nobody answers."""
        try:
            topics = self._admin.list_topics(timeout=_ANSWER_S).topics
        except KafkaException:
            return False
        needed = {*self._topics, GROUPS, TRANSACTIONS}
        return needed <= topics.keys() and all(
            len(partition.isrs) == len(partition.replicas) and partition.leader >= 0
            for name in needed
            for partition in topics[name].partitions.values()
        )

    def wait_in_sync(self) -> None:
        """Wait until all copies are in sync; raise StackError if they don't come to it."""
        until_s = time.monotonic() + _IN_SYNC_S
        while not self.in_sync():
            if time.monotonic() > until_s:
                raise StackError(f"copies are not in sync within {_IN_SYNC_S:g} s")
            time.sleep(_LOOK_S)

    def elect_preferred(self) -> None:
        """Have each partition led by the broker that was meant to lead it at first."""
        elected = self._admin.elect_leaders(ElectionType.PREFERRED, None)
        for error in elected.result(_ANSWER_S * 4).values():
            needless = error is None or error.code() == KafkaError.ELECTION_NOT_NEEDED
            if not needless:
                raise StackError(f"a preferred leader is not elected: {error}")

    def probe(self, away: int) -> "Probe":
        """Return a probe of what is held back while the broker `away` doesn't answer."""
        led_by_others = [each for each, by in self.leaders().items() if by != away]
        others = [node.address for node in self._kafka.nodes() if node.number != away]
        return Probe(",".join(others), self._topics[0], led_by_others[0])


class Probe:
    """Appends a record to one leader's log alone, and looks whether consumers see it.

    It is made, and knows its way, before the fault begins.
    """

    def __init__(self, servers: str, topic: str, partition: int) -> None:
        self.partition = partition
        self._topic = topic
        conf = {"bootstrap.servers": servers, "log_level": 0}
        self._producer = Producer({**conf, "acks": 1, "linger.ms": 0, "message.timeout.ms": 5_000})
        self._consumer = Consumer({**conf, "group.id": "chaos-probe"})
        self._producer.list_topics(topic, timeout=_ANSWER_S)
        self.visible_until()

    def close(self) -> None:
        """Let go of the clients."""
        self._producer.close()
        self._consumer.close()

    def append(self, value: bytes) -> int | None:
        """Append a record (acks=1); return its offset, None if the leader didn't take it."""
        offsets: list[int | None] = []

        def note(error: KafkaError | None, message: Message) -> None:
            offsets.append(None if error else message.offset())

        self._producer.produce(self._topic, value, partition=self.partition, on_delivery=note)
        self._producer.flush(_ANSWER_S)
        return offsets[0] if offsets else None

    def visible_until(self) -> int:
        """Return the high watermark, before which consumers see records."""
        place = TopicPartition(self._topic, self.partition)
        found: int = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)[1]
        return found


def _java_hash(name: str) -> int:
    """Return what Kafka chooses a coordinator's partition by, not negative."""
    value = 0
    for char in name:
        value = (31 * value + ord(char)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF if value != 0x80000000 else 0


def kill_all(folder: Path) -> None:
    """End the brokers of a folder at once, frozen or not."""
    for node in LocalKafka(folder).nodes():
        if node.pid() is not None:
            node.kill()
