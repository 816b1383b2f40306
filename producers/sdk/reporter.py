"""The half of the SDK that measures: cuts segments when they are due, and has them stored.

Services wait in a heap by the instant at which they are due, so ten thousand that have nothing to
say cost nothing. What is due within the same moment (a fortieth of the report interval, a quarter
of a second at most) is cut together and stored in one commit. A late cut changes no segment: whole
intervals are reported, wherever in between the question comes.

A service is locked from the cut until its segments are stored. Where they can't be, it takes the
cut back, and the same time is cut again, as one longer segment.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from durabill.producers.sdk.service import Cut, Service
from durabill.producers.sdk.session import ProducerError
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.spool_errors import SpoolFull
from durabill.producers.sdk.threads import persistently

log = logging.getLogger(__name__)

AT_ONCE_MAX = 1_000
_MOMENT_MAX_MS = 250
_WAIT_MAX_S = 1.0  # the services' clock is not the one that waits: it may be set, or jump
_STEP_MS = _RETRY_MS = 1_000


class Reporter:
    """Reports for all running services of a client. `run` is the body of its thread.

    `now_ms` is the clock of the services' `due_at_ms`; `spool` keeps segments, `stored` is called
    when there are new ones; `tell` is told of all trouble, and `tell_waiting` tells what came up
    under locks. It also sees to it that what was stored
    without waiting for the disk (a service's start) soon survives a power cut.
    """

    def __init__(
        self,
        now_ms: Callable[[], int],
        spool: Spool,
        stored: Callable[[], None],
        tell: Callable[[Exception], None],
        tell_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._now_ms = now_ms
        self._spool = spool
        self._stored = stored
        self._tell = tell
        self._tell_waiting = tell_waiting
        self._changed = threading.Condition()
        self._reporting = threading.Lock()
        self._running: dict[str, Service] = {}
        self._heap: list[tuple[int, int, Service]] = []
        self._heaped_at: tuple[int, float] = (0, 0.0)
        self._is_whole = True  # every service is in the heap
        self._ids = count()
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, service_order_number: object) -> bool:
        return service_order_number in self._running

    def services(self) -> list[Service]:
        """Return all running services."""
        with self._changed:
            return list(self._running.values())

    def add(self, service: Service) -> None:
        """Report for one more service."""
        with self._changed:
            self._running[service.service_order_number] = service
            self._push(service)
            self._changed.notify_all()

    def remove(self, service_order_number: str) -> None:
        """Report no longer for one."""
        with self._changed:
            self._running.pop(service_order_number, None)

    def stop(self) -> None:
        """Have `run` return."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        """Report until `stop`."""
        persistently(self._run_once, lambda: self._is_stopping, self._failed)

    def _failed(self, error: Exception) -> None:
        log.error("metering failed, it is tried again", exc_info=error)
        self._tell(error)

    def _run_once(self) -> None:
        with self._changed:
            is_whole, self._is_whole = self._is_whole, False  # after an error it isn't
            due = self._due(is_whole)
            if not due and not self._is_stopping:
                self._changed.wait(self._wait_s())
        if self._spool.sync_due_s() == 0.0:
            self._sync()
        self.report(due)
        with self._changed:
            for service in due:
                if service is self._running.get(service.service_order_number):
                    self._push(service)
            self._is_whole = True
        self._tell_waiting()

    def report(self, services: Sequence[Service]) -> None:
        """Cut and store what is due of these services."""
        for at in range(0, len(services), AT_ONCE_MAX):
            trouble: list[Exception] = []
            cuts: list[Cut] = []
            with self._reporting:  # whoever locks several services does so alone
                try:
                    for service in services[at : at + AT_ONCE_MAX]:
                        self._cut(service, cuts, trouble)
                    self._keep(cuts, trouble)
                finally:  # what isn't stored by now isn't kept
                    for cut in cuts:
                        _done(cut, trouble)
            for error in trouble:  # whoever is told may well use the services
                self._tell(error)

    def _cut(self, service: Service, cuts: list[Cut], trouble: list[Exception]) -> None:
        try:
            cut = service.cut()
        except ProducerError as error:
            trouble.append(error)
        except Exception as error:  # a fault of ours with one service stops no other
            log.exception("order %r could not be metered", service.service_order_number)
            trouble.append(error)
        else:
            if cut is not None:
                try:
                    cuts.append(cut)
                except BaseException:
                    cut.done()
                    raise

    def _keep(self, cuts: Sequence[Cut], trouble: list[Exception]) -> None:
        """Store cuts together; where there isn't room for all, as many as there is room for."""
        pieces = [cuts] if cuts else []
        while pieces:
            piece = pieces.pop()
            try:
                self._spool.append_all([Entry(cut.segments, cut.after) for cut in piece])
            except SpoolFull as error:
                if len(piece) == 1:
                    trouble.append(error)
                    return
                half = len(piece) // 2
                pieces += [piece[half:], piece[:half]]
            except Exception as error:
                if not isinstance(error, ProducerError):
                    log.exception("segments could not be stored")
                trouble.append(error)
                return
            else:
                for cut in piece:
                    cut.is_kept = True
                self._stored()

    def _sync(self) -> None:
        try:
            self._spool.sync()
        except Exception as error:
            if not isinstance(error, ProducerError):
                log.exception("what was stored could not be synced")
            self._tell(error)

    def _due(self, is_whole: bool) -> list[Service]:
        now_ms, now_s = self._now_ms(), time.monotonic()
        heaped_ms, heaped_s = self._heaped_at
        is_set = abs(now_ms - heaped_ms - (now_s - heaped_s) * 1000) > _STEP_MS
        if is_set or not is_whole:
            self._heap.clear()  # the clock was set: all services are due at other instants
            self._heaped_at = now_ms, now_s
            for service in list(self._running.values()):
                self._push(service)
        due: list[Service] = []
        while self._heap and self._heap[0][0] <= now_ms:
            service = heapq.heappop(self._heap)[2]
            if service is self._running.get(service.service_order_number):
                due.append(service)
        return due

    def _push(self, service: Service) -> None:
        moment_ms = max(1, min(_MOMENT_MAX_MS, service.state.report_interval_ms // 40))
        try:
            due_ms = -(-service.due_at_ms() // moment_ms) * moment_ms
        except Exception as error:  # it holds up no other
            log.error("when is order %r due?", service.service_order_number, exc_info=error)
            due_ms = self._now_ms() + _RETRY_MS
        heapq.heappush(self._heap, (due_ms, next(self._ids), service))

    def _wait_s(self) -> float | None:
        waits_s = [self._spool.sync_due_s()]
        if self._heap:
            waits_s += [_WAIT_MAX_S, max(self._heap[0][0] - self._now_ms(), 1) / 1000]
        return min((each for each in waits_s if each is not None), default=None)


def _done(cut: Cut, trouble: list[Exception]) -> None:
    try:
        cut.done()
    except Exception as error:  # it is found out before the next cut what was stored
        trouble.append(error)
