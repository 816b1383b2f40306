"""A running service, cut into segments of business data. Pure: the clock is an argument.

The server says once when the service began (`server_timestamp_ms`). From then on only the
client's monotonic clock counts: it says *how long* since the server said go, never *when*. So

    server time = base + (monotonic now - anchor)

and a client whose wall clock is wrong, or is set while the service runs, bills the right time.

Time sequences are half-open, [start_ms, end_ms), and follow one another without a gap: where
one ends the next one starts, whatever the instants at which the caller asked. Only a restart
of the client's process may leave a gap, see `Session.resume`.

A report is not a loss when it can't be kept: `restore` the state from before it, and the next
report covers its time.
"""

from dataclasses import dataclass, replace

from durabill.schemas import SegmentEvent, check_order_number
from durabill.schemas.errors import DurabillError
from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

GAP_MAX_MS = 366 * SEGMENT_LENGTH_MAX_MS
"""The longest time without a meter that `Session.resume` counts: a year."""


class ProducerError(DurabillError):
    """Root of the errors of all that produces segments: SDK, gateway, fleet.

    ProducerError
    ├── ClockWentBackwards   a monotonic clock that isn't: ours, or the caller's clock argument
    ├── SpoolError           spool.py
    │   ├── SpoolFull        the limit or the disk; nothing was stored, nothing was lost
    │   ├── SpoolBusy        another process holds the file
    │   └── SpoolBroken      the file is no spool, or its disk fails
    │       └── SpoolDamaged     it was one: put aside, and metering goes on in a new one
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
    """The monotonic clock showed less than before."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """What has to outlive a crash to carry a service on. Times are server time in ms.

    `next_number` is the business data number of the next segment (from 1), `reported_until_ms`
    the end of the last one, or the service's start. Raises BadRecord for an illegal order
    number and ValueError for the rest.
    """

    service_order_number: str
    report_interval_ms: int
    next_number: int
    reported_until_ms: int
    ended: bool

    def __post_init__(self) -> None:
        check_order_number(self.service_order_number)
        if not 1 <= self.report_interval_ms <= SEGMENT_LENGTH_MAX_MS:
            raise ValueError(f"report_interval_ms is {self.report_interval_ms}, 1 to 24 h allowed")
        if self.next_number < 1 or self.reported_until_ms < 0:
            raise ValueError(f"{self} is no state of a session")


class Session:
    """One service from the server's go to its end. Not safe for several threads at once.

    `anchor_monotonic_ms` is what the monotonic clock showed when the server's answer arrived:
    the time on the way is not billed. All later instants are of the same monotonic clock.
    Raises BadRecord or ValueError as `SessionState` does.
    """

    def __init__(
        self,
        service_order_number: str,
        server_timestamp_ms: int,
        report_interval_ms: int,
        anchor_monotonic_ms: int,
    ) -> None:
        self._state = SessionState(
            service_order_number, report_interval_ms, 1, server_timestamp_ms, ended=False
        )
        self._base_ms = server_timestamp_ms
        self._anchor_monotonic_ms = anchor_monotonic_ms
        self._latest_monotonic_ms = anchor_monotonic_ms

    @classmethod
    def resume(
        cls,
        state: SessionState,
        server_timestamp_ms: int,
        anchor_monotonic_ms: int,
        *,
        count_gap: bool = False,
    ) -> "Session":
        """Carry on a service after the client's process died, from its saved state.

        A monotonic clock can't be compared across a reboot, so the server is asked for its
        time again: it was `server_timestamp_ms` when the clock showed `anchor_monotonic_ms`.

        `count_gap` is about the time from the last saved report until now. False, the default:
        nobody can prove that the service ran, so it isn't counted; the next segment starts now.
        (Numbers go on without a hole, so the order can still be COMPLETE.) True: the caller
        knows that the service itself went on while its meter was dead, and answers for it; the
        next segment starts where the last one ended.

        Where the server's time lies before what was reported already (the client's clock ran
        fast), the next segment starts at what was reported, so nothing is counted twice.
        Raises ValueError if the session has ended, and for a gap of over a year that is to be
        counted: nobody's meter was dead so long, and it would be cut into thousands of segments.
        """
        if state.ended:
            raise ValueError(f"order {state.service_order_number!r} has ended")
        gap_ms = server_timestamp_ms - state.reported_until_ms
        if count_gap and gap_ms > GAP_MAX_MS:
            said = f"the server's time is {gap_ms} ms after the last report, at most a year counts"
            raise ValueError(f"order {state.service_order_number!r}: {said}")
        now_ms = max(server_timestamp_ms, state.reported_until_ms)
        session = cls(
            state.service_order_number, now_ms, state.report_interval_ms, anchor_monotonic_ms
        )
        reported_until_ms = state.reported_until_ms if count_gap else now_ms
        session._state = replace(state, reported_until_ms=reported_until_ms)
        return session

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

    def due_at(self) -> int:
        """Return the monotonic instant in ms from which `report` has something to give."""
        state = self._state
        due_ms = state.reported_until_ms + state.report_interval_ms
        return self._anchor_monotonic_ms + due_ms - self._base_ms

    def report(self, monotonic_ms: int) -> list[SegmentEvent]:
        """Return the segments that are due: whole intervals only, an empty list before `due_at`.

        A process that slept over several intervals gets one segment for all of them, cut only
        where it would be longer than 24 h: as true as many small ones, and it can't flood the
        way. Raises ClockWentBackwards; ValueError after the end.
        """
        elapsed_ms = self._server_time(monotonic_ms) - self._state.reported_until_ms
        elapsed_ms -= elapsed_ms % self._state.report_interval_ms
        return self._cut(self._state.reported_until_ms + elapsed_ms)

    def end(self, monotonic_ms: int) -> list[SegmentEvent]:
        """Return the rest, with the end identifier on the last segment, and end the session.

        There is always a last one: where no time has passed since the last report, it is of
        zero length. Raises ClockWentBackwards; ValueError after the end.
        """
        segments = self._cut(self._server_time(monotonic_ms), ends=True)
        self._state = replace(self._state, ended=True)
        return segments

    def _server_time(self, monotonic_ms: int) -> int:
        if self._state.ended:
            raise ValueError(f"order {self._state.service_order_number!r} has ended")
        if monotonic_ms < self._latest_monotonic_ms:
            raise ClockWentBackwards(
                f"the monotonic clock shows {monotonic_ms} ms after {self._latest_monotonic_ms} ms"
            )
        self._latest_monotonic_ms = monotonic_ms
        now_ms = self._base_ms + monotonic_ms - self._anchor_monotonic_ms
        assert now_ms >= self._state.reported_until_ms
        return now_ms

    def _cut(self, until_ms: int, *, ends: bool = False) -> list[SegmentEvent]:
        state = self._state
        longest_ms = SEGMENT_LENGTH_MAX_MS - SEGMENT_LENGTH_MAX_MS % state.report_interval_ms
        segments: list[SegmentEvent] = []
        start_ms = state.reported_until_ms
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
            state, next_number=state.next_number + len(segments), reported_until_ms=until_ms
        )
        return segments
