"""A service that is being metered: cuts its session into segments that are stored, or not cut."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.session import Session, SessionState
from durabill.producers.sdk.spool import RejectedSegment
from durabill.schemas import SegmentEvent

_REPORT_RETRY_MS = 1_000  # after a full spool; the session itself holds the time meanwhile


@dataclass(frozen=True, slots=True)
class EndReceipt:
    """How an ended service stands: `pending` segments still to be sent, and the refused ones.

    Among the refused are those that the server has, and that will not count. `clock_bound_ms` is
    by how much the time billed may be wrong because of the client's clock, `suspends` how often
    its machine slept, and `excluded_ms` how much time wasn't counted for that.
    """

    service_order_number: str
    pending: int
    rejected: tuple[RejectedSegment, ...]
    clock_bound_ms: int = 0
    suspends: int = 0
    excluded_ms: int = 0

    @property
    def acknowledged(self) -> bool:
        """Whether the server has every segment that this service ever gave, and all count."""
        return self.pending == 0 and not self.rejected


@dataclass(frozen=True, slots=True)
class Owner:
    """What a service needs of the client that meters it."""

    check_running: Callable[[], None]
    read: Callable[[], Reading]
    store: Callable[[list[SegmentEvent], SessionState], None]
    stored: Callable[[str], SessionState | None]
    finish: Callable[["Service", float], EndReceipt]
    shielded: Callable[[Callable[[], None]], None] = lambda act: act()


class Service:
    """A service that is being metered. Made by `Client.start` and `resume`.

    As a context manager it ends when the block does.
    """

    def __init__(self, session: Session, owner: Owner) -> None:
        self._owner = owner
        self._session = session
        self._retry_at_ms: int | None = None  # set while something keeps us from reporting
        self._before: SessionState | None = None  # while it isn't certain what was stored
        self._is_let_go = False
        self._mutex = threading.Lock()

    @property
    def service_order_number(self) -> str:
        """The order number that the server knows this service by."""
        return self._session.state.service_order_number

    @property
    def state(self) -> SessionState:
        """Where the service stands as of its last stored segment."""
        return self._session.state

    def end(self, timeout_s: float = 30.0) -> EndReceipt:
        """Store the last segments, wait until the server has everything, and say how it stands.

        After `timeout_s` it returns all the same, with the rest `pending`: safe on disk, and
        sent as soon as the server can be reached, also by the next client on this spool.
        Raises SpoolFull where the last segments can't be stored: the service then goes on
        running (and being counted), and `end` may be called again. A second `end` only waits.
        Raises ClientStopped after `close`, or where the client is beyond repair.
        """
        self._owner.check_running()
        self._owner.shielded(self._end)
        return self._owner.finish(self, timeout_s)

    def _end(self) -> None:
        with self._mutex:
            if not self._session.state.ended:
                self._keep(self._session.end, self._owner.read())

    def let_go(self) -> None:
        """Cut nothing any more, without an end; what is being stored is stored by then."""
        with self._mutex:
            self._is_let_go = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def due_at_ms(self) -> int:
        """Return the client's time of the server from which `report` has something to do."""
        if self._retry_at_ms is None and not self._session.waits:
            return self._session.due_at()
        reading = self._owner.read()  # the time may have been set back since then
        if self._retry_at_ms is None:
            return self._session.due_at(reading)
        return min(self._retry_at_ms, reading.now_ms + _REPORT_RETRY_MS)

    def cut(self) -> "Cut | None":
        """Cut what is due, None where nothing is. The service is locked until `Cut.done`."""
        cut, reading = None, None
        self._mutex.acquire()
        try:
            self._recover()
            reading = self._owner.read()
            is_over = self._session.state.ended or self._is_let_go
            if not is_over and reading.now_ms >= self.due_at_ms():
                self._before = self._session.state
                if segments := self._session.report(reading):
                    cut = Cut(self, reading.now_ms, segments, self._session.state)
                else:
                    self._before = self._retry_at_ms = None
            return cut
        except BaseException:
            if reading is not None:
                self._take_back(reading.now_ms)
            raise
        finally:
            if cut is None:
                self._mutex.release()

    def _done(self, cut: "Cut") -> None:
        try:
            if cut.is_kept:
                self._before = self._retry_at_ms = None
            else:
                self._take_back(cut.now_ms)
        finally:
            self._mutex.release()

    def _take_back(self, now_ms: int) -> None:
        # Where nothing was stored the same time is cut again, as one longer segment.
        self._retry_at_ms = now_ms + _REPORT_RETRY_MS
        self._recover()

    def _recover(self) -> None:
        """Go on from what is stored: a cut that failed may have been, or may not."""
        if self._before is None:
            return
        state = self._session.state
        stored = self._owner.stored(state.service_order_number)
        if stored is not None and stored != state:
            self._session.restore(self._before)
        self._before = None

    def _keep(self, cut: Callable[[Reading], list[SegmentEvent]], reading: Reading) -> None:
        self._recover()
        self._before = self._session.state
        try:
            if segments := cut(reading):
                self._owner.store(segments, self._session.state)
        except BaseException:
            self._take_back(reading.now_ms)
            raise
        self._before = self._retry_at_ms = None


@dataclass(eq=False, slots=True)
class Cut:
    """What was cut of a service: `done` gives it up again, unless it `is_kept` by then."""

    service: Service
    now_ms: int
    segments: list[SegmentEvent]
    after: SessionState
    is_kept: bool = False

    def done(self) -> None:
        """Let the service go on."""
        self.service._done(self)
