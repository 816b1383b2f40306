"""The SDK: meters running services and gets their segments to the server, whatever happens.

    with Client(HttpUplink("http://gateway:8080"), "meter.spool") as client:
        service = client.start()     # the server says go
        ...                          # every report interval, a segment goes out by itself
        service.end()                # the rest, with the end identifier; waits for the server

Two threads work for a client. The *reporter* cuts segments when they are due and puts them into
the spool, on disk, together with the session's state: those of one moment in one commit. The
*sender* takes them from there, oldest first, and removes what the server has acknowledged. So a
slow or dead server delays nothing but the sending, and a client that was killed finds everything
in the spool when it starts again: what was unsent is sent, and `unfinished()` names the services
that `resume` can carry on.

Segments are cut on the server's time, which every answer tells anew (`timekeeper`). The wall clock
is never read. Time in which the machine was suspended isn't counted unless the client is told to
(`suspends="count"`).
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.reporter import Reporter
from durabill.producers.sdk.sender import Sender
from durabill.producers.sdk.server_clock import APART_US, DRIFT_PPM
from durabill.producers.sdk.service import EndReceipt, Owner, Service
from durabill.producers.sdk.session import ProducerError, Session, SessionState
from durabill.producers.sdk.spool import (
    LIMIT_BYTES_DEFAULT,
    Entry,
    RejectedSegment,
    Spool,
    SpoolDamaged,
)
from durabill.producers.sdk.standing import ClientStats, Standing
from durabill.producers.sdk.suspends import Clocks, SuspendPolicy
from durabill.producers.sdk.teller import Teller
from durabill.producers.sdk.threads import Shield
from durabill.producers.sdk.timekeeper import ABSENT_US, Timekeeper
from durabill.producers.sdk.uplink import (
    Backoff,
    Grant,
    StartingOnce,
    Uplink,
    UplinkUnavailable,
    check_timestamp,
    with_renewal,
)
from durabill.schemas import SegmentEvent, check_order_number

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

CLIENT_NAME_CHARS_MAX = 64
GRANT_OFF_MAX_MS = 86_400_000
"""A start that is repeated has the server's time of the first try, maybe by another clock."""


class ClientStopped(ProducerError):
    """The client is closed, or a thread of it has died: it neither meters nor sends.

    Close it; a new client on the same spool carries on.
    """


def _then_told(
    method: Callable[Concatenate["Client", P], T],
) -> Callable[Concatenate["Client", P], T]:
    """Have a method tell what came up meanwhile, once no lock is held any more."""

    @wraps(method)
    def called(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        finally:
            self._teller.tell_waiting()

    return called


class Client:
    """Meters services on one uplink and one spool file. Safe for several threads.

    `suspends` says whether the time in which the machine slept is counted ("exclude" or "count"),
    `drift_ppm` how fast its clock may drift away from the server's. `clock` is a clock in ns that
    only goes forwards, in place of the system's; no suspends are seen by it, unless it is a pair
    (`Clocks`). `dice` gives 0 <= x < 1. `on_error` is called with what goes wrong in the background
    (SpoolFull, SpoolDamaged and other trouble of the spool, UplinkUnavailable, UplinkRefused for
    each refused segment, WillNotCount for each that the server has in vain), with AtRisk, and with
    every ClockNotice; by default it is logged, as is what `on_error` raises itself. It may use the
    client and its services, and close it; in a thread of the client's own nothing waits for the
    server, so `end` and `flush` return at once there. Should a thread die all the same,
    ClientStopped is told, and raised by every later call. `client_name` (64 characters at most)
    is what those who run the server see. The uplink belongs to the client and
    is closed with it. A damaged spool is put aside and told: metering starts anyway. Raises
    SpoolBusy, SpoolBroken for what can't be a spool, and ValueError for a policy, a drift or a name
    that can't be meant.
    """

    def __init__(
        self,
        uplink: Uplink,
        spool_path: Path | str,
        *,
        spool_limit_bytes: int = LIMIT_BYTES_DEFAULT,
        backoff: Backoff | None = None,
        clock: Callable[[], int] | Clocks | None = None,
        suspends: SuspendPolicy | str = SuspendPolicy.EXCLUDE,
        drift_ppm: int = DRIFT_PPM,
        dice: Callable[[], float] = random.random,
        on_error: Callable[[Exception], None] | None = None,
        client_name: str = "",
    ) -> None:
        check_client_name(client_name)
        self._uplink, self._dice = uplink, dice
        self._teller, self._shield = Teller(on_error), Shield()
        self._backoff = Backoff() if backoff is None else backoff
        self._time = Timekeeper(
            clock,
            suspends=suspends,
            drift_ppm=drift_ppm,
            absent_us=ABSENT_US,
            tell=self._teller.later,
        )
        self._changed = threading.Condition()  # something was sent or refused, or has died
        self._listeners: set[Callable[[], None]] = set()
        self._stopping = False
        self._died: tuple[str, BaseException] | None = None  # which thread, of what
        self._damages: list[SpoolDamaged] = []  # found before anybody could be told
        self._standing: Standing | None = None
        self._spool = Spool(spool_path, limit_bytes=spool_limit_bytes, on_damage=self._damaged)
        self._standing = Standing(self._spool, self._time, client_name, self._teller.now)
        self._sender = Sender(
            self._spool,
            uplink,
            backoff=self._backoff,
            dice=dice,
            tell=self._teller.now,
            changed=self._notify,
            services=lambda: len(self._reporter),
            standing=self._standing,
            timekeeper=self._time,
            tell_waiting=self._teller.tell_waiting,
        )
        self._reporter = Reporter(
            lambda: self._time.read().now_ms,
            self._spool,
            self._sender.wake,
            self._teller.now,
            self._teller.tell_waiting,
        )
        self._owner = self._as_owner()
        for damage in self._damages:
            self._damaged(damage)
        self._threads: list[threading.Thread] = []
        self._teller.tell_waiting()
        self._threads = self._started()

    @_then_told
    def start(
        self,
        service_order_number: str | None = None,
        *,
        grant: Grant | None = None,
        timeout_s: float = 10.0,
    ) -> Service:
        """Ask the server for an order and begin to meter it, as of the server's answer.

        The number is the server's choice unless given. An explicit `grant` asks nobody: its
        server timestamp is taken to be now. Raises UplinkUnavailable when there was no answer of
        sense within `timeout_s`, UplinkRefused, SpoolFull, ClientStopped, BadRecord for an
        illegal number, and ValueError for one that is in use on this spool.
        """
        self._check_running()
        if service_order_number is not None:
            check_order_number(service_order_number)
        asked, unsure_ms, own_time = None, 0, grant is not None
        if grant is None:
            until_s = time.monotonic() + timeout_s
            asked, unsure_ms, grant = self._granted(service_order_number, until_s)
        reading = self._time.read()
        number = grant.service_order_number
        if self._spool.knows(number):
            raise ValueError(f"order {number!r} is in use here already, resume it")
        start_ms, interval_ms = grant.server_timestamp_ms, grant.report_interval_ms
        session = Session(
            number,
            start_ms,
            interval_ms,
            reading,
            asked=asked,
            unsure_ms=unsure_ms,
            own_time=own_time,
        )
        terms = with_renewal(grant.terms, start_ms)
        entry = Entry([], session.state, terms)
        return self._shield.run(
            lambda: self._run(session, entry), lambda service: service.end(timeout_s=0.0)
        )

    def unfinished(self) -> list[SessionState]:
        """Return the services that an earlier client on this spool left running."""
        return [
            state
            for state in self._spool.sessions()
            if state.service_order_number not in self._reporter
        ]

    @_then_told
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
        unknown order, ValueError for a time that can't be, UplinkUnavailable, UplinkRefused,
        SpoolFull, ClientStopped.
        """
        self._check_running()
        state = self._spool.session(service_order_number)
        if state is None or service_order_number in self._reporter:
            raise LookupError(f"no unfinished order {service_order_number!r} on this spool")
        if server_timestamp_ms is None:
            self._ask_time(time.monotonic() + timeout_s)
        else:
            check_timestamp(server_timestamp_ms)
        session = Session.resume(
            state,
            self._time.read(),
            count_gap=count_gap,
            server_timestamp_ms=server_timestamp_ms,
        )
        entry = Entry([], session.state)
        return self._shield.run(lambda: self._run(session, entry), self.let_go)

    def let_go(self, service: Service) -> None:
        """Meter a service no longer, without an end: it is one of `unfinished()` again."""
        service.let_go()
        self._reporter.remove(service.service_order_number)

    @_then_told
    def rejected(self) -> list[RejectedSegment]:
        """Return the segments that were set aside, of all orders, oldest first.

        The server has refused them for good, or has them though they will not count.
        """
        return self._shield.run(self._spool.rejected)

    @_then_told
    def retry_rejected(self) -> int:
        """Send the refused segments once more (whatever was wrong has been mended): how many."""
        count = self._shield.run(self._spool.retry_rejected)
        self._sender.wake()
        return count

    @_then_told
    def discard_rejected(self, service_order_number: str | None = None) -> int:
        """Drop the refused segments (of one order): they take room in the spool. Say how many."""
        return self._shield.run(lambda: self._spool.discard_rejected(service_order_number))

    @_then_told
    def stats(self) -> ClientStats:
        """Return how the client stands: what waits, was refused, is at risk, and so on."""
        assert self._standing is not None
        return self._shield.run(self._standing.stats)

    @_then_told
    def receipts(self, service_order_number: str | None = None) -> list[str]:
        """Return the server's receipts that name an order, or all that are kept, oldest first.

        A receipt is a signed text: `durabill verify-receipt` proves it. They are kept until the
        totals of their orders are out, and 35 days more, while there is room: see docs/http.md.
        """
        return self._shield.run(lambda: self._spool.receipts(service_order_number))

    @_then_told
    def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until all that is stored has been sent or refused; return how much still waits.

        A pause that the server asked for (Retry-After) is not cut short. Raises ClientStopped.
        """
        self._check_running()
        return self._wait_sent(None, timeout_s)

    @contextmanager
    def watched(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have `listener` called, by any thread, when segments were sent, or a thread has died."""
        with self._changed:
            self._listeners.add(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.discard(listener)

    def hurried(self) -> AbstractContextManager[None]:
        """Have the sender hurry while somebody waits."""
        return self._sender.waited_for()

    def pending_of(self, numbers: Sequence[str | None]) -> dict[str | None, int]:
        """Return how many segments of these orders wait (None: of all). Raises ClientStopped."""
        self._check_running()
        return {number: self._spool.pending(number) for number in numbers}

    @_then_told
    def close(self, timeout_s: float = 5.0) -> None:
        """Store what is due, give the sender `timeout_s`, stop. Unsent segments stay on disk.

        Running services aren't ended, since that is a statement about the service: they become
        `unfinished()` for the next client on this spool.
        """
        if self._stopping:
            return
        if not self._spool.is_ours():  # in a fork: all of it is the parent's
            self._stopping = True
            return
        try:
            if self._dead() is None:
                self._shield.run(lambda: self._reporter.report(self._reporter.services()))
                self._wait_sent(None, timeout_s)
        finally:
            if not self._stopping:  # else whoever was told meanwhile has closed it
                self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _granted(
        self, service_order_number: str | None, until_s: float
    ) -> tuple[Reading | None, int, Grant]:
        """Return the time before the server was asked, where that was known, and its grant.

        Between them: how far the clock of its timestamp may be from that of its answer, in ms.
        """
        if self._time.is_known and self._time.read().unsettled_ms:  # who knows how late it is
            self._ask_time(until_s)
        uplink, key, tries = self._uplink, os.urandom(16).hex(), 0

        def ask(left_s: float) -> Grant:
            nonlocal tries
            asked_us, tries = self._time.tick_us(), tries + 1
            if isinstance(uplink, StartingOnce):  # a try whose answer was lost opens no second one
                grant = uplink.start_once(key, service_order_number, timeout_s=left_s)
            else:
                grant = uplink.start(service_order_number, timeout_s=left_s)
            if abs(grant.off_ms) > GRANT_OFF_MAX_MS:  # decades would be billed, or nothing
                said = f"a go {grant.off_ms:.0f} ms after the server's own time"
                raise UplinkUnavailable(f"{grant.service_order_number!r}: {said}")
            self._time.learn(asked_us, grant.stamps)
            return grant

        asked = self._time.read() if self._time.is_known else None
        grant = self._patiently(ask, until_s)
        if not self._time.is_known:  # an older gateway, whose grant hasn't the answer's own time
            self._ask_time(until_s)
        # An earlier try may have started it, at another gateway.
        unsure_us = APART_US if tries > 1 or grant.stamps is None else 0
        return asked, unsure_us // 1_000, grant

    def _ask_time(self, until_s: float) -> None:
        def ask(left_s: float) -> None:
            asked_us = self._time.tick_us()
            self._time.learn(asked_us, self._uplink.server_time(timeout_s=left_s))
            if not self._time.is_known:
                raise UplinkUnavailable("the server said a time that can't be")

        self._patiently(ask, until_s)

    def _check_running(self) -> None:
        if self._stopping:
            raise ClientStopped("this client is closed, make a new one on its spool")
        dead = self._dead()
        if dead is not None:
            raise dead

    def _dead(self) -> ClientStopped | None:
        """Tell whether a thread is gone: it died, or it stayed in the process we are a fork of."""
        if self._died is not None:
            name, error = self._died
            what = f"the client's {name} died of {type(error).__name__}: {error}"
            dead = ClientStopped(f"{what}; close it and make a new one on its spool")
            dead.__cause__ = error
            return dead
        if not all(thread.is_alive() for thread in self._threads):
            return ClientStopped("a thread of this client is gone (a fork?), make a new one")
        return None

    def _started(self) -> list[threading.Thread]:
        bodies = {"reporter": self._reporter.run, "sender": self._sender.run}
        threads = [
            threading.Thread(
                target=self._guarded, args=(name, run), name=f"durabill-{name}", daemon=True
            )
            for name, run in bodies.items()
        ]
        self._threads = threads
        try:
            for thread in threads:
                thread.start()
        except BaseException:  # the system has no thread left
            self._stop()
            raise
        return threads

    def _guarded(self, name: str, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self._died = name, error
            log.exception("the client's %s died", name)
            dead = self._dead()
            assert dead is not None
            self._teller.now(dead)
            self._notify()  # whoever waits would wait in vain

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _stop(self) -> None:
        self._stopping = True
        self._notify()
        self._reporter.stop()
        self._sender.stop()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=1.0)
        self._shield.stop()
        self._uplink.close()  # ends a request that is still under way
        self._spool.close()

    def _run(self, session: Session, entry: Entry) -> Service:
        self._spool.append_all([entry], durable=False)
        service = Service(session, self._owner)
        self._reporter.add(service)
        return service

    def _as_owner(self) -> Owner:
        return Owner(
            self._check_running,
            self._time.read,
            self._store,
            self._spool.state,
            self._finish,
            self._shield.run,
        )

    def _store(self, segments: list[SegmentEvent], state: SessionState) -> None:
        self._spool.append(segments, state)
        self._sender.wake()

    @_then_told
    def _finish(self, service: Service, timeout_s: float) -> EndReceipt:
        number = service.service_order_number
        self._reporter.remove(number)
        pending = self._wait_sent(number, timeout_s)
        return self.end_receipt(service, pending)

    def end_receipt(self, service: Service, pending: int) -> EndReceipt:
        """Return how a service that has ended stands."""
        number, state = service.service_order_number, service.state
        return EndReceipt(
            number,
            pending,
            tuple(self._shield.run(lambda: self._spool.rejected(number))),
            state.clock_bound_ms,
            state.suspends,
            state.excluded_ms,
        )

    def _wait_sent(self, number: str | None, timeout_s: float) -> int:
        if threading.current_thread() in self._threads:  # it would wait for itself
            return self._spool.pending(number)
        until_s = time.monotonic() + timeout_s
        with self._sender.waited_for(), self._changed:
            while True:
                pending = self._spool.pending(number)
                left_s = until_s - time.monotonic()
                if not pending or left_s <= 0 or self._stopping:
                    return pending
                self._check_running()
                self._changed.wait(left_s)

    def _patiently(self, ask: Callable[[float], T], until_s: float) -> T:
        failures = 0
        while True:
            try:
                return ask(until_s - time.monotonic())
            except UplinkUnavailable as error:
                failures += 1
                pause_s = self._backoff.pause_s(failures, self._dice(), error.retry_after_s)
                if time.monotonic() + pause_s >= until_s:
                    raise
                time.sleep(pause_s)

    def _damaged(self, damage: SpoolDamaged) -> None:
        if self._standing is None:
            self._damages.append(damage)
            return
        self._standing.damages += 1
        self._teller.later(damage)


def check_client_name(name: str) -> None:
    """Raise ValueError for a name that a client can't have."""
    if len(name) > CLIENT_NAME_CHARS_MAX or not name.isprintable():
        raise ValueError(f"client_name: at most {CLIENT_NAME_CHARS_MAX} printable characters")
