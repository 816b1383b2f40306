"""The time that clients are told: it goes evenly, and says when it doesn't.

Theory: a client keeps the server's time as an interval, which it narrows with each answer. That is
sound only while the server's time is one even scale. What is known of the broker's time moves by
some ms with every acknowledgement, so this clock follows it slowly: it runs on the monotonic clock,
and is moved towards the broker's time by 100 ms in 1,000 s (100 ppm) at most, which a client allows
for like the drift of its own crystal. Where the two are further apart than half a second, the
broker's clock was set, or this machine slept: then it steps, and has another `clock_id`, by which
a client knows that nothing it has learned before holds any more. So it is after a restart.

What was told before the first acknowledgement was this machine's own time. So 10 ms more
than the acknowledgement took are a step then: else the scale would be slow or fast for up to 83
minutes, and bills with it.
"""

from collections.abc import Callable
from typing import NamedTuple

from durabill.producers.gateway.broker_clock import BrokerClock

SLEW_PPM = 100
STEP_MS = 500.0
FIRST_STEP_MS = 10.0
_ID_BYTES = 6


class Came(NamedTuple):
    """When a request came: by the server's time, on the scale of that name, and by our ticks."""

    stamp_ms: float
    clock_id: str
    tick_ms: float


class ServedClock:
    """The server's time for clients, in ms since the epoch. Belongs to one event loop."""

    def __init__(
        self,
        broker: BrokerClock,
        monotonic_ns: Callable[[], int],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._broker = broker
        self._monotonic_ns = monotonic_ns
        self._process = entropy(_ID_BYTES).hex()
        self._steps = 0
        self._is_learned = broker.is_known
        self._moved_ms = monotonic_ns() / 1_000_000
        self._ahead_ms = broker.now_ms() - self._moved_ms
        self.clock_id = f"{self._process}.0"

    def now_ms(self) -> int:
        """Return the time in whole ms."""
        return int(self.stamp_ms())

    def stamp_ms(self) -> float:
        """Return the time, exact to a microsecond."""
        tick_ns = self._monotonic_ns()
        tick_ms = tick_ns / 1_000_000
        wrong_ms = self._broker.at_ms(tick_ns // 1_000_000) - tick_ms - self._ahead_ms
        step_ms = STEP_MS
        if not self._is_learned and self._broker.is_known:
            self._is_learned, step_ms = True, FIRST_STEP_MS + (self._broker.error_ms() or 0)
        if abs(wrong_ms) > step_ms:
            self._ahead_ms += wrong_ms
            self._steps += 1
            self.clock_id = f"{self._process}.{self._steps}"
        else:
            most_ms = (tick_ms - self._moved_ms) * SLEW_PPM / 1_000_000
            self._ahead_ms += max(-most_ms, min(wrong_ms, most_ms))
        self._moved_ms = tick_ms
        return int((tick_ms + self._ahead_ms) * 1_000) / 1_000

    def came(self) -> Came:
        """Return the time at which a request comes."""
        stamp_ms = self.stamp_ms()
        return Came(stamp_ms, self.clock_id, self._moved_ms)

    def stamps(self, came: Came) -> tuple[float, float, str]:
        """Return when a request came and when its answer goes, on one scale, and the scale's id."""
        sent_ms = self.stamp_ms()
        if self.clock_id == came.clock_id:
            return came.stamp_ms, sent_ms, self.clock_id
        # The scale has stepped meanwhile: the time between the two is what is known.
        return round(sent_ms - (self._moved_ms - came.tick_ms), 3), sent_ms, self.clock_id
