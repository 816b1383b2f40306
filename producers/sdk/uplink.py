"""What all ways from a client to the server have in common: results, errors, pauses.

An uplink sends what it is given once, says of each segment whether the server has it, refused
it for good, or neither, and leaves retries to its caller. Every way is at-least-once: after a
timeout nobody knows whether a segment arrived, so it is sent again, and the stream processor
removes repeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: `first_s`, doubled each time up to `max_s`, with jitter.

    The jitter takes up to half of a pause away, by the dice: clients that failed together
    don't come back together.
    """

    first_s: float = 0.2
    max_s: float = 30.0

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
class Grant:
    """The server's go for a service: its order number, the server's time, how often to report.

    `stamps` are of the answer, where it has them: the server's timestamp may be of an earlier
    answer, which was lost. Raises ValueError (BadRecord, for the number) for what no server of sense would give.
    """

    service_order_number: str
    server_timestamp_ms: int
    report_interval_ms: int
    stamps: ServerStamps | None = None

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


@dataclass(slots=True)
class SendResult:
    """What became of the segments of one `send`, by their index in it.

    What is in neither `accepted` nor `refused` is to be sent again, after a pause where
    `problem` is given. `refused` are final; those that the server has, though they will not
    count, are among them, as WillNotCount. `failed` are orders by number which the server could
    not take now, though it answered: they may go on failing, and should hold no other order up.
    `stamps` are of any answer that came within the call: its caller learns the server's time.
    """

    accepted: list[int] = field(default_factory=list)
    refused: dict[int, UplinkRefused] = field(default_factory=dict)
    failed: dict[str, UplinkUnavailable] = field(default_factory=dict)
    problem: UplinkUnavailable | None = None
    stamps: ServerStamps | None = None


class Uplink(Protocol):
    """A way to the server. `send` is called by one thread, `start` and the time by any."""

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        """Ask for a new order, within `timeout_s`; raises UplinkUnavailable or UplinkRefused."""

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        """Ask for the server's time; raises as `start` does."""

    def send(self, segments: Sequence[SegmentEvent]) -> SendResult:
        """Send segments, of one or many orders, once; never raises for the server's doings."""

    def close(self) -> None:
        """Let go of connections."""
