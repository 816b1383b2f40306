"""The interval table of one partition: what the plain table and the column table both promise.

A table takes chunks of the log in and gives effects out: totals, dead letters, records to be
forwarded. It does no I/O, and knows no clock but the append times in the log and the instant
given to `tick`. Orders sit in numbered blocks, and the changed blocks are handed out for the
checkpoint. Every order knows the last offset that it has taken in. So a record that a replay
brings again is passed over exactly, also where a crash tore a checkpoint and blocks are of
different ages.

The partition's clock is the greatest append time so far. It equals the record's own append time
unless the broker's clock ran backwards, and never runs backwards itself. So a deadline that has
been passed stays passed, and the totals don't depend on when a timer looked.
"""

from abc import abstractmethod
from collections.abc import Iterable

from durabill.schemas import WriterSchemas
from durabill.schemas.limits import LONG_MAX, ORDER_PIECES_MAX
from durabill.schemas.order_state import OrderState
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import (
    Order,
    Policy,
    describe_opening,
    describe_order,
)
from durabill.stream_processors.engine.blocks import Snapshot
from durabill.stream_processors.engine.effects import DeadLetter, Effects, Forward, Opening, Total
from durabill.stream_processors.engine.openings import ENTRY_PREFIX
from durabill.stream_processors.engine.orders import PlainOrders
from durabill.stream_processors.engine.slots import Blocks, PlainBlocks
from durabill.stream_processors.engine.steps import ChunkFolder

__all__ = ["DeadLetter", "Effects", "Forward", "IntervalTable", "Opening", "Place", "Total"]


class IntervalTable(ChunkFolder):
    """The orders of one partition.

    `pieces_max` is the contract's limit of an order's intervals and ranges; tests lower it.
    `blocks` gives out the slots.
    """

    def __init__(
        self,
        place: Place,
        policy: Policy,
        writers: WriterSchemas,
        *,
        pieces_max: int = ORDER_PIECES_MAX,
        blocks: Blocks | None = None,
    ) -> None:
        super().__init__(place.partition)
        self.place = place
        self.writers = writers
        self._plain = PlainOrders(
            place, policy, writers, pieces_max, blocks or PlainBlocks(), self._at_hand
        )

    @property
    def policy(self) -> Policy:
        """Return the policy by which records are judged now."""
        return self._plain.policy

    @property
    def clock_marks(self) -> int:
        """Return how many clock marks have been folded in this process's life."""
        return self._plain.clock_marks

    @property
    def openings_repeated(self) -> int:
        """Return how many openings have only come again in this process's life."""
        return self._plain.openings_repeated

    @property
    def openings_extended(self) -> int:
        """Return how many openings have extended the one before in this process's life."""
        return self._plain.openings_extended

    @property
    def openings_waiting(self) -> int:
        """Return how many openings are known whose orders have no segment, or none for long."""
        return len(self._plain.waiting)

    def set_policy(self, policy: Policy) -> None:
        """Judge what is folded from now on by another policy.

        Deadlines that are set stay; interim totals are due by the new interval.
        """
        is_other_interval = policy.interim_interval_ms != self.policy.interim_interval_ms
        self._use_policy(policy)
        if is_other_interval:
            self._look_again()

    def _use_policy(self, policy: Policy) -> None:
        self._plain.policy = policy

    def _look_again(self) -> None:
        """Find out anew when each order is due."""
        self._plain.look_again()

    def tick(self, now_ms: int) -> Effects:
        """Return what a record that belongs to no order would give, appended at `now_ms`."""
        self.clock_ms = max(self.clock_ms, now_ms)
        effects = Effects()
        for _ in self._run_due(effects):
            pass
        return effects

    @abstractmethod
    def confirm(self, clock_ms: int) -> bool:
        """Give back slots of orders forgotten before the replay's start; False: that was all.

        `clock_ms` is the partition's clock at the offset from which a recovery would now replay.
        An order whose time was over only later has to stay: the records that a replay brings
        again must find it, or a repeat among them would bring it to life anew. One call takes a
        few milliseconds at most; how the calls are spread over time makes no difference.
        """

    # -- checkpoints --------------------------------------------------------------------------

    def take_changed(self) -> list[str]:
        """Return the names of the entries that have changed since the last call.

        Their snapshots are to be taken, and written, in this order; see `slots`. Openings come
        last: one leaves its entry once the block of its order has been written.
        """
        return [*self._plain.slots.take_changed(), *self._plain.waiting.take_changed()]

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what an entry holds now; None: it is to be removed."""
        if name.startswith(ENTRY_PREFIX):
            return self._plain.waiting.snapshot(name)
        return self._plain.slots.snapshot(name)

    def take_changed_entries(self) -> list[tuple[str, bytes | None]]:
        """Return (name, content) of what changed since the last call; None: to be removed."""
        snapshots = [(name, self.snapshot(name)) for name in self.take_changed()]
        return [(name, each.pack() if each else None) for name, each in snapshots]

    @abstractmethod
    def restore(self, blocks: Iterable[bytes], clock_ms: int) -> None:
        """Fill an empty table from the contents of checkpointed entries, of all kinds.

        `clock_ms` is the partition's clock at the offset where the replay starts. Entries are read
        one by one, and may be of different age; see `slots`. May run in a thread of its own.
        Raises StateError if one can't be read.
        """

    # -- questions ----------------------------------------------------------------------------

    @abstractmethod
    def __len__(self) -> int:
        """Return how many orders are known, settled ones included."""

    @abstractmethod
    def unsettled(self) -> int:
        """Return how many orders are known that have yet to settle."""

    @abstractmethod
    def age_of(self, key: bytes) -> tuple[int, int] | None:
        """Return (last offset, last revision) of an order, None if it is not known.

        It grows with every change of the order that a replay could not redo, also from one life
        of the order to the next.
        """

    def knows_opening(self, key: bytes, offset: int) -> bool:
        """Tell whether a replay passes over the opening at an offset: it has been passed on, say.

        Where it doesn't, a replay that brings the record gives the opening among its effects.
        """
        age = self.age_of(key)
        is_past = age is not None and offset <= age[0]
        return is_past or self._plain.knows_opening(key.decode("utf-8", "replace"), offset)

    @abstractmethod
    def oldest_deadline_ms(self) -> int | None:
        """Return the earliest instant at which a total is due (None: there is none).

        Where more deadlines have moved on than can be looked through in a few milliseconds, it
        may be too early; asking again brings it nearer.
        """

    @abstractmethod
    def next_due_ms(self, now_ms: int) -> int | None:
        """Return the earliest deadline of an order that is not settled (None: there is none).

        Cheap, to be asked often: a result after `now_ms` may be too early. One that isn't is
        exact, but for what `oldest_deadline_ms` says.
        """

    def describe(self, number: str, limit: int | None = None) -> OrderState | None:
        """Return the live state of an order, or None if it is unknown.

        At most `limit` intervals and ranges of missing numbers are listed, the first ones.
        """
        order = self._known(number)
        opening = self._plain.waiting.at(number, LONG_MAX, self.clock_ms)
        if opening is not None and (order is None or order.is_forgotten(self.clock_ms)):
            return describe_opening(number, opening, self.place.partition)
        return None if order is None else describe_order(order, self.policy, limit)

    def opened_by(self, number: str) -> str | None:
        """Return the tenant that opened an order, as `describe` tells it.

        That takes as long for an order of many pieces as for one that isn't there.
        """
        opening = self._plain.waiting.at(number, LONG_MAX, self.clock_ms)
        if opening is not None:
            order = self._known(number)
            if order is not None and not order.is_forgotten(self.clock_ms):
                opening = order.opening
        else:
            opening = self._opening_of(number)
        return None if opening is None else opening.tenant

    def _opening_of(self, number: str) -> Opened | None:
        order = self._known(number)
        return None if order is None else order.opening

    @abstractmethod
    def _known(self, number: str) -> Order | None:
        """Return an order, None if it is not known."""
