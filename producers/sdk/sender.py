"""The half of the SDK that sends: from the spool to the uplink, oldest first, for ever.

What the server has said of a segment for good takes it out of the queue: accepted ones are
removed, refused ones (and stored ones that will not count) are set aside with the server's
words. Everything else stays, and is tried again after a pause: all of it where the server is
away or busy, one order where only that one fails.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from durabill.producers.sdk.holds import Holds
from durabill.producers.sdk.session import ProducerError
from durabill.producers.sdk.spool import RejectedSegment, Spool, SpooledSegment, SpoolError
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import (
    Backoff,
    SendResult,
    Uplink,
    UplinkRefused,
    UplinkUnavailable,
    WillNotCount,
)

log = logging.getLogger(__name__)

_BATCH_SEGMENTS_MAX = 500


@dataclass(frozen=True, slots=True)
class ClientStats:
    """How a client stands: on disk now, and what the server said since the client was made."""

    pending: int
    """segments on disk that are still to be sent"""
    rejected: int
    """segments on disk that were set aside: see `Client.rejected`"""
    acknowledged: int
    """segments that the server has, and that count"""
    refused: int
    """segments that the server refused for good, or has though they will not count"""
    will_not_count: int
    """those of `refused` that the server has: they are dead letters"""
    clock_bound_ms: int | None
    """how far the client's time of the server may be off; None before a server was heard"""
    suspends: int
    """how often the machine was suspended"""


class Sender:
    """Sends what is in the spool. `run` is the body of its thread; the rest is for any thread.

    `tell` is told of all trouble; `changed` is notified when segments were sent or refused.
    """

    def __init__(
        self,
        spool: Spool,
        uplink: Uplink,
        backoff: Backoff,
        dice: Callable[[], float],
        tell: Callable[[Exception], None],
        changed: threading.Condition,
        timekeeper: Timekeeper,
    ) -> None:
        self._spool = spool
        self._uplink = uplink
        self._backoff = backoff
        self._dice = dice
        self._tell = tell
        self._changed = changed
        self._time = timekeeper
        self._holds = Holds()  # the thread's own, like the counts
        self._acknowledged = self._refused = self._will_not_count = 0
        self._work = threading.Event()  # the spool may hold something new
        self._nudge = threading.Event()  # somebody waits: cut a pause between tries short
        self._stop = threading.Event()

    def wake(self) -> None:
        """Look into the spool: there may be something new."""
        self._work.set()

    def hurry(self) -> None:
        """Somebody waits: cut the pauses short, but for those that the server asked for."""
        self._nudge.set()
        self._work.set()

    def stop(self) -> None:
        """Have `run` return after the request that is under way."""
        self._stop.set()
        self.hurry()

    def stats(self) -> ClientStats:
        """Count what is on disk, and tell what the server has said."""
        return ClientStats(
            self._spool.pending(),
            self._spool.rejected_count(),
            self._acknowledged,
            self._refused,
            self._will_not_count,
            self._time.bound_ms(),
            self._time.read().suspends,
        )

    def run(self) -> None:
        """Send until `stop`. Nothing that goes wrong with a batch ends it."""
        failures = 0
        while not self._stop.is_set():
            try:
                result = self._send_oldest()
                if result is None:  # nothing to do
                    continue
            except Exception as error:
                if self._stop.is_set():  # closed while a request was under way: it is sent again
                    return
                if not isinstance(error, ProducerError):  # an uplink's fault, or ours
                    log.exception("sending failed, it is tried again")
                self._tell(error)
                result = SendResult()
            if result.problem is not None:
                self._tell(result.problem)
            if result.accepted or result.refused:
                failures = 0
            if result.problem is not None or not (
                result.accepted or result.refused or result.failed
            ):
                failures += 1
                self._pause(failures, result.problem)

    def _send_oldest(self) -> SendResult | None:
        self._work.clear()
        if self._nudge.is_set():
            self._nudge.clear()
            self._holds.release()
        now_s = time.monotonic()
        batch = self._spool.oldest(_BATCH_SEGMENTS_MAX, without=self._holds.held(now_s))
        if not batch:
            self._work.wait(self._holds.wait_s(now_s))
            return None
        asked_us = self._time.tick_us()
        result = self._uplink.send([entry.segment for entry in batch])
        self._time.learn(asked_us, result.stamps)
        self._settle(batch, result)
        return result

    def _settle(self, batch: list[SpooledSegment], result: SendResult) -> None:
        # First what makes room, then what may need some.
        self._spool.acknowledge([batch[at].entry_id for at in result.accepted])
        self._acknowledged += len(result.accepted)
        for at in result.accepted:
            self._holds.worked(batch[at].segment.service_order_number)
        self._set_aside(batch, result)
        with self._changed:
            self._changed.notify_all()
        for number, problem in result.failed.items():
            self._hold(number, problem)
        for trouble in (*result.refused.values(), *result.failed.values()):
            self._tell(trouble)

    def _set_aside(self, batch: list[SpooledSegment], result: SendResult) -> None:
        try:
            self._spool.reject([_rejected(batch[at], why) for at, why in result.refused.items()])
        except SpoolError as error:
            # They stay in the queue, and must not hold up what is behind them.
            self._tell(error)
            for number in {batch[at].segment.service_order_number for at in result.refused}:
                self._hold(number, None)
            return
        self._refused += len(result.refused)
        self._will_not_count += sum(isinstance(e, WillNotCount) for e in result.refused.values())
        for at in result.refused:
            self._holds.worked(batch[at].segment.service_order_number)

    def _hold(self, number: str, problem: UplinkUnavailable | None) -> None:
        wish_s = problem.retry_after_s if problem is not None else None
        pause_s = self._backoff.pause_s(self._holds.failed(number), self._dice(), wish_s)
        self._holds.hold(number, time.monotonic() + pause_s, is_wish=wish_s is not None)

    def _pause(self, failures: int, problem: UplinkUnavailable | None) -> None:
        wish_s = problem.retry_after_s if problem is not None else None
        pause_s = self._backoff.pause_s(failures, self._dice(), wish_s)
        (self._nudge if wish_s is None else self._stop).wait(pause_s)


def _rejected(entry: SpooledSegment, why: UplinkRefused) -> RejectedSegment:
    return RejectedSegment(entry.entry_id, entry.segment, why.reason, why.detail)
