"""What all ways from a client to the server have in common: results, errors, pauses.

An uplink sends what it is given once, says of each segment whether the server has it, refused
it for good, or neither, and leaves retries to its caller. Every way is at-least-once: after a
timeout nobody knows whether a segment arrived, so it is sent again, and the stream processor
removes repeats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS, ServerStamps
from durabill.producers.sdk.session import ProducerError
from durabill.schemas import SegmentEvent, check_order_number
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

WISH_MAX_S = 86_400.0
"""The longest pause that a server may ask for: whoever asks for more gets a day."""


class UplinkError(ProducerError):
    """The server could not be asked, or said no."""


class UplinkUnavailable(UplinkError):
    """No answer, or one that says "later". `retry_after_s` is the server's wish, if it had one."""

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class OrderFailed(UplinkUnavailable):
    """An answer that may be about this one order: neither a refusal nor "later"."""


class UplinkRefused(UplinkError):
    """The server understood the request and will never take it: `reason` and `detail` say why.

    Its words are cut, to 100 and 500 characters: they are kept on disk.
    """

    def __init__(self, reason: str, detail: str) -> None:
        reason, detail = reason[:100], detail[:500]
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class WillNotCount(UplinkRefused):
    """The server has stored the segment and knows already that it will be a dead letter."""


class AtRisk(ProducerError):
    """Segments that wait will be too late for the server soon: `deadline_ms`, in its time.

    They can still be saved: get the client to its server. `pending` of the order are meant.
    """

    def __init__(self, service_order_number: str, pending: int, deadline_ms: int) -> None:
        said = f"{pending} segments that wait will be too late from server time {deadline_ms} ms on"
        super().__init__(f"order {service_order_number!r}: {said}")
        self.service_order_number = service_order_number
        self.pending = pending
        self.deadline_ms = deadline_ms


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: `first_s`, doubled each time up to `max_s`, with jitter.

    The jitter takes up to half of a pause away, by the dice: clients that failed together
    don't come back together. In an outage their next tries are spread over `spread_s` (see
    `pace`), which is the report interval unless given.
    """

    first_s: float = 0.2
    max_s: float = 30.0
    spread_s: float | None = None

    def pause_s(self, failures: int, dice: float, wish_s: float | None = None) -> float:
        """Return the pause after so many failures in a row (from 1); 0 <= dice < 1.

        A server's wish is never undercut (up to WISH_MAX_S), and comes with a jitter on top: up
        to half of it, or a pause as without it where that is longer, but `max_s` at most.
        """
        assert failures >= 1
        assert 0.0 <= dice < 1.0
        full_s: float = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, 32))
        if wish_s is None:
            return full_s * (1.0 - dice / 2)
        wish_s = min(max(wish_s, 0.0), WISH_MAX_S)
        return wish_s + dice * min(self.max_s, max(full_s, wish_s / 2))


@dataclass(frozen=True, slots=True)
class OrderTerms:
    """What the server has granted an order, in its time; None where it says nothing.

    Uploads show the `lease`, which can be renewed. Segments that arrive by `accept_until_ms` are
    not too late, however old, nor are those that are no older than `correction_window_ms`.
    """

    lease: str = field(default="", repr=False)
    lease_expires_ms: int | None = None
    accept_until_ms: int | None = None
    correction_window_ms: int | None = None
    renew_from_ms: int | None = None

    def deadline_ms(self, end_ms: int) -> int | None:
        """Return until when a segment that ended then may arrive; None where nobody has said."""
        late_ms = None if self.correction_window_ms is None else end_ms + self.correction_window_ms
        given = [each for each in (late_ms, self.accept_until_ms) if each is not None]
        return max(given, default=None)


def with_renewal(terms: OrderTerms, now_ms: int) -> OrderTerms:
    """Return the terms with the instant from which their lease is to be renewed.

    That is the second half of its life: so whoever goes offline has half of it left, at least.
    `now_ms` is the server's time when it gave the lease.
    """
    if terms.lease_expires_ms is None:
        return terms
    return replace(terms, renew_from_ms=now_ms + (terms.lease_expires_ms - now_ms) // 2)


@dataclass(frozen=True, slots=True)
class Grant:
    """The server's go for a service: its order number, the server's time, how often to report.

    `stamps` are of the answer, where it has them: the server's timestamp may be of an earlier
    answer, which was lost. Raises ValueError (BadRecord, for the number) for what no server of
    sense would give.
    """

    service_order_number: str
    server_timestamp_ms: int
    report_interval_ms: int
    terms: OrderTerms = OrderTerms()
    stamps: ServerStamps | None = None

    @property
    def off_ms(self) -> float:
        """How far the go lies from when the server says that it answered; 0 where it doesn't."""
        return 0.0 if self.stamps is None else self.server_timestamp_ms - self.stamps.sent_ms

    def __post_init__(self) -> None:
        check_order_number(self.service_order_number)
        check_timestamp(self.server_timestamp_ms)
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")


def check_timestamp(server_timestamp_ms: int) -> None:
    """Raise ValueError for a server's time that is none: before 1970, or after the year 9999."""
    if not 0 <= server_timestamp_ms <= TIMESTAMP_MAX_MS:
        allowed = f"0 to {TIMESTAMP_MAX_MS} allowed"
        raise ValueError(f"server_timestamp_ms is {server_timestamp_ms}, {allowed}")


@dataclass(frozen=True, slots=True)
class ClientReport:
    """How a client stands, in the words of the contract: it travels along with uploads.

    `oldest_ms` is for how long the oldest of the `pending` segments has waited.
    """

    name: str
    pending: int
    oldest_ms: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    clock_bound_ms: int | None = None
    suspends: int = 0


@dataclass(slots=True)
class SendResult:
    """What became of the segments of one `send`, by their index in it.

    What is in neither `accepted` nor `refused` is to be sent again, after a pause where
    `problem` is given. `refused` are final; those that the server has, though they will not
    count, are among them, as WillNotCount. `failed` are orders by number which the server could
    not take now, though it answered: they may go on failing, and should hold no other order up.
    `stale_leases` are orders whose lease is to be renewed before they are sent again. `stamps` are
    of any answer that came within the call: its caller learns the server's time from them.
    """

    accepted: list[int] = field(default_factory=list)
    refused: dict[int, UplinkRefused] = field(default_factory=dict)
    failed: dict[str, UplinkUnavailable] = field(default_factory=dict)
    problem: UplinkUnavailable | None = None
    receipt: str | None = None
    accept_until_ms: dict[str, int] = field(default_factory=dict)
    stale_leases: set[str] = field(default_factory=set)
    stamps: ServerStamps | None = None

    def add(self, part: "SendResult") -> None:
        """Take what became of a part of the segments into this; receipts are of parts alone."""
        self.accepted += part.accepted
        self.refused |= part.refused
        self.failed |= part.failed
        self.problem = part.problem or self.problem
        self.accept_until_ms |= part.accept_until_ms
        self.stale_leases |= part.stale_leases
        self.stamps = part.stamps or self.stamps


@dataclass(frozen=True, slots=True)
class SendNotes:
    """What goes along with segments: leases by order, the client's report.

    `settled` is told of each request's result as it comes, if one `send` makes several.
    """

    leases: Mapping[str, str] = field(default_factory=dict, repr=False)
    report: ClientReport | None = None
    settled: Callable[[SendResult], None] | None = None


NO_NOTES = SendNotes()


@runtime_checkable
class Renewing(Protocol):
    """An uplink whose server gives leases."""

    def renew(
        self, service_order_number: str, lease: str, *, timeout_s: float | None = None
    ) -> OrderTerms:
        """Ask for an order's lease anew; raises as `Uplink.start` does."""


@runtime_checkable
class KnowingTotals(Protocol):
    """An uplink whose server knows whether an order's total is out."""

    def total_is_out(self, service_order_number: str, *, timeout_s: float | None = None) -> bool:
        """Tell whether it is; raises as `Uplink.start` does."""


@runtime_checkable
class StartingOnce(Protocol):
    """An uplink that can ask for one and the same order again."""

    def start_once(
        self, key: str, service_order_number: str | None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask as `Uplink.start` does; with the same `key` it is the same order."""


class Uplink(Protocol):
    """A way to the server. `send` is called by one thread, `start` and the time by any."""

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask for a new order, within `timeout_s`; raises UplinkUnavailable or UplinkRefused."""

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask for the server's time; raises as `start` does."""

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        """Send segments, of one or many orders, once; never raises for the server's doings."""

    def close(self) -> None:
        """Let go of connections."""
