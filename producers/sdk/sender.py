"""The half of the SDK that sends: from the spool to the uplink, oldest first, for ever.

What the server has said of a segment for good takes it out of the queue: accepted ones are
removed, refused ones (and stored ones that will not count) are set aside with the server's
words. Everything else stays, and is tried again after a pause (`pace`): all of it where the
server is away or busy, one order where only that one fails.

Leases are renewed in time (`lease_keeper`). An order whose lease can't be renewed waits by itself.
When there is nothing to send, the server may be asked for a total (`receipt_clerk`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from durabill.producers.sdk.holds import Holds
from durabill.producers.sdk.lease_keeper import LeaseKeeper
from durabill.producers.sdk.pace import Pace
from durabill.producers.sdk.receipt_clerk import ReceiptClerk
from durabill.producers.sdk.session import ProducerError
from durabill.producers.sdk.spool import RejectedSegment, Spool, SpooledSegment, SpoolError
from durabill.producers.sdk.standing import Standing
from durabill.producers.sdk.threads import persistently
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import (
    Backoff,
    OrderFailed,
    SendNotes,
    SendResult,
    Uplink,
    UplinkRefused,
    UplinkUnavailable,
)

log = logging.getLogger(__name__)

REQUEST_SEGMENTS_MAX = 1_000
_LOOK_EVERY_S = 30.0
_IDLE_MAX_S = 1.0  # after a suspend, say, the server's time is wanted though nothing is to be sent
_TIME_TIMEOUT_S = 5.0
_LEASE_DOUBLINGS_MAX = 3  # of the pause of an order that has no lease: each round is two requests


class Sender:
    """Sends what is in the spool. `run` is the body of its thread; the rest is for any thread.

    `tell` is told of all trouble, and `tell_waiting` tells what came up under locks; `changed` is
    called when segments were sent or refused; `services` says how many are metered.
    """

    def __init__(
        self,
        spool: Spool,
        uplink: Uplink,
        *,
        backoff: Backoff,
        dice: Callable[[], float],
        tell: Callable[[Exception], None],
        changed: Callable[[], None],
        services: Callable[[], int],
        standing: Standing,
        timekeeper: Timekeeper,
        tell_waiting: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._uplink = uplink
        self._backoff = backoff
        self._dice = dice
        self._tell = tell
        self._tell_waiting = tell_waiting
        self._changed = changed
        self._services = services
        self._standing = standing
        self._time = timekeeper
        self._now = standing.now
        self._pace = Pace(backoff, dice)  # the thread's own, like the holds
        self._holds = Holds()
        self._leases = LeaseKeeper(spool, uplink, self._now)
        self._clerk = ReceiptClerk(spool, uplink, self._now, dice)
        self._waiters = 0
        self._waiters_mutex = threading.Lock()
        self._work = threading.Event()  # the spool may hold something new
        self._nudge = threading.Event()  # somebody waits: cut a pause between tries short
        self._stop = threading.Event()

    def wake(self) -> None:
        """Look into the spool: there may be something new."""
        self._work.set()

    def hurry(self) -> None:
        """Cut the pauses short, but for those that the server asked for."""
        self._nudge.set()
        self._work.set()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Hurry; and while somebody waits, don't spread what has piled up."""
        with self._waiters_mutex:
            self._waiters += 1
        try:
            self.hurry()
            yield
        finally:
            with self._waiters_mutex:
                self._waiters -= 1

    def stop(self) -> None:
        """Have `run` return after the request that is under way."""
        self._stop.set()
        self.hurry()

    def run(self) -> None:
        """Send until `stop`. Nothing that goes wrong with a batch ends it."""
        persistently(self._run_once, self._stop.is_set, self._tell_failure)

    def _run_once(self) -> None:
        try:
            result = self._send_oldest()
        except Exception as error:
            if self._stop.is_set():  # closed while a request was under way: it is sent again
                return
            self._tell_failure(error)
            result = SendResult()
        self._tell_waiting()
        if result is None:  # nothing to do
            return
        if result.problem is not None:
            self._tell(result.problem)
        self._pause(result)

    def _look(self, now_s: float) -> None:
        """Tell what gets in danger; a disk that fails meanwhile stops no sending."""
        try:
            self._time.tick_us()  # where there is no service, nobody else looks at the clock
            self._standing.look(now_s)
        except Exception as error:
            if not self._stop.is_set():
                self._tell_failure(error)
        self._tell_waiting()

    def _tell_failure(self, error: Exception) -> None:
        if not isinstance(error, ProducerError):  # an uplink's fault, or ours
            log.error("sending failed, it is tried again", exc_info=error)
        self._tell(error)

    def _send_oldest(self) -> SendResult | None:
        self._work.clear()
        if self._nudge.is_set():
            self._nudge.clear()
            self._holds.release()
        if self._services() and self._time.should_ask():
            _ask_time(self._time, self._uplink)
        now_s = time.monotonic()
        self._look(now_s)
        held = self._holds.held(now_s)
        batch = self._spool.oldest(REQUEST_SEGMENTS_MAX, without=held)
        if not batch:
            self._pace.drained()
            self._clerk.look(now_s)
            held_s = self._holds.wait_s(now_s)
            self._work.wait(_IDLE_MAX_S if held_s is None else min(held_s, _IDLE_MAX_S))
            return None
        numbers = {entry.segment.service_order_number for entry in batch}
        stalled, problem = self._leases.renew(numbers)
        if problem is not None:
            return SendResult(problem=problem)
        for number, error in stalled.items():
            self._hold(number, error)
            self._tell(error)
        batch = [each for each in batch if each.segment.service_order_number not in stalled]
        if self._leases.bare and not self._time.is_known:  # what is too late depends on it
            _ask_time(self._time, self._uplink)
        batch, late = self._leases.without_late(batch)
        for danger in late:
            self._hold(danger.service_order_number, danger)
            self._tell(danger)
        if not batch:  # they wait by themselves now
            waiting = [*stalled, *(danger.service_order_number for danger in late)]
            return SendResult(failed={each: OrderFailed("no lease") for each in waiting})
        leases = self._leases.shown({each.segment.service_order_number for each in batch})
        settled: set[int] = set()

        def settle(part: SendResult) -> None:
            if not self._time.is_known:  # receipts are kept by it
                self._time.learn(asked_us, part.stamps)
            self._settle(batch, part, settled)

        notes = SendNotes(leases, self._standing.report(), settle)
        asked_us = self._time.tick_us()
        result = self._uplink.send([entry.segment for entry in batch], notes)
        self._time.learn(asked_us, result.stamps)
        self._settle(batch, result, settled)
        self._follow_up(result)
        return result

    def _settle(self, batch: list[SpooledSegment], result: SendResult, settled: set[int]) -> None:
        """Store what the server has said of segments, as it comes; `settled` are done already."""
        accepted = [at for at in result.accepted if at not in settled]
        refused = {at: why for at, why in result.refused.items() if at not in settled}
        settled.update(accepted, refused)
        # First what makes room, then what may need some.
        self._spool.acknowledge(
            [batch[at].entry_id for at in accepted], result.receipt, kept_ms=self._now.now_ms()
        )
        self._standing.acknowledged += len(accepted)
        for at in accepted:
            self._holds.worked(batch[at].segment.service_order_number)
        self._set_aside(batch, refused)
        for why in refused.values():
            self._tell(why)
        if accepted or refused:
            self._pace.worked()
            self._changed()

    def _set_aside(self, batch: list[SpooledSegment], refused: dict[int, UplinkRefused]) -> None:
        try:
            self._spool.reject([_rejected(batch[at], why) for at, why in refused.items()])
        except SpoolError as error:
            # They stay in the queue, and must not hold up what is behind them.
            self._tell(error)
            for number in {batch[at].segment.service_order_number for at in refused}:
                self._hold(number, error)
            return
        for why in refused.values():
            self._standing.was_refused(why)
        for at in refused:
            self._holds.worked(batch[at].segment.service_order_number)

    def _follow_up(self, result: SendResult) -> None:
        """Do what the server said of whole orders."""
        self._leases.stale |= result.stale_leases
        for number, problem in result.failed.items():
            self._hold(number, problem)
            self._tell(problem)
        changed = {
            number: replace(terms, accept_until_ms=until_ms)
            for number, until_ms in result.accept_until_ms.items()
            if (terms := self._spool.terms(number)).accept_until_ms != until_ms
        }
        if changed:
            self._spool.keep_terms(changed)

    def _hold(self, number: str, why: Exception) -> None:
        wish_s = why.retry_after_s if isinstance(why, UplinkUnavailable) else None
        failures = self._holds.failed(number)
        pause_s = self._backoff.pause_s(failures, self._dice(), wish_s)
        if number in self._leases.stale:
            pause_s *= 2 ** min(failures // 2, _LEASE_DOUBLINGS_MAX)
        self._holds.hold(number, time.monotonic() + pause_s, is_wish=wish_s is not None)

    def _pause(self, result: SendResult) -> None:
        has_done_something = bool(result.accepted or result.refused)
        if result.failed and not has_done_something and result.problem is None:
            _sleep(self._nudge, self._pace.in_vain_s(result.failed.keys()), self._look)
        elif result.problem is not None or not has_done_something:
            wish_s = result.problem.retry_after_s if result.problem is not None else None
            pause_s = self._pace.after_failure_s(wish_s, self._interval_s())
            _sleep(self._nudge if wish_s is None else self._stop, pause_s, self._look)
        elif has_done_something and self._pace.is_catching_up:
            if self._spool.pending() <= REQUEST_SEGMENTS_MAX:
                self._pace.drained()
            elif not self._waiters:
                interval_s, services = self._interval_s(), self._services()
                self._nudge.wait(self._pace.between_s(interval_s, services, REQUEST_SEGMENTS_MAX))

    def _interval_s(self) -> float:
        return self._spool.report_interval_ms() / 1000


def _ask_time(timekeeper: Timekeeper, uplink: Uplink) -> None:
    """Ask the server's time: no upload has told it lately. Nothing depends on the answer."""
    asked_us = timekeeper.tick_us()
    with suppress(UplinkUnavailable, UplinkRefused):
        timekeeper.learn(asked_us, uplink.server_time(timeout_s=_TIME_TIMEOUT_S))


def _sleep(until: threading.Event, pause_s: float, look: Callable[[float], None]) -> None:
    """Wait, and tell meanwhile what gets in danger: a server may wish for a day."""
    until_s = time.monotonic() + pause_s
    while not until.wait(min(_LOOK_EVERY_S, max(until_s - time.monotonic(), 0.0))):
        now_s = time.monotonic()
        if now_s >= until_s:
            return
        look(now_s)


def _rejected(entry: SpooledSegment, why: UplinkRefused) -> RejectedSegment:
    return RejectedSegment(entry.entry_id, entry.segment, why.reason, why.detail)
