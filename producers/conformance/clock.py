"""The clock of the gateway that is played: it can step, and says so by its id. Pure."""

import math
from collections.abc import Callable
from email.utils import formatdate

from durabill.producers.conformance.answers import Answer, problem
from durabill.producers.conformance.exchange import Exchange, Log

WISH_S = 1
STEP_MS = 3_600_000


class PlayedClock:
    """`monotonic_s` measures waits, `wall_ms` is what the server takes for the time.

    It is `wall_ms` that the Date of each answer tells.
    """

    def __init__(
        self, log: Log, *, monotonic_s: Callable[[], float], wall_ms: Callable[[], float]
    ) -> None:
        self._log = log
        self._wall_ms = wall_ms
        self._id = 1
        self.monotonic_s = monotonic_s

    def now_ms(self) -> float:
        """Return the server's time, steps included."""
        return self._wall_ms() + self._log.step_ms

    def stamps(self, exchange: Exchange) -> dict[str, object]:
        """Return when a request came and when its answer leaves, and the clock's id."""
        now_ms = round(self.now_ms(), 3)
        held_ms = (self.monotonic_s() - exchange.came_s) * 1000
        return {
            "received_ms": round(now_ms - held_ms, 3),
            "sent_ms": now_ms,
            "clock_id": f"clock-{self._id}",
        }

    def step(self) -> None:
        """Set the clock an hour ahead."""
        self._log.step_ms += STEP_MS
        self._log.stepped_s = self.monotonic_s()
        self._id += 1

    def busy(self, exchange: Exchange) -> Answer:
        """Return the answer that asks to come later, and note until when. Dates never step."""
        now_s, wall_s = self.monotonic_s(), self._wall_ms() / 1000
        wish, status = str(WISH_S), 503
        exchange.not_before_s = now_s + WISH_S
        if exchange.fault == "busy_date":
            at_s = math.ceil(wall_s) + WISH_S
            exchange.not_before_s = now_s + at_s - wall_s
            wish = formatdate(at_s, usegmt=True)
        more = {}
        if exchange.fault == "limited":
            status, more = 429, {"ratelimit": f'"conformance";r=0;t={WISH_S}'}
        return problem(status, "CONFORMANCE", "come again later", retry_after=wish, **more)
