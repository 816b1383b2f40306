"""What orders come to under one policy, and how that differs from what they come to under another.

A bill is what stands of an order in the end: the latest revision of each of its lives. An order
that has not settled by the end of the log is billed by its evidence so far, as RUNNING, under both
policies: else one that waits a little longer would look as if it were billed nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from durabill.schemas import Status, decode_total, total_revision
from durabill.stream_processors.core.what_if import DurationRules
from durabill.stream_processors.engine.table import Total


def percent(old_ms: int, new_ms: int) -> float | None:
    """Return the difference in per cent of the old, to four places; None where that is 0."""
    return round(100 * (new_ms - old_ms) / old_ms, 4) if old_ms else None


@dataclass(frozen=True, slots=True)
class Bill:
    """What an order comes to. `status` and `revision` are those of its last life."""

    billed_ms: int
    status: Status
    revision: int
    lives: int = 1


@dataclass(frozen=True, slots=True)
class Difference:
    """One order under two policies; None: it has no accepted record under that one."""

    service_order_number: str
    old: Bill | None
    new: Bill | None

    @property
    def old_ms(self) -> int:
        """Return what is billed under the recorded policy."""
        return self.old.billed_ms if self.old else 0

    @property
    def new_ms(self) -> int:
        """Return what would be billed under the other policy."""
        return self.new.billed_ms if self.new else 0

    @property
    def difference_ms(self) -> int:
        """Return by how much more would be billed."""
        return self.new_ms - self.old_ms

    @property
    def is_changed(self) -> bool:
        """Tell whether time, status or the number of lives differ."""
        return _gist(self.old) != _gist(self.new)

    @property
    def rank(self) -> tuple[int, bool, str]:
        """Return by what differences are sorted: the biggest first, changed ones before others."""
        return -abs(self.difference_ms), not self.is_changed, self.service_order_number

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, which are the columns of the CSV file too."""
        old, new = self.old, self.new
        return {
            "service_order_number": self.service_order_number,
            "old_ms": self.old_ms,
            "new_ms": self.new_ms,
            "difference_ms": self.difference_ms,
            "difference_percent": percent(self.old_ms, self.new_ms),
            "old_status": old.status.value if old else None,
            "new_status": new.status.value if new else None,
            "old_revision": old.revision if old else None,
            "new_revision": new.revision if new else None,
            "old_lives": old.lives if old else 0,
            "new_lives": new.lives if new else 0,
        }


COLUMNS = tuple(Difference("", None, None).as_json())


def _gist(bill: Bill | None) -> tuple[int, Status, int] | None:
    return (bill.billed_ms, bill.status, bill.lives) if bill else None


@dataclass(slots=True)
class _Standing:
    """An order's latest total, and what its earlier lives came to."""

    value: bytes
    is_running: bool = False
    earlier_ms: int = 0
    lives: int = 1


class Bills:
    """What the orders of one partition come to under one policy."""

    def __init__(self, rules: DurationRules) -> None:
        self.totals = 0
        self.rejected: Counter[str] = Counter()
        """Reason -> how many records were rejected."""
        self._rules = rules
        self._orders: dict[bytes, _Standing] = {}

    def add(self, totals: Iterable[Total]) -> None:
        """Take in totals as they were settled; those of one order by their revisions."""
        for key, value in totals:
            self.totals += 1
            self._put(key, value, is_running=False)

    def add_running(self, totals: Iterable[Total]) -> None:
        """Take in what the orders that have not settled come to so far."""
        for key, value in totals:
            self._put(key, value, is_running=True)

    def _put(self, key: bytes, value: bytes, *, is_running: bool) -> None:
        known = self._orders.get(key)
        if known is None:
            self._orders[key] = _Standing(value, is_running)
            return
        if total_revision(value) == 1:  # the number was used again: another life
            known.earlier_ms += self._billed_ms(known.value)
            known.lives += 1
        known.value, known.is_running = value, is_running

    def _billed_ms(self, value: bytes) -> int:
        return self._rules.billed_ms(decode_total(value).intervals)

    def keys(self) -> Iterable[bytes]:
        """Return the order numbers."""
        return self._orders.keys()

    def bill(self, key: bytes) -> Bill | None:
        """Return what an order comes to."""
        known = self._orders.get(key)
        if known is None:
            return None
        total = decode_total(known.value)
        billed_ms = known.earlier_ms + self._rules.billed_ms(total.intervals)
        # The status that a total has where it was asked for before its time was never given.
        status = Status.RUNNING if known.is_running else total.status
        revision = total.revision - 1 if known.is_running else total.revision
        return Bill(billed_ms, status, revision, known.lives)


def differences(old: Bills, new: Bills) -> Iterator[Difference]:
    """Yield each order that either has, in no particular sequence."""
    for key in dict.fromkeys(chain(old.keys(), new.keys())):
        yield Difference(key.decode(), old.bill(key), new.bill(key))


@dataclass(slots=True)
class StatusSums:
    """The orders that end with one status, and what they come to, before and after."""

    old_orders: int = 0
    old_ms: int = 0
    new_orders: int = 0
    new_ms: int = 0


@dataclass(slots=True)
class Summary:
    """What all orders come to under both policies."""

    orders: int = 0
    changed_orders: int = 0
    longer_orders: int = 0
    shorter_orders: int = 0
    old_ms: int = 0
    new_ms: int = 0
    old_totals: int = 0
    new_totals: int = 0
    by_status: dict[str, StatusSums] = field(
        default_factory=lambda: {each.value: StatusSums() for each in Status}
    )
    old_rejected: Counter[str] = field(default_factory=Counter)
    new_rejected: Counter[str] = field(default_factory=Counter)

    def count(self, difference: Difference) -> None:
        """Take in one order."""
        self.orders += 1
        self.changed_orders += difference.is_changed
        self.longer_orders += difference.difference_ms > 0
        self.shorter_orders += difference.difference_ms < 0
        self.old_ms += difference.old_ms
        self.new_ms += difference.new_ms
        if difference.old:
            sums = self.by_status[difference.old.status]
            sums.old_orders += 1
            sums.old_ms += difference.old_ms
        if difference.new:
            sums = self.by_status[difference.new.status]
            sums.new_orders += 1
            sums.new_ms += difference.new_ms

    def add(self, other: "Summary") -> None:
        """Add what other partitions come to."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for status, sums in other.by_status.items():
            own = self.by_status[status]
            for name in StatusSums.__slots__:
                setattr(own, name, getattr(own, name) + getattr(sums, name))
        self.old_rejected += other.old_rejected
        self.new_rejected += other.new_rejected

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "difference_ms": self.new_ms - self.old_ms,
            "difference_percent": percent(self.old_ms, self.new_ms),
            "by_status": {
                status: {name: getattr(sums, name) for name in StatusSums.__slots__}
                for status, sums in self.by_status.items()
            },
            "old_rejected": dict(sorted(self.old_rejected.items())),
            "new_rejected": dict(sorted(self.new_rejected.items())),
        }


_COUNTS = (
    *("orders", "changed_orders", "longer_orders", "shorter_orders"),
    *("old_ms", "new_ms", "old_totals", "new_totals"),
)
