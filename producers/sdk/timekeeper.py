"""The time of a client: its local clocks, its machine's sleep, what servers say. Thread-safe."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.server_clock import DRIFT_PPM, ServerClock, ServerStamps, Step
from durabill.producers.sdk.session import ProducerError
from durabill.producers.sdk.suspends import Clocks, SuspendMeter, SuspendPolicy, system_clocks

SLEPT_ERROR_US = 1_000_000
"""What a clock may be wrong by after a suspend: some machines' clocks know whole seconds then."""
SETTLE_US = 60_000_000
"""How long a client waits after a suspend for a server that tells how long it really was."""
FRESH_BOUND_US = 1_000_000
"""Whoever knows the time worse than this should ask, if nobody has lately."""
ASK_PAUSE_US = 30_000_000
ABSENT_US = 60_000_000
"""Who looks every second and then sees that so much time is gone was stopped, or the clock has
jumped. A server knows which."""
_SHAKEN_MAX = 64
_ROUNDED_MS = 4  # every part of a reading is cut to whole ms


@dataclass(frozen=True, slots=True)
class _Sleep:
    """A suspend whose length no server has confirmed: it may be wrong by `error_us`."""

    noticed_us: int
    error_us: int
    ran_us: int  # between the last look before it and the first one after it, without the suspend
    offset_us: int  # of the server at that last look, and how far it may be off
    bound_us: int


class ClockNotice(ProducerError):
    """What a client is told about its clock: nothing failed, but a bill may depend on it."""


class ClockStepped(ClockNotice):
    """The server's time was set against the local clock by `by_ms`; what skipped it, nobody saw."""

    def __init__(self, by_ms: int) -> None:
        super().__init__(f"the server's time has moved by {by_ms} ms against the local clock")
        self.by_ms = by_ms


class ClockSetBack(ClockNotice):
    """The local clock, which must not, went backwards by `by_ms`."""

    def __init__(self, by_ms: int) -> None:
        super().__init__(f"the local clock went backwards by {by_ms} ms")
        self.by_ms = by_ms


class MachineSlept(ClockNotice):
    """The machine was suspended for `for_ms`, which the policy counts or leaves out."""

    def __init__(self, for_ms: int, policy: SuspendPolicy) -> None:
        done = "are counted" if policy is SuspendPolicy.COUNT else "are not counted"
        super().__init__(f"the machine was suspended: {for_ms} ms {done}")
        self.for_ms = for_ms


class Timekeeper:
    """The server's time for all services of a client.

    `clock` is the local clock in ns, or a pair; by default the system's. `tell` is told of each
    ClockNotice, by the thread that came upon it, after this object's lock is free. `absent_us`:
    after so long without a look it waits for a server, as after a suspend; None where nobody
    looks regularly. Raises ValueError for a policy or a drift that can't be meant.
    """

    def __init__(
        self,
        clock: Callable[[], int] | Clocks | None = None,
        *,
        suspends: SuspendPolicy | str = SuspendPolicy.EXCLUDE,
        drift_ppm: int = DRIFT_PPM,
        absent_us: int | None = None,
        tell: Callable[[ClockNotice], None] = lambda _: None,
    ) -> None:
        self._policy = SuspendPolicy(suspends)
        self._drift_ppm = drift_ppm
        self._tell = tell
        self._mutex = threading.Lock()
        self._meter = SuspendMeter(_clocks_of(clock))
        self._raw_us = self._latest_us = self._meter.look()[0]
        self._clock = ServerClock(self._latest_us, drift_ppm=drift_ppm)
        self._absent_us = absent_us
        self._back_us: int | None = None  # when it came back from an absence
        self._gone_us = self._gone_until_us = 0  # absences, by a clock that may have jumped
        self._shaken_us = deque[int](maxlen=_SHAKEN_MAX)  # when it was found to have slept, or so
        self._sleep: _Sleep | None = None
        self._paused_us = self._slept_doubt_us = 0
        self._asked_us: int | None = None
        self._notices: list[ClockNotice] = []

    @property
    def is_known(self) -> bool:
        """Whether a server has said its time."""
        return self._clock.is_known

    def tick_us(self) -> int:
        """Return the local clock: take it right before a request, for `learn`."""
        with self._mutex:
            local_us = self._look()
        self._tell_all()
        return local_us

    def learn(self, asked_us: int, stamps: ServerStamps | None) -> None:
        """Take in an answer that has just come; `asked_us` was the tick before its request.

        Between the two there may be more than one exchange: it only makes the bound wider.
        """
        with self._mutex:
            local_us = self._look()
            if stamps is not None:
                unsure_us = SLEPT_ERROR_US * sum(asked_us < each for each in self._shaken_us)
                self._note_step(self._clock.learn(asked_us, local_us, stamps, unsure_us=unsure_us))
                if self._clock.heard_us == local_us and asked_us >= self._gone_until_us:
                    self._gone_us = 0
                if self._back_us is not None and asked_us >= self._back_us:
                    self._back_us = None
                if self._sleep is not None and asked_us >= self._sleep.noticed_us:
                    self._settle(self._sleep, local_us)
        self._tell_all()

    def read(self) -> Reading:
        """Return the server's time now, and what has happened to it."""
        with self._mutex:
            local_us = self._look()
            now_us, bound_us = self._at(local_us)
            counts = self._policy is SuspendPolicy.COUNT
            reading = Reading(
                local_ms=local_us // 1_000,
                now_ms=now_us // 1_000,
                bound_ms=bound_us // 1_000 + _ROUNDED_MS,
                doubt_ms=(self._clock.doubt_us + self._slept_doubt_us) // 1_000,
                jumped_ms=self._clock.jumped_us // 1_000,
                paused_ms=self._paused_us // 1_000,
                skipped_ms=0 if counts else self._clock.skipped_us // 1_000,
                unsettled_ms=self._unsettled_ms(),
                suspends=self._meter.count,
                drift_ppm=self._drift_ppm,
                swapped_ms=self._clock.swapped_us // 1_000,
                swap_max_ms=self._clock.swap_max_us // 1_000,
            )
        self._tell_all()
        return reading

    def bound_ms(self) -> int | None:
        """Return how far the time may be off now; None before a server was heard."""
        return self.read().bound_ms if self.is_known else None

    def should_ask(self) -> bool:
        """Tell whether to ask a server for its time now, not too often: it is known badly."""
        with self._mutex:
            local_us = self._look()
            waits = self._unsettled_ms() > 0
            pause_us = ASK_PAUSE_US // 10 if waits else ASK_PAUSE_US
            if self._asked_us is not None and local_us < self._asked_us + pause_us:
                return False
            bound_us = self._at(local_us)[1]
            if self.is_known and not waits and bound_us < FRESH_BOUND_US:
                return False
            self._asked_us = local_us
        return True

    def _look(self) -> int:
        before_us = self._latest_us
        raw_us, slept_us = self._meter.look()
        if raw_us < self._raw_us:
            self._notices.append(ClockSetBack((self._raw_us - raw_us) // 1_000))
            self._shake(self._latest_us + 1)  # nobody knows how long ago the last look was
        else:
            self._latest_us += raw_us - self._raw_us
        self._raw_us = raw_us
        if self._absent_us is not None and self._latest_us - before_us > self._absent_us:
            self._back_us = self._latest_us
            if (gone_us := self._latest_us - before_us - slept_us) > self._absent_us:
                self._gone_us, self._gone_until_us = self._gone_us + gone_us, self._latest_us
        if self._back_us is not None and self._latest_us - self._back_us > SETTLE_US:
            self._back_us = None
        if slept_us:
            self._notices.append(MachineSlept(slept_us // 1_000, self._policy))
            if self._policy is SuspendPolicy.EXCLUDE:
                self._note_sleep(before_us, slept_us)
            self._shake(self._latest_us)
        if self._sleep is not None and self._latest_us - self._sleep.noticed_us > SETTLE_US:
            self._slept_doubt_us += self._sleep.error_us
            self._sleep = None
        return self._latest_us

    def _shake(self, local_us: int) -> None:
        """Trust what is known, and what has been asked, less: the clock may have lost a second."""
        self._clock.loosen(SLEPT_ERROR_US)
        self._shaken_us.append(local_us)

    def _at(self, local_us: int) -> tuple[int, int]:
        """Return the server's time and its bound; an absence that no server confirmed is in it."""
        now_us, bound_us = self._clock.at(local_us)
        return now_us, bound_us + (self._gone_us if self._clock.is_known else 0)

    def _unsettled_ms(self) -> int:
        if self._sleep is not None:
            return self._sleep.error_us // 1_000 + 1
        return 1 if self._back_us is not None and self.is_known else 0

    def _note_sleep(self, before_us: int, slept_us: int) -> None:
        error_us = SLEPT_ERROR_US + self._drifted_us(slept_us)
        ran_us = self._latest_us - before_us - slept_us
        now_us, bound_us = self._at(before_us)
        offset_us = now_us - before_us
        if (last := self._sleep) is not None:  # it slept again before a server was heard
            error_us += last.error_us
            ran_us += last.ran_us + before_us - last.noticed_us
            offset_us, bound_us = last.offset_us, last.bound_us
        self._paused_us += slept_us
        self._sleep = _Sleep(self._latest_us, error_us, ran_us, offset_us, bound_us)

    def _drifted_us(self, local_us: int) -> int:
        return local_us * self._drift_ppm // (1_000_000 - self._drift_ppm) + 1

    def _settle(self, sleep: _Sleep, local_us: int) -> None:
        """Set right how long the machine slept: by what a server says before and after it."""
        self._sleep = None
        now_us, bound_us = self._at(local_us)
        wrong_us = now_us - local_us - sleep.offset_us
        is_step = abs(wrong_us) > sleep.error_us + sleep.bound_us + bound_us  # which is told
        ran_us = sleep.ran_us + local_us - sleep.noticed_us
        error_us = sleep.bound_us + bound_us + self._drifted_us(ran_us)
        if is_step or error_us >= sleep.error_us:  # the clocks of this machine know better
            self._slept_doubt_us += sleep.error_us
            return
        self._paused_us += wrong_us
        self._slept_doubt_us += error_us

    def _note_step(self, step: Step | None) -> None:
        if step is not None and step.was_known:
            self._notices.append(ClockStepped(step.by_us // 1_000))

    def _tell_all(self) -> None:
        while self._notices:
            try:
                notice = self._notices.pop(0)
            except IndexError:  # another thread tells it
                return
            self._tell(notice)


def _clocks_of(clock: Callable[[], int] | Clocks | None) -> Clocks:
    if clock is None:
        return system_clocks()
    return clock if isinstance(clock, Clocks) else Clocks(clock)
