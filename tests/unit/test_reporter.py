"""The reporter: what is due in one moment is one commit; ten thousand services cost no scan."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from durabill.producers.sdk import threads
from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.reporter import AT_ONCE_MAX, Reporter
from durabill.producers.sdk.service import EndReceipt, Owner, Service
from durabill.producers.sdk.session import Session
from durabill.producers.sdk.spool import Entry, Spool, SpoolFull
from tests.waiting import wait_until

NOW_MS = 1_770_000_000_000


class World:
    """A reporter over a spool, with a clock that the test moves."""

    def __init__(self, path: Path, *, limit_bytes: int = 2**26) -> None:
        self.now_ms = NOW_MS
        self.trouble: list[Exception] = []
        self.spool = Spool(path, limit_bytes=limit_bytes, fsync=False)
        self.reporter = Reporter(lambda: self.now_ms, self.spool, lambda: None, self.trouble.append)
        self.owner = Owner(
            lambda: None, self.reading, self.spool.append, self.spool.state, self.never
        )

    def reading(self) -> Reading:
        return Reading(self.now_ms, self.now_ms, 0, 0, 0, 0, 0)

    @staticmethod
    def never(_: Service, __: float) -> EndReceipt:
        raise AssertionError

    def start(self, number: str, interval_ms: int = 10_000) -> Service:
        session = Session(number, self.now_ms, interval_ms, self.reading())
        service = Service(session, self.owner)
        self.spool.append([], session.state)
        self.reporter.add(service)
        return service

    def turn(self) -> None:
        """Do what the reporter's thread does when it wakes up."""
        due = self.reporter._due(is_whole=True)
        self.reporter.report(due)
        for service in due:
            self.reporter._push(service)

    def commits(self) -> int:
        return self.spool.commit_counts()[0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "spool")


def test_what_is_due_in_a_moment_is_one_commit(world: World) -> None:
    count = 2 * AT_ONCE_MAX + 1
    for at in range(count):
        world.start(f"SO{at}")
    before = world.commits()
    world.turn()
    assert (world.commits(), world.spool.pending()) == (before, 0)
    world.now_ms += 10_250
    world.turn()
    assert (world.commits() - before, world.spool.pending()) == (3, count)
    world.turn()
    assert world.spool.pending() == count
    world.now_ms += 10_000
    world.turn()
    assert world.spool.pending() == 2 * count


def test_a_late_cut_changes_no_segment(world: World) -> None:
    service = world.start("SO1")
    world.now_ms += 10_249
    world.turn()
    (entry,) = world.spool.oldest(9)
    assert (entry.segment.start_ms, entry.segment.end_ms) == (NOW_MS, NOW_MS + 10_000)
    assert service.due_at_ms() == NOW_MS + 20_000


def test_clock_that_is_set_makes_nobody_wait(world: World) -> None:
    """Back by hours, and on: each service is due by the new time."""
    world.start("SO1")
    world.now_ms += 10_250
    world.turn()
    assert world.spool.pending() == 1
    assert world.reporter._wait_s() is not None
    world.now_ms += 5 * 3_600_000
    world.turn()
    assert world.spool.pending() == 2


def test_service_that_has_ended_is_reported_no_longer(world: World) -> None:
    world.start("SO1")
    world.reporter.remove("SO1")
    world.now_ms += 60_000
    assert world.reporter._due(is_whole=True) == []
    assert (len(world.reporter), "SO1" in world.reporter) == (0, False)


def test_full_spool_takes_as_many_as_there_is_room_for(tmp_path: Path) -> None:
    """The others take their cut back, and cut the same time again, as one longer segment."""
    world = World(tmp_path / "spool", limit_bytes=64 * 1024)
    services = [world.start(f"SO{at}") for at in range(200)]
    while not world.trouble:
        world.now_ms += 10_250
        world.turn()
    assert isinstance(world.trouble[0], SpoolFull)
    world.spool.acknowledge([each.entry_id for each in world.spool.oldest(10_000)])
    stored = {each.service_order_number: each for each in world.spool.sessions()}
    for service in services:
        assert service.state == stored[service.service_order_number]
    world.now_ms += 10_250
    world.turn()
    assert world.spool.pending() == 200
    ends = {each.segment.end_ms - each.segment.start_ms for each in world.spool.oldest(1_000)}
    assert max(ends) >= 20_000  # some have waited


def test_whoever_is_told_may_use_the_services(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_error` is called when no service is locked: it may well end one."""
    service, was_locked = world.start("SO1"), list[bool]()
    world.reporter._tell = lambda _: was_locked.append(service._mutex.locked())
    monkeypatch.setattr(service._session, "report", lambda _: 1 / 0)
    world.now_ms += 10_250
    world.turn()
    assert was_locked == [False]


def test_starts_survive_a_power_cut_soon(world: World) -> None:
    world.spool.append_all([], durable=False)
    assert world.spool.sync_due_s() is not None
    before = world.commits()
    world.spool.sync()
    assert world.commits() == before + 1
    assert world.spool.sync_due_s() is None


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("is_told", [True, False])
def test_no_number_is_given_twice_where_nobody_knows_what_was_stored(
    world: World, monkeypatch: pytest.MonkeyPatch, is_stored: bool, is_told: bool
) -> None:
    """An error behind the commit; what was stored is asked for, now or once that can be told."""
    service = world.start("SO1", 1_000)
    store, state = world.spool.append_all, world.spool.state

    def fails(entries: Sequence[Entry]) -> None:
        if is_stored:
            store(entries)
        raise MemoryError

    def untold(_: str) -> None:
        raise MemoryError

    world.now_ms += 1_000
    with monkeypatch.context() as patch:
        patch.setattr(world.spool, "append_all", fails)
        if not is_told:
            world.owner = service._owner = Owner(
                lambda: None, world.reading, world.spool.append, untold, world.never
            )
        world.turn()
    service._owner = Owner(lambda: None, world.reading, world.spool.append, state, world.never)
    for _ in range(3):
        world.now_ms += 1_000
        world.turn()
    segments = [each.segment for each in world.spool.oldest(99)]
    assert [each.business_data_number for each in segments] == list(range(1, len(segments) + 1))
    assert [each.start_ms for each in segments[1:]] == [each.end_ms for each in segments[:-1]]
    assert segments[-1].end_ms - segments[0].start_ms == 4_000


@pytest.mark.parametrize("part", ["_due", "_keep", "_push", "report"])
def test_no_memory_for_a_while_ends_no_metering(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    services = [world.start(f"SO{at}", 1_000) for at in range(3)]
    act: Callable[..., object] = getattr(world.reporter, part)
    failed: list[str] = []

    def fails(*args: object) -> object:
        if len(failed) < 2:
            failed.append(part)
            raise MemoryError
        return act(*args)

    monkeypatch.setattr(threads, "_PAUSE_S", 0.01)
    monkeypatch.setattr(world.reporter, part, fails)
    thread = threading.Thread(target=world.reporter.run)
    world.now_ms += 1_000
    thread.start()

    def are_metered() -> bool:
        world.now_ms += 100
        return all(each.state.next_number > 2 for each in services)

    try:
        wait_until(are_metered, "all are metered")
        assert len(failed) == 2
    finally:
        world.reporter.stop()
        thread.join()
