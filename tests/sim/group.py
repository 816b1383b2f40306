"""The group's coordinator: who is a member, of which generation, and how far it has read.

Rebalances are eager, as Faust's are: all members let go of everything, join again, and get their
share. A member that isn't heard of for a session is left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.sim.broker import Again, Broker
from tests.sim.loop import Host

SESSION_S = 3.0
REBALANCE_S = 8.0


@dataclass(slots=True)
class Member:
    """A member as the coordinator knows it."""

    seen_s: float
    joined: bool = False
    generation: int = -1
    assigned: list[int] = field(default_factory=list)


class Group:
    """The consumer group of the workers."""

    def __init__(self, broker: Broker, partitions: int) -> None:
        self.generation = 0
        self.offsets: dict[int, int] = {}
        self._broker = broker
        self._partitions = partitions
        self._members: dict[Host, Member] = {}
        self._preparing_since_s: float | None = None
        self.on_move: Callable[[dict[int, int]], None] = lambda offsets: None

    # Every one of these is what the coordinator does at a member's request.

    def join(self, host: Host) -> None:
        """Take a member in, or back in; its share comes with `share`."""
        member = self._members.setdefault(host, Member(self._broker.loop.time()))
        member.joined = True
        member.seen_s = self._broker.loop.time()
        self._prepare()

    def share(self, host: Host) -> list[int] | None:
        """Return the member's partitions once all are there; None if it has to join again."""
        member = self._members.get(host)
        if member is None:
            return None
        member.seen_s = self._broker.loop.time()
        if member.joined:
            self._balance()
        if member.joined:
            raise Again
        return member.assigned

    def calls(self, host: Host) -> bool:
        """Tell a member, at a heartbeat, whether it has to join again."""
        if self._broker.unreachable_s(host) > 0:
            return False
        member = self._members.get(host)
        return member is None or (self._preparing_since_s is not None and not member.joined)

    def has(self, host: Host, partitions: Iterable[int]) -> bool:
        """Tell whether a member is of the current generation, with just these partitions."""
        member = self._members.get(host)
        return (
            self._preparing_since_s is None
            and member is not None
            and member.generation == self.generation
            and sorted(member.assigned) == sorted(partitions)
        )

    def commit(self, host: Host, offsets: dict[int, int]) -> bool:
        """Move offsets for a member of the current generation."""
        member = self._members.get(host)
        if member is None or member.generation != self.generation:
            return False
        self.offsets.update(offsets)
        self.on_move(offsets)
        return True

    def leave(self, host: Host) -> None:
        """Let a member go."""
        if self._members.pop(host, None) is not None:
            self._prepare()

    def expire(self) -> None:
        """Hear the members' heartbeats; leave out those that have been silent for a session."""
        now_s = self._broker.loop.time()
        for host, member in list(self._members.items()):
            if now_s < self._broker.down_until_s:
                member.seen_s = now_s  # whoever comes up as coordinator waits a whole session
            elif not (host.dead or host.frozen or self._broker.unreachable_s(host)):
                member.seen_s = now_s
            elif now_s > member.seen_s + SESSION_S:
                self.leave(host)

    def _prepare(self) -> None:
        if self._preparing_since_s is None:
            self._preparing_since_s = self._broker.loop.time()

    def _balance(self) -> None:
        """Give everybody a share, if all have joined or have had the time to."""
        since_s = self._preparing_since_s
        if since_s is None:
            return
        if not all(member.joined for member in self._members.values()):
            if self._broker.loop.time() < since_s + REBALANCE_S:
                return
            self._members = {host: each for host, each in self._members.items() if each.joined}
        self.generation += 1
        self._preparing_since_s = None
        partitions = list(range(self._partitions))
        self._broker.dice.shuffle(partitions)
        members = list(self._members.values())
        for at, member in enumerate(members):
            member.joined = False
            member.generation = self.generation
            member.assigned = partitions[at :: len(members)]
