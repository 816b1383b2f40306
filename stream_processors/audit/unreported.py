"""Orders that were opened and have no total since: nothing of them was billed. Pure.

A total comes at the latest when an order has been silent for the idle timeout, or has gone on for
the interim interval. So an order whose segments are no longer accepted, and that has none, was
never reported, or all of it was refused. One that may still be reported can also be under way.

Until when they are accepted is as of the opening. A renewed lease extends that, by a record of the
segments alone; where somebody can be asked for it, `accepted_until_ms` does so.

Openings and totals are fed partition by partition, the openings first; `settle` ends a partition.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import NamedTuple


class OpenedOrder(NamedTuple):
    """An order that was opened by the record at `source_offset` of its partition."""

    number: str
    tenant: str
    service: str
    server_timestamp_ms: int
    accept_until_ms: int
    source_offset: int


@dataclass(slots=True)
class OpenedGroup:
    """How many orders have no total, and how many of these will get none any more."""

    orders: int = 0
    never_reported: int = 0
    """Their segments are no longer accepted."""


@dataclass
class Unreported:
    """The orders without a total, of which `top` are told. `now_ms` is the wall clock's time."""

    top: int
    now_ms: int
    opened: int = 0
    """How many openings there are in all."""

    by_tenant: dict[str, OpenedGroup] = field(default_factory=dict)
    orders: list[OpenedOrder] = field(default_factory=list)
    """The first ones to look at: those that nobody reports any more, the oldest first."""

    accepted_until_ms: Callable[[OpenedOrder], int] = lambda opened: opened.accept_until_ms
    """Is asked for orders that are over by their openings."""

    _waiting: dict[str, list[OpenedOrder]] = field(default_factory=dict)

    def add_opening(self, opened: OpenedOrder) -> None:
        """Take in an opening; those of a number come in the order of their offsets."""
        self.opened += 1
        self._waiting.setdefault(opened.number, []).append(opened)

    def add_total(self, number: str, source_offset: int) -> None:
        """Take in a total: the last opening before the last record that it rests on has one."""
        waiting = self._waiting.get(number)
        if waiting is None:
            return
        before = [each for each in waiting if each.source_offset < source_offset]
        if before:
            waiting.remove(before[-1])
            if not waiting:
                del self._waiting[number]

    def settle(self) -> None:
        """Count what has no total: none of these orders comes any more."""
        for waiting in self._waiting.values():
            for each in waiting:
                self.count(each)
        self._waiting.clear()

    def count(self, opened: OpenedOrder) -> None:
        """Count an order that has no total."""
        if self.is_over(opened):
            opened = opened._replace(accept_until_ms=self.accepted_until_ms(opened))
        group = self.by_tenant.setdefault(opened.tenant, OpenedGroup())
        group.orders += 1
        group.never_reported += self.is_over(opened)
        self.orders.append(opened)
        if len(self.orders) >= 2 * self.top + 1_000:
            self.cut()

    def cut(self) -> None:
        """Keep those to look at first."""
        self.orders = nsmallest(
            self.top,
            self.orders,
            key=lambda each: (not self.is_over(each), each.server_timestamp_ms, each.number),
        )

    def is_over(self, opened: OpenedOrder) -> bool:
        """Tell whether an order's segments are no longer accepted."""
        return self.now_ms > opened.accept_until_ms

    @property
    def all_orders(self) -> OpenedGroup:
        """Return all tenants together."""
        groups = self.by_tenant.values()
        return OpenedGroup(
            sum(each.orders for each in groups), sum(each.never_reported for each in groups)
        )
