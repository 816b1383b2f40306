"""The SDK: meters running services and gets their segments to the server, whatever happens.

    with DurabillClient(HttpUplink("http://gateway:8080"), "meter.spool") as client:
        service = client.start()     # the server says go
        ...                          # every report interval, a segment goes out by itself
        service.end()                # the rest, with the end identifier; waits for the server

Two threads work for a client. The *reporter* cuts segments when they are due and puts them into
the spool, on disk, together with the session's state. The *sender* takes them from there, oldest
first, and removes what the server has acknowledged. So a slow or dead server delays nothing but
the sending, and a client that was killed finds everything in the spool when it starts again:
what was unsent is sent, and `unfinished()` names the services that `resume` can carry on.

Only the monotonic clock is read. On Linux it stands still while the machine is suspended, so
that time isn't counted; pass `clock=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)` where it
should be.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from producers.holds import Holds
from producers.session import ProducerError, Session, SessionState
from producers.spool import LIMIT_BYTES_DEFAULT, RejectedSegment, Spool, SpooledSegment, SpoolError
from producers.transport import Backoff, Grant, SendResult, Uplink, UplinkRefused, UplinkUnavailable
from schemas import SegmentEvent

log = logging.getLogger(__name__)
T = TypeVar("T")

_BATCH_SEGMENTS_MAX = 500
_SPOOL_RETRY_MS = 1_000  # after a full spool; the session itself holds the time meanwhile


@dataclass(frozen=True, slots=True)
class EndReceipt:
    """How an ended service stands: `pending` segments still to be sent, and the refused ones."""

    service_order_number: str
    pending: int
    rejected: tuple[RejectedSegment, ...]

    @property
    def acknowledged(self) -> bool:
        """Whether the server has every segment that this service ever gave."""
        return self.pending == 0 and not self.rejected


class Service:
    """A service that is being metered. Made by `DurabillClient.start` and `resume`.

    As a context manager it ends when the block does.
    """

    def __init__(self, client: "DurabillClient", session: Session) -> None:
        self._client = client
        self._session = session
        self._retry_at_ms: int | None = None  # set while the spool refuses us
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
        """
        with self._mutex:
            if not self._session.state.ended:
                self._keep(self._session.end)
        return self._client._finish(self, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def _due_at_ms(self) -> int:
        return self._session.due_at() if self._retry_at_ms is None else self._retry_at_ms

    def _report(self) -> None:
        """Store what is due. Raises SpoolError, and then the next report covers the time."""
        with self._mutex:
            if not self._session.state.ended and self._client._now_ms() >= self._due_at_ms():
                self._keep(self._session.report)

    def _keep(self, cut: Callable[[int], list[SegmentEvent]]) -> None:
        before = self._session.state
        now_ms = self._client._now_ms()
        segments = cut(now_ms)
        try:
            self._client._store(segments, self._session.state)
        except SpoolError:
            # Not stored, so not said: the same time is cut again, as one longer segment.
            self._session.restore(before)
            self._retry_at_ms = now_ms + _SPOOL_RETRY_MS
            raise
        self._retry_at_ms = None


class DurabillClient:
    """Meters services on one uplink and one spool file. Safe for several threads.

    `clock` is a monotonic clock in ns, `dice` gives 0 <= x < 1. `on_error` is called, from the
    background threads, with what goes wrong there (SpoolFull and other trouble of the spool,
    UplinkUnavailable, UplinkRefused for each refused segment); by default it is logged. It must
    not raise. The uplink belongs to the client and is closed with it.
    Raises SpoolBusy or SpoolBroken.
    """

    def __init__(
        self,
        uplink: Uplink,
        spool_path: Path | str,
        *,
        spool_limit_bytes: int = LIMIT_BYTES_DEFAULT,
        backoff: Backoff | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        dice: Callable[[], float] = random.random,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._uplink = uplink
        self._backoff = Backoff() if backoff is None else backoff
        self._clock = clock
        self._dice = dice
        self._on_error = on_error
        self._spool = Spool(spool_path, limit_bytes=spool_limit_bytes)
        self._running: dict[str, Service] = {}
        self._holds = Holds()  # the sender's own
        self._changed = threading.Condition()  # something started, ended, was sent or refused
        self._work = threading.Event()  # the spool may hold something new
        self._nudge = threading.Event()  # somebody waits: cut a pause between tries short
        self._stopping = False
        names = {"reporter": self._report_forever, "sender": self._send_forever}
        self._threads = [
            threading.Thread(target=run, name=f"durabill-{name}", daemon=True)
            for name, run in names.items()
        ]
        for thread in self._threads:
            thread.start()

    def start(
        self,
        service_order_number: str | None = None,
        *,
        grant: Grant | None = None,
        timeout_s: float = 10.0,
    ) -> Service:
        """Ask the server for an order and begin to meter it, as of the server's answer.

        The number is the server's choice unless given. An explicit `grant` asks nobody: its
        server timestamp is taken to be now. Raises UplinkUnavailable when there was no answer
        within some `timeout_s`, UplinkRefused, SpoolFull, BadRecord for an illegal number, and
        ValueError for one that is in use on this spool.
        """
        if grant is None:
            grant = self._patiently(lambda: self._uplink.start(service_order_number), timeout_s)
        anchor_ms = self._now_ms()
        number = grant.service_order_number
        if any(state.service_order_number == number for state in self._spool.sessions()):
            raise ValueError(f"order {number!r} is in use here already, resume it")
        session = Session(number, grant.server_timestamp_ms, grant.report_interval_ms, anchor_ms)
        self._spool.append([], session.state)
        return self._run(session)

    def unfinished(self) -> list[SessionState]:
        """Return the services that an earlier client on this spool left running."""
        return [
            state
            for state in self._spool.sessions()
            if state.service_order_number not in self._running
        ]

    def resume(
        self,
        service_order_number: str,
        *,
        count_gap: bool = False,
        server_timestamp_ms: int | None = None,
        timeout_s: float = 10.0,
    ) -> Service:
        """Carry on a service of `unfinished()`; `end` it at once if it is over.

        `count_gap`: see `Session.resume`; by default the time since the last stored segment
        isn't counted. The server is asked for its time unless given. Raises LookupError for an
        unknown order, UplinkUnavailable, UplinkRefused, SpoolFull.
        """
        states = {state.service_order_number: state for state in self.unfinished()}
        if service_order_number not in states:
            raise LookupError(f"no unfinished order {service_order_number!r} on this spool")
        if server_timestamp_ms is None:
            server_timestamp_ms = self._patiently(self._uplink.server_time_ms, timeout_s)
        session = Session.resume(
            states[service_order_number],
            server_timestamp_ms,
            self._now_ms(),
            count_gap=count_gap,
        )
        self._spool.append([], session.state)
        return self._run(session)

    def rejected(self) -> list[RejectedSegment]:
        """Return the segments that the server refused for good, of all orders, oldest first."""
        return self._spool.rejected()

    def retry_rejected(self) -> int:
        """Send the refused segments once more (whatever was wrong has been mended): how many."""
        count = self._spool.retry_rejected()
        self._work.set()
        return count

    def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until all that is stored has been sent or refused; return how much still waits."""
        return self._wait_sent(None, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Store what is due, give the sender `timeout_s`, stop. Unsent segments stay on disk.

        Running services aren't ended, since that is a statement about the service: they become
        `unfinished()` for the next client on this spool.
        """
        if self._stopping:
            return
        self._report_all()
        self.flush(timeout_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._work.set()
        self._nudge.set()
        for thread in self._threads:
            thread.join(timeout=1.0)  # a sender that is stuck in a request ends with it
        self._spool.close()
        self._uplink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _now_ms(self) -> int:
        return self._clock() // 1_000_000

    def _run(self, session: Session) -> Service:
        service = Service(self, session)
        with self._changed:
            self._running[service.service_order_number] = service
            self._changed.notify_all()
        return service

    def _store(self, segments: list[SegmentEvent], state: SessionState) -> None:
        self._spool.append(segments, state)
        self._work.set()

    def _finish(self, service: Service, timeout_s: float) -> EndReceipt:
        number = service.service_order_number
        with self._changed:
            self._running.pop(number, None)
        pending = self._wait_sent(number, timeout_s)
        return EndReceipt(number, pending, tuple(self._spool.rejected(number)))

    def _wait_sent(self, number: str | None, timeout_s: float) -> int:
        until_s = time.monotonic() + timeout_s
        self._nudge.set()
        self._work.set()
        with self._changed:
            while True:
                pending = self._spool.pending(number)
                left_s = until_s - time.monotonic()
                if not pending or left_s <= 0 or self._stopping:
                    return pending
                self._changed.wait(left_s)

    def _patiently(self, ask: Callable[[], T], timeout_s: float) -> T:
        until_s = time.monotonic() + timeout_s
        failures = 0
        while True:
            try:
                return ask()
            except UplinkUnavailable as error:
                failures += 1
                pause_s = self._pause_s(failures, error)
                if time.monotonic() + pause_s >= until_s:
                    raise
                time.sleep(pause_s)

    def _pause_s(self, failures: int, problem: UplinkUnavailable | None) -> float:
        wish_s = problem.retry_after_s if problem is not None else None
        return max(self._backoff.pause_s(failures, self._dice()), min(wish_s or 0.0, 30.0))

    def _trouble(self, error: Exception) -> None:
        if self._on_error is not None:
            self._on_error(error)
        else:
            log.warning("%s: %s", type(error).__name__, error)

    def _report_all(self) -> None:
        with self._changed:
            services = list(self._running.values())
        for service in services:
            try:
                service._report()
            except ProducerError as error:
                self._trouble(error)

    def _report_forever(self) -> None:
        while not self._stopping:
            with self._changed:
                due_at_ms = [service._due_at_ms() for service in self._running.values()]
                if not self._stopping:
                    wait_ms = min(due_at_ms) - self._now_ms() if due_at_ms else None
                    self._changed.wait(None if wait_ms is None else max(wait_ms, 1) / 1000)
            self._report_all()

    def _send_forever(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                self._work.clear()
                if self._nudge.is_set():
                    self._nudge.clear()
                    self._holds.release()
                now_s = time.monotonic()
                batch = self._spool.oldest(_BATCH_SEGMENTS_MAX, without=self._holds.held(now_s))
                if not batch:
                    self._work.wait(self._holds.wait_s(now_s))
                    continue
                result = self._uplink.send([entry.segment for entry in batch])
                self._settle(batch, result)
            except Exception as error:  # a sender that dies in silence would be the worst
                if self._stopping:  # closed while a request was under way: it is sent again
                    return
                log.exception("the sender failed, it tries again")
                self._trouble(error)
                result = SendResult()
            if result.problem is not None:
                self._trouble(result.problem)
            if result.accepted or result.refused:
                failures = 0
            if result.problem is not None or not (
                result.accepted or result.refused or result.failed
            ):
                failures += 1
                self._nudge.wait(self._pause_s(failures, result.problem))

    def _settle(self, batch: list[SpooledSegment], result: SendResult) -> None:
        if result.refused:
            self._spool.reject([_rejected(batch[at], why) for at, why in result.refused.items()])
        self._spool.acknowledge([batch[at].entry_id for at in result.accepted])
        with self._changed:
            self._changed.notify_all()
        for at in (*result.accepted, *result.refused):
            self._holds.worked(batch[at].segment.service_order_number)
        for number, problem in result.failed.items():
            pause_s = self._pause_s(self._holds.failed(number), problem)
            self._holds.hold(number, time.monotonic() + pause_s)
        for trouble in (*result.refused.values(), *result.failed.values()):
            self._trouble(trouble)


def _rejected(entry: SpooledSegment, why: UplinkRefused) -> RejectedSegment:
    return RejectedSegment(entry.entry_id, entry.segment, why.reason, why.detail)
