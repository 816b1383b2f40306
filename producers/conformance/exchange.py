"""What was written down of each request and its answer. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a client asked for."""

    START = "start"
    LEASE = "lease"
    UPLOAD = "upload"
    TIME = "time"
    ELSEWHERE = "elsewhere"  # where a redirect pointed
    OTHER = "other"


class Sent(NamedTuple):
    """A segment as it came."""

    order: str
    number: int
    start_ms: int
    end_ms: int
    is_last: bool

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by: its order and its number there."""
        return self.order, self.number


class Told(StrEnum):
    """What the answer told of a segment, to whoever reads it whole and by the contract."""

    NOTHING = "nothing"
    STORED = "stored"
    REFUSED = "refused"
    LATER = "later"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its answer. Seconds are of the server's monotonic clock.

    `told` is in the order of `segments`. `not_before_s` is when the client may come again, where
    the answer said so. `fault` is what the script did, "" where it did nothing. `wrong` says how
    the request broke the contract, "" where it didn't. `limit` is how many segments a request may
    have, where there were too many. `foreign_lease` are orders for which a lease was shown that
    wasn't theirs.
    """

    kind: Kind
    came_s: float
    segments: Sequence[Sent] = ()
    told: list[Told] = field(default_factory=list)
    answered_s: float | None = None
    status: int | None = None
    fault: str = ""
    wrong: str = ""
    token: str = ""
    idempotency_key: str = ""
    orders: frozenset[str] = frozenset()
    without_lease: frozenset[str] = frozenset()
    foreign_lease: frozenset[str] = frozenset()
    not_before_s: float | None = None
    limit: int | None = None
    report: bool = False
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[tuple[str, int]]:
        """Which segments it had."""
        return frozenset(each.key for each in self.segments)

    @property
    def has_settled(self) -> bool:
        """Whether the answer told for good of any segment."""
        return Told.STORED in self.told or Told.REFUSED in self.told

    def tell(self, told: Told) -> None:
        """Note that the answer says the same of every segment."""
        self.told = [told] * len(self.segments)


@dataclass(slots=True)
class Opened:
    """An order as the server knows it: when it began by the server's clock, and by the monotonic.

    `wanted_key` is the Idempotency-Key by which it was asked for.
    """

    order: str
    server_timestamp_ms: int
    opened_s: float
    wanted_key: str
    leases: list[str] = field(default_factory=list)
    leases_over: int = 0

    def new_lease(self) -> str:
        """Give one more lease, which holds besides those before."""
        self.leases.append(f"lease-of-{self.order}-{len(self.leases) + 1}")
        return self.leases[-1]

    def lease_problem(self, shown: str | None) -> str:
        """Return why a lease isn't taken, as a gateway's reason; "" where it is."""
        if not shown:
            return "LEASE_MISSING"
        if shown in self.leases:
            return "LEASE_EXPIRED" if self.leases.index(shown) < self.leases_over else ""
        return "LEASE_OF_ANOTHER" if shown.startswith("lease-of-") else "LEASE_INVALID"


@dataclass(slots=True)
class Log:
    """All that happened, in the order in which requests came.

    Each of `orders_wanted` is to run for `wanted_ms`. `exit_code` is the client's, None where it
    was not started here; a signal's is negative.
    """

    orders_wanted: int
    exchanges: list[Exchange] = field(default_factory=list)
    orders: dict[str, Opened] = field(default_factory=dict)
    step_ms: int = 0
    stepped_s: float | None = None
    exit_code: int | None = None
    wanted_ms: int = 0

    @property
    def uploads(self) -> list[Exchange]:
        """The uploads that could be read."""
        return [each for each in self.exchanges if each.kind is Kind.UPLOAD]

    def with_fault(self, *faults: str) -> list[Exchange]:
        """Return where the script did one of these."""
        return [each for each in self.exchanges if each.fault in faults]

    def next_with(self, after: Exchange, keys: Iterable[tuple[str, int]]) -> Exchange | None:
        """Return the next upload after one that has any of these segments."""
        wanted = frozenset(keys)
        at = self.exchanges.index(after)
        later = (each for each in self.exchanges[at + 1 :] if each.kind is Kind.UPLOAD)
        return next((each for each in later if wanted & each.keys), None)

    def again(self, after: Exchange) -> Exchange | None:
        """Return the next request for the same: segments, an order's start, or its lease."""
        if after.kind is Kind.UPLOAD:
            return self.next_with(after, after.keys)
        later = (each for each in self.later(after) if each.kind is after.kind)
        if after.kind is Kind.LEASE:
            return next((each for each in later if each.orders == after.orders), None)
        key = after.idempotency_key
        return next((each for each in later if not key or each.idempotency_key == key), None)

    def later(self, after: Exchange) -> list[Exchange]:
        """Return what came after one."""
        return self.exchanges[self.exchanges.index(after) + 1 :]

    def settled(self) -> dict[tuple[str, int], float]:
        """Return when the client was first told for good of each segment."""
        known: dict[tuple[str, int], float] = {}
        for each in self.exchanges:
            for segment, told in zip(each.segments, each.told, strict=False):
                if told in (Told.STORED, Told.REFUSED) and each.answered_s is not None:
                    known.setdefault(segment.key, each.answered_s)
        return known

    def is_done(self) -> bool:
        """Tell whether all orders have ended and the client knows of all that it is settled."""
        settled = self.settled()
        return len(self.orders_ended()) >= self.orders_wanted and all(
            (order, number) in settled
            for order, last in self.orders_ended().items()
            for number in range(1, last + 1)
        )

    def orders_ended(self) -> dict[str, int]:
        """Return the number of the last segment of each order that has one."""
        return {
            segment.order: segment.number
            for each in self.uploads
            for segment in each.segments
            if segment.is_last
        }
