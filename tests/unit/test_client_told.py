"""Whoever is told of trouble may use the client: no lock of the SDK is held meanwhile."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.service import Service
from durabill.producers.sdk.spool import Entry, SpoolDamaged
from durabill.producers.sdk.teller import Teller
from durabill.producers.sdk.timekeeper import ClockStepped
from tests.broker.test_client import QUICK, Uplink
from tests.waiting import HANG_S

Act = Callable[[Client, Service], object]


class Told:
    """An `on_error` that does something with the client, once, when it is told of `kind`."""

    def __init__(self, kind: type[Exception], act: Act) -> None:
        self._kind, self._act = kind, act
        self.client: Client | None = None
        self.service: Service | None = None
        self.is_done = threading.Event()
        self.raised: list[Exception] = []

    def __call__(self, error: Exception) -> None:
        if not isinstance(error, self._kind) or self.service is None or self.client is None:
            return
        client, self.client = self.client, None
        try:
            self._act(client, self.service)
        except Exception as raised:
            self.raised.append(raised)
        self.is_done.set()


ACTS: dict[str, Act] = {
    "stats": lambda client, _: client.stats(),
    "end": lambda _, service: service.end(),
    "close": lambda client, _: client.close(),
    "flush and start": lambda client, _: (client.flush(), client.start("SO9")),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("notice", [SpoolDamaged("damaged"), ClockStepped(5)], ids=["disk", "time"])
def test_on_error_may_use_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Act, notice: Exception
) -> None:
    """A damaged file, found in the commit of segments; a step of the clock, seen by their cut."""
    told = Told(type(notice), act)
    ended = threading.Event()

    def run() -> None:
        with Client(Uplink(), tmp_path / "spool", backoff=QUICK, on_error=told) as client:
            service = client.start()
            store, keeper = client._spool.append_all, client._time

            def damaged(entries: Sequence[Entry], *, durable: bool = True) -> None:
                with client._spool._mutex:
                    if isinstance(notice, SpoolDamaged):
                        client._damaged(notice)
                    elif not keeper._notices:
                        keeper._notices.append(ClockStepped(5))
                        client._time.read()
                store(entries, durable=durable)

            told.service, told.client = service, client
            monkeypatch.setattr(client._spool, "append_all", damaged)
            told.is_done.wait(HANG_S)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert told.is_done.wait(HANG_S)
    assert ended.wait(HANG_S)
    assert told.raised == []


def test_what_came_up_under_locks_is_told_first_and_once() -> None:
    told: list[str] = []

    def on_error(error: Exception) -> None:
        told.append(str(error))
        teller.tell_waiting()  # as every call of a client does
        told.append(f"/{error}")

    teller = Teller(on_error)
    teller.later(ValueError("a"))
    assert told == []
    teller.now(ValueError("b"))
    teller.tell_waiting()
    assert told == ["a", "/a", "b", "/b"]


def test_on_error_that_ends_a_thread_does_not_silence_the_teller() -> None:
    told: list[Exception] = []

    def on_error(error: Exception) -> None:
        told.append(error)
        if len(told) == 1:
            raise SystemExit

    teller = Teller(on_error)
    with pytest.raises(SystemExit):
        teller.now(ValueError("a"))
    teller.now(ValueError("b"))
    assert [str(each) for each in told] == ["a", "b"]
