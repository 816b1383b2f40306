"""A running service, cut into segments of business data. Pure: the clock's readings are arguments.

The server says once when the service began (`server_timestamp_ms`): there the first segment
starts. From then on segments are cut on the server's time as the client knows it (`server_clock`),
so a wall clock that is wrong, or a crystal that is fast for a month, bills the right time.

Time sequences are half-open, [start_ms, end_ms), and follow one another without a gap: where one
ends the next one starts, whatever the instants at which the caller asked. A better estimate of the
server's time moves the next end alone; where it lies before the last end, nothing is due until time
has come there. Gaps are left where time isn't to be counted: suspends, by the policy, steps of the
server's time, and a meter that was dead (`Session.resume`).

What was billed is off by at most `SessionState.clock_bound_ms`, whether the service is taken to
have begun when the server said go or when its answer arrived: that is what was said at the start,
and at the end, and what happened to the clock in between.

A report is not a loss when it can't be kept: `restore` the state from before it, and the next
report covers its time.
"""

from dataclasses import dataclass, replace

from durabill.producers.sdk.own_time import OwnTime
from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.server_clock import APART_US
from durabill.schemas import SegmentEvent, check_order_number
from durabill.schemas.errors import DurabillError
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

GAP_MAX_MS = 366 * SEGMENT_LENGTH_MAX_MS
"""The longest time without a meter that `Session.resume` counts: a year."""

_UNSETTLED_RETRY_MS = 1_000


class ProducerError(DurabillError):
    """Root of the errors of all that produces segments: SDK, gateway, fleet.

    ProducerError
    ├── ClockWentBackwards   the readings of a clock come in the wrong order: the caller's fault
    ├── ClockNotice          timekeeper.py: told alone, never raised
    │   ├── ClockStepped         the server's time and the local clock fit together no more
    │   ├── ClockSetBack         the local clock went backwards; it is taken to have stood still
    │   └── MachineSlept         the machine was suspended
    ├── SpoolError           spool.py
    │   ├── SpoolFull        the limit or the disk; nothing was stored, nothing was lost
    │   ├── ReceiptsDropped  spool_errors.py: proofs had to go for want of room; told alone
    │   ├── SpoolBusy        another process holds the file
    │   └── SpoolBroken      the file is no spool, or its disk fails
    │       ├── SpoolDamaged     it was one: put aside, and metering goes on in a new one
    │       └── SpoolUnsynced    spool_errors.py: what was written last may be gone
    ├── AtRisk               uplink.py: segments that wait will be too late soon
    ├── ClientStopped        client.py: closed, or a thread of it has died; make a new one
    ├── UplinkError          uplink.py
    │   ├── UplinkUnavailable    no answer, or "later": worth a retry
    │   │   └── OrderFailed      an answer that may be about one order alone
    │   └── UplinkRefused        the request is wrong: a retry would not help
    │       └── WillNotCount     stored, but it will be a dead letter
    ├── GatewayFailed        gateway/server.py: its Kafka client is beyond repair; start it again
    └── FleetError           fleet/publish.py: the simulated fleet's records did not all arrive
    """


class ClockWentBackwards(ProducerError):
    """The local clock showed less than before."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """What has to outlive a crash to carry a service on. Times are server time in ms.

    `next_number` is the business data number of the next segment (from 1), `reported_until_ms`
    the end of the last one, or the service's start. `clock_bound_ms` is by how much the time
    reported so far may be wrong, `suspends` how often the machine slept meanwhile, and
    `excluded_ms` how much time was left out for that, and for steps of the server's time (less
    than 0 after steps back). Raises BadRecord for an illegal order number and ValueError for the
    rest.
    """

    service_order_number: str
    report_interval_ms: int
    next_number: int
    reported_until_ms: int
    ended: bool
    clock_bound_ms: int = 0
    suspends: int = 0
    excluded_ms: int = 0

    def __post_init__(self) -> None:
        check_order_number(self.service_order_number)
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")
        counts = (self.reported_until_ms, self.clock_bound_ms, self.suspends)
        if self.next_number < 1 or min(counts) < 0:
            raise ValueError(f"{self} is no state of a session")


class Session:
    """One service from the server's go to its end. Not safe for several threads at once.

    `reading` is the client's time when the server's answer had arrived; all later ones are of the
    same clock. `asked` is what it was before the server was asked, if it was: what happened to the
    clock meanwhile is in doubt, too. `unsure_ms` is how far the clock of the server's timestamp may
    be from those that were heard. `own_time` is for a server's time that the caller gave: it is
    taken to be that of `reading`, and steps of the client's time don't move it. Raises BadRecord or
    ValueError as `SessionState` does.
    """

    def __init__(
        self,
        service_order_number: str,
        server_timestamp_ms: int,
        report_interval_ms: int,
        reading: Reading,
        *,
        asked: Reading | None = None,
        unsure_ms: int = 0,
        own_time: bool = False,
    ) -> None:
        self._own = OwnTime(server_timestamp_ms, reading) if own_time else None
        way_ms = abs(self._time_ms(reading) - server_timestamp_ms) + unsure_ms
        if asked is not None:
            way_ms += reading.doubt_since(asked) + asked.unsettled_ms
        self._begin(
            SessionState(
                service_order_number,
                report_interval_ms,
                1,
                server_timestamp_ms,
                ended=False,
                clock_bound_ms=way_ms + 2 * reading.bound_ms,
            ),
            reading,
            way_ms + reading.bound_ms,
        )

    @classmethod
    def resume(
        cls,
        state: SessionState,
        reading: Reading,
        *,
        count_gap: bool = False,
        server_timestamp_ms: int | None = None,
    ) -> "Session":
        """Carry on a service after the client's process died, from its saved state.

        No local clock can be compared across a reboot, so `reading` has to be of a clock that has
        asked the server anew; or the caller says what the server's time is at `reading`.

        `count_gap` is about the time from the last saved report until now. False, the default:
        nobody can prove that the service ran, so it isn't counted; the next segment starts now.
        (Numbers go on without a hole, so the order can still be COMPLETE.) True: the caller
        knows that the service itself went on while its meter was dead, and answers for it; the
        next segment starts where the last one ended. The gap is off by at most the bounds of before
        and of now, and by how far two servers may be apart: `clock_bound_ms` says all of it.

        Where the server's time lies before what was reported already, the next segment starts at
        what was reported: nothing is counted twice, and `clock_bound_ms` says what may be missing.
        Raises ValueError if the session has ended, and for a gap of over a year that is to count.
        """
        if state.ended:
            raise ValueError(f"order {state.service_order_number!r} has ended")
        own_time = server_timestamp_ms is not None
        at_ms = server_timestamp_ms if server_timestamp_ms is not None else reading.now_ms
        number = state.service_order_number
        session = cls(number, at_ms, state.report_interval_ms, reading, own_time=own_time)
        gap_ms = at_ms - state.reported_until_ms
        if count_gap and gap_ms > GAP_MAX_MS:
            said = f"{gap_ms} ms since the last report, at most a year counts"
            raise ValueError(f"order {number!r}: {said}")
        if session._own is not None and gap_ms < 0:
            session._own, gap_ms = OwnTime(state.reported_until_ms, reading), 0
        unsure_ms = state.clock_bound_ms + (APART_US // 1_000 if count_gap else reading.bound_ms)
        unsure_ms += max(-gap_ms, 0)  # a time that was told then, or is now, was wrong by so much
        if not count_gap:
            state = replace(state, reported_until_ms=max(at_ms, state.reported_until_ms))
        state = replace(state, clock_bound_ms=unsure_ms + reading.bound_ms)
        session._begin(state, reading, unsure_ms)
        return session

    def _begin(self, state: SessionState, reading: Reading, unsure_ms: int) -> None:
        self._state, self._first, self._latest = state, reading, reading
        self._unsure_ms = unsure_ms + reading.unsettled_ms  # before this reading
        self._excluded_before_ms = self._excluded_ms(reading) - state.excluded_ms
        self._slept_before = reading.suspends - state.suspends

    @property
    def state(self) -> SessionState:
        """The state as of the last report: save it together with that report's segments."""
        return self._state

    def restore(self, state: SessionState) -> None:
        """Take back reports that could not be kept: `state` is this session's, from before."""
        assert state.service_order_number == self._state.service_order_number
        assert state.next_number <= self._state.next_number
        assert state.reported_until_ms <= self._state.reported_until_ms
        self._state = state

    @property
    def waits(self) -> bool:
        """Whether the last look found that it isn't settled how long the machine slept."""
        return self._latest.unsettled_ms > 0

    def due_at(self, reading: Reading | None = None) -> int:
        """Return the `now_ms` of a reading from which `report` has something to give.

        As of `reading`, or of the last look: a step of the time since then would be missed.
        """
        reading = self._latest if reading is None else reading
        if reading.unsettled_ms:
            return reading.now_ms + _UNSETTLED_RETRY_MS
        due_ms = self._start_ms(reading) + self._state.report_interval_ms
        return due_ms - self._time_ms(reading) + reading.now_ms

    def bound_ms(self, reading: Reading) -> int:
        """Return how far the time billed may be off if the session ended at `reading`."""
        # What was cut by a worse estimate stands, though it may lie ahead by now.
        ahead_ms = max(self._state.reported_until_ms - self._time_ms(reading), 0)
        unsure_ms = self._unsure_ms + reading.doubt_since(self._first) + reading.unsettled_ms
        return unsure_ms + reading.bound_ms + ahead_ms

    def report(self, reading: Reading) -> list[SegmentEvent]:
        """Return the segments that are due: whole intervals only, an empty list before `due_at`.

        Nor is anything due while it isn't settled how long the machine slept.
        A process that slept over several intervals gets one segment for all of them, cut only
        where it would be longer than 24 h: as true as many small ones, and it can't flood the
        way. Raises ClockWentBackwards; ValueError after the end.
        """
        start_ms = self._look(reading)
        if reading.unsettled_ms:
            return []
        elapsed_ms = max(self._time_ms(reading) - start_ms, 0)
        elapsed_ms -= elapsed_ms % self._state.report_interval_ms
        return self._cut(start_ms, start_ms + elapsed_ms, reading) if elapsed_ms else []

    def end(self, reading: Reading) -> list[SegmentEvent]:
        """Return the rest, with the end identifier on the last segment, and end the session.

        There is always a last one: where no time has passed since the last report, it is of
        zero length. Raises ClockWentBackwards; ValueError after the end.
        """
        start_ms = self._look(reading)
        until_ms = max(self._time_ms(reading), start_ms)
        segments = self._cut(start_ms, until_ms, reading, ends=True)
        self._state = replace(self._state, ended=True)
        return segments

    def _time_ms(self, reading: Reading) -> int:
        return reading.now_ms if self._own is None else self._own.at_ms(reading)

    def _excluded_ms(self, reading: Reading) -> int:
        return reading.paused_ms + (reading.skipped_ms if self._own is None else 0)

    def _start_ms(self, reading: Reading) -> int:
        """Return where the next segment starts: after the last one and what isn't counted."""
        until_ms = self._state.reported_until_ms
        excluded_ms = self._excluded_ms(reading) - self._excluded_before_ms
        resumed_ms = until_ms + excluded_ms - self._state.excluded_ms
        return max(until_ms, min(resumed_ms, self._time_ms(reading)))

    def _look(self, reading: Reading) -> int:
        if self._state.ended:
            raise ValueError(f"order {self._state.service_order_number!r} has ended")
        if reading.local_ms < self._latest.local_ms:
            said = f"the clock shows {reading.local_ms} ms after {self._latest.local_ms} ms"
            raise ClockWentBackwards(said)
        if self._own is not None:
            self._own.look(reading)
        self._latest = reading
        return self._start_ms(reading)

    def _cut(
        self, start_ms: int, until_ms: int, reading: Reading, *, ends: bool = False
    ) -> list[SegmentEvent]:
        state = self._state
        longest_ms = SEGMENT_LENGTH_MAX_MS - SEGMENT_LENGTH_MAX_MS % state.report_interval_ms
        segments: list[SegmentEvent] = []
        while start_ms < until_ms or (ends and not segments):
            end_ms = min(start_ms + longest_ms, until_ms)
            number = state.next_number + len(segments)
            is_last = ends and end_ms == until_ms
            segments.append(
                SegmentEvent(state.service_order_number, number, start_ms, end_ms, is_last)
            )
            start_ms = end_ms
        assert start_ms == until_ms
        self._state = replace(
            state,
            next_number=state.next_number + len(segments),
            reported_until_ms=until_ms,
            clock_bound_ms=self.bound_ms(reading),
            suspends=reading.suspends - self._slept_before,
            excluded_ms=self._excluded_ms(reading) - self._excluded_before_ms,
        )
        return segments
