"""Orders as the bytes of a checkpoint block, and back.

A block is a version byte and a zstd frame of MessagePack. Version 3 is a list of plain orders,
[[slot, the order's fields ...], ...]. Version 4 is [slots, rows, piece lists, orders]: the rows as
they lie in memory (little-endian), the slots that they belong in, the piece lists that they refer
to, and in the form of version 3 those orders that are no rows. Version 5 is a list as in version 3,
of one large order, and the whole entry is that order's own. The column table reads all versions;
the plain table has no rows to put one in. Version 6 is the openings that wait for their orders'
first segments; see `openings`. Fields that an older entry of the same version lacks stand at the
end: an order's opening, where that or one that waits was extended, and after a block's orders the
openings that its rows have. Versions 1 and 2 are 3
and 4 without what interim totals and gathered corrections need. They are read, and not written any
more: see `_bring_up_to_date` and `kernel.upgrade`.

Invariants are asserted before a state is written and after it is read. A block that can't be read
raises StateError: going on without it would forget money.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cramjam
import msgspec

from durabill.schemas.errors import REBUILD, START_ANEW, StateError
from durabill.stream_processors.core.intervals import IntervalSet
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import SETTLEMENTS_MAX, Order, Phase

PLAIN_VERSION = 3
COLUMNS_VERSION = 4
LARGE_VERSION = 5
OPENINGS_VERSION = 6
OLD_PLAIN_VERSION = 1
OLD_COLUMNS_VERSION = 2

ORDER_WEIGHT = 16
ROW_BYTES = 10
"""A plain order weighs as much and one for each piece; so many bytes of rows weigh one."""


class _OldOrderState(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    slot: int
    service_order_number: str
    source_partition: int
    time: list[tuple[int, int]]
    numbers: list[tuple[int, int]]
    end_number: int | None
    accepted: int
    length_sum_ms: int
    started_ms: int
    ended_ms: int
    phase: Phase
    deadline_ms: int
    source_offset: int
    revision: int
    digest: str
    forwarded: dict[int, int]


class _OrderState(_OldOrderState, array_like=True, forbid_unknown_fields=True):
    unbilled_since_ms: int
    settlements: int
    opening: tuple[int, int, int, str, str] | None = None
    extended_at: int = -1


class WaitingState(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An opening that waits in a place; its last fields are those of `core.opening.Opened`."""

    place: int
    number: str
    begin_ms: int
    accept_until_ms: int
    offset: int
    tenant: str
    client: str
    extended_at: int = -1


class RowOpenings(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The openings of rows, as `store` has them: slots, times and offsets, and whose they are."""

    slots: bytes
    terms: bytes
    owners: list[bytes]


class _Raw(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    slots: bytes
    rows: bytes
    lists: bytes


class _Columns(_Raw, array_like=True, forbid_unknown_fields=True):
    orders: list[_OrderState]
    openings: RowOpenings | None = None


class _OldColumns(_Raw, array_like=True, forbid_unknown_fields=True):
    orders: list[_OldOrderState]


class BlockContent(NamedTuple):
    """A decoded block: raw columns of its version, and the plain orders with their slots."""

    version: int
    slots: bytes
    rows: bytes
    lists: bytes
    orders: list[tuple[int, Order]]
    is_own: bool = False
    """Whether it is the entry of one large order."""

    openings: RowOpenings | None = None
    """The openings of the rows."""

    waiting: tuple[WaitingState, ...] = ()
    """The openings of an entry that has nothing else."""

    @property
    def is_old(self) -> bool:
        """Tell whether the rows are in the layout of the version before."""
        return self.version == OLD_COLUMNS_VERSION


_plain_decoders: dict[int, Any] = {
    PLAIN_VERSION: msgspec.msgpack.Decoder(list[_OrderState]),
    LARGE_VERSION: msgspec.msgpack.Decoder(list[_OrderState]),
    OLD_PLAIN_VERSION: msgspec.msgpack.Decoder(list[_OldOrderState]),
}
_waiting_decoder = msgspec.msgpack.Decoder(tuple[WaitingState, ...])
_columns_decoders: dict[int, Any] = {
    COLUMNS_VERSION: msgspec.msgpack.Decoder(_Columns),
    OLD_COLUMNS_VERSION: msgspec.msgpack.Decoder(_OldColumns),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An entry's content as of one moment, to be packed whenever, and in any thread.

    `weight` is about what taking it cost, in the unit of `effects.STEP_COST`.
    """

    version: int
    content: Any
    weight: int = 0

    def pack(self) -> bytes:
        """Return the block's bytes."""
        packed = cramjam.zstd.compress(msgspec.msgpack.encode(self.content), 1)
        return bytes([self.version]) + bytes(packed)


def plain_snapshot(
    orders: Iterable[tuple[int, Order]], frozen: Sequence[_OrderState] = ()
) -> Snapshot:
    """Return the content of a block that holds these (slot, order) pairs, and these states."""
    states = [*frozen, *(_state_of(slot, order) for slot, order in orders)]
    return Snapshot(PLAIN_VERSION, states, _weight(states))


def large_snapshot(slot: int, order: Order) -> Snapshot:
    """Return the content of the entry of one large order."""
    states = [_state_of(slot, order)]
    return Snapshot(LARGE_VERSION, states, _weight(states))


def openings_snapshot(states: list[WaitingState]) -> Snapshot:
    """Return the content of an entry of openings that wait."""
    return Snapshot(OPENINGS_VERSION, states, ORDER_WEIGHT * len(states))


def columns_snapshot(
    slots: Any,
    held: Any,
    lists: Any,
    orders: Iterable[tuple[int, Order]],
    frozen: Sequence[_OrderState] = (),
    openings: RowOpenings | None = None,
) -> Snapshot:
    """Return the content of a block of rows (numpy; slots int32) and of orders that are none."""
    states = [*frozen, *(_state_of(slot, order) for slot, order in orders)]
    columns = _Columns(slots.tobytes(), held.tobytes(), lists.tobytes(), states, openings)
    weight = (held.nbytes + lists.nbytes) // ROW_BYTES + _weight(states)
    return Snapshot(COLUMNS_VERSION, columns, weight)


def freeze(slot: int, order: Order) -> _OrderState:
    """Return an order's state as it is now, for a snapshot that is taken later."""
    return _state_of(slot, order)


def _weight(states: Iterable[_OrderState]) -> int:
    return sum(
        ORDER_WEIGHT + len(each.time) + len(each.numbers) + len(each.forwarded) for each in states
    )


def decode_block(block: bytes) -> BlockContent:
    """Return what an entry of any version holds; raise StateError if it can't be read."""
    version = block[0] if block else None
    try:
        if version in _plain_decoders:
            states = _plain_decoders[version].decode(bytes(cramjam.zstd.decompress(block[1:])))
            orders = [_order_of(state) for state in states]
            return BlockContent(version, b"", b"", b"", orders, version == LARGE_VERSION)
        if version in _columns_decoders:
            columns = _columns_decoders[version].decode(bytes(cramjam.zstd.decompress(block[1:])))
            orders = [_order_of(state) for state in columns.orders]
            found = getattr(columns, "openings", None)
            return BlockContent(
                version, columns.slots, columns.rows, columns.lists, orders, openings=found
            )
        if version == OPENINGS_VERSION:
            waiting = _waiting_decoder.decode(bytes(cramjam.zstd.decompress(block[1:])))
            return BlockContent(version, b"", b"", b"", [], waiting=waiting)
    except (cramjam.DecompressionError, msgspec.DecodeError) as error:
        raise StateError(f"a checkpoint block is damaged: {error}. {REBUILD}") from error
    raise StateError(
        f"a checkpoint block has format version {version}, this worker reads up to"
        f" {OPENINGS_VERSION}: run the version of Durabill that wrote it, or {START_ANEW}"
    )


def _state_of(slot: int, order: Order) -> _OrderState:
    order.check()
    fields = {name: getattr(order, name) for name in Order.__slots__}
    fields["time"] = list(order.time)
    fields["numbers"] = list(order.numbers)
    # What is packed beside the stream must not go on with it: the block would know of a copy
    # that it has not taken in, and the replay would pass it over.
    fields["forwarded"] = dict(order.forwarded)
    if order.opening is not None:
        *fields["opening"], fields["extended_at"] = order.opening
    return _OrderState(slot=slot, **fields)


def _order_of(state: _OldOrderState) -> tuple[int, Order]:
    fields = {name: getattr(state, name) for name in Order.__slots__ if hasattr(state, name)}
    order = Order(
        **{**fields, "time": IntervalSet(state.time), "numbers": IntervalSet(state.numbers)}
    )
    if not isinstance(state, _OrderState):
        _bring_up_to_date(order)
    elif state.opening is not None:
        order.opening = Opened(*state.opening, state.extended_at)
    order.check()
    return state.slot, order


def _bring_up_to_date(order: Order) -> None:
    """Fill in what an order of a block of version 1 or 2 doesn't say.

    Each of its revisions was a settlement. One that was reopened keeps the deadline that it has.
    Interim totals count from that deadline: that is later than they could, and depends on the
    block alone, so that every recovery from it comes to the same totals.
    """
    order.settlements = min(order.revision, SETTLEMENTS_MAX)
    order.unbilled_since_ms = order.deadline_ms
    if order.revision and order.phase is not Phase.SETTLED:
        order.phase = Phase.REOPENED
