"""A signal handler that raises in the main thread, behind a commit, stops and loses nothing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.spool_file import SpoolFile
from durabill.schemas import SegmentEvent
from tests.broker.test_client import QUICK, Uplink
from tests.waiting import wait_until

OWN_THREADS = {"durabill-reporter", "durabill-sender"}


class Interrupted(BaseException):
    """What the handler raises."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A list: while it is not empty, the next commit is followed by a signal at once."""

    def handler(*_: object) -> None:
        raise Interrupted

    armed, commit = list[bool](), SpoolFile.commit

    def then_signal(self: SpoolFile, change: Callable[[], object], *, durable: bool = True) -> None:
        commit(self, change, durable=durable)
        if armed and threading.current_thread().name not in OWN_THREADS:
            armed.clear()
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(SpoolFile, "commit", then_signal)
    before = signal.signal(signal.SIGUSR1, handler)
    yield armed
    signal.signal(signal.SIGUSR1, before)


def interrupted(act: Callable[[], object], armed: list[bool]) -> None:
    """Do something, with a signal behind the first commit of it."""
    armed.append(True)
    act()
    signal.pause()


@pytest.mark.parametrize("act", ["start", "end"])
def test_a_signal_behind_a_commit_stops_nothing(
    tmp_path: Path, interrupt: list[bool], act: str
) -> None:
    uplink, told = Uplink(), list[Exception]()
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=told.append) as client:
        running, other = client.start("SO1"), client.start("SO3")
        acts: dict[str, Callable[[], object]] = {
            "start": lambda: client.start("SO2"),
            "end": lambda: other.end(timeout_s=0.0),
        }
        with pytest.raises(Interrupted):
            interrupted(acts[act], interrupt)
        number = running.state.next_number
        wait_until(lambda: running.state.next_number > number, "it is metered on")
        for service in (client.start("SO4"), other, running):
            assert service.end().acknowledged
    assert told == []
    sent: dict[tuple[str, int], SegmentEvent] = {}
    for each in uplink.got:
        key = each.service_order_number, each.business_data_number
        assert sent.setdefault(key, each) == each
    ended = {number for (number, _), each in sent.items() if each.end_identifier}
    assert ended >= {"SO1", "SO3", "SO4"}
    with Client(Uplink(), tmp_path / "spool") as client:
        assert client.unfinished() == []


def test_an_order_whose_start_was_interrupted_is_ended(
    tmp_path: Path, interrupt: list[bool]
) -> None:
    """Nobody has the service: it must not be billed for ever."""
    uplink = Uplink()
    with Client(uplink, tmp_path / "spool", backoff=QUICK) as client:
        with pytest.raises(Interrupted):
            interrupted(lambda: client.start("SO2"), interrupt)
        wait_until(lambda: any(each.end_identifier for each in uplink.got), "it has ended")
