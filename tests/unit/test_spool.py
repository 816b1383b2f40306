"""The spool: what was appended is there after anything short of losing the disk."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import (
    Entry,
    RejectedSegment,
    Spool,
    SpoolBroken,
    SpoolBusy,
    SpoolFull,
)
from durabill.producers.sdk.uplink import OrderTerms
from durabill.schemas import SegmentEvent
from tests.conftest import fill_up
from tests.waiting import wait_until

WRITER = """
import sys
from durabill.producers.sdk.reading import Reading
from durabill.producers.sdk.session import Session
from durabill.producers.sdk.spool import Spool
spool = Spool(sys.argv[1])
session = Session("SO1", 1_000_000, 10, Reading(0, 1_000_000, 0))
for tick in range(10, 10**9, 10):
    segments = session.report(Reading(tick, 1_000_000 + tick, 0))
    spool.append(segments, session.state)
    print(segments[-1].business_data_number, flush=True)
"""


def segment(number: int, order: str = "SO1") -> SegmentEvent:
    return SegmentEvent(order, number, number * 10, number * 10 + 10, False)


def state(next_number: int, order: str = "SO1", *, ended: bool = False) -> SessionState:
    return SessionState(order, 10, next_number, next_number * 10, ended)


def fill(spool: Spool, count: int, order: str = "SO1") -> None:
    for number in range(1, count + 1):
        spool.append([segment(number, order)], state(number + 1, order))


def numbers(spool: Spool) -> list[int]:
    return [entry.segment.business_data_number for entry in spool.oldest(10**6)]


def test_segments_come_out_as_they_went_in(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        last = SegmentEvent("日本/1", 2**63 - 1, 5, 5, True)
        spool.append([segment(1), segment(2)], state(3))
        spool.append([last], state(1, "日本/1", ended=True))
        assert [entry.segment for entry in spool.oldest(9)] == [segment(1), segment(2), last]
        assert [entry.segment for entry in spool.oldest(1)] == [segment(1)]
        assert (spool.pending(), spool.pending("SO1"), spool.pending("other")) == (3, 2, 0)


@pytest.mark.parametrize("held", [3, 700])
def test_orders_that_are_held_are_passed_over(tmp_path: Path, held: int) -> None:
    with Spool(tmp_path / "spool", fsync=False) as spool:
        for _ in range(2):
            for at in range(held):
                spool.append([segment(1, f"held{at}")], state(2, f"held{at}"))
            spool.append([segment(1, "good")], state(2, "good"))
        names = [f"held{at}" for at in range(held)]
        found = spool.oldest(10, without=names)
        assert {each.segment.service_order_number for each in found} == {"good"}
        assert len(found) == 2
        assert len(spool.oldest(1, without=names)) == 1


def test_all_of_it_is_there_after_reopening(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 3)
        ids = [entry.entry_id for entry in spool.oldest(9)]
        spool.acknowledge(ids[:1])
        spool.reject([RejectedSegment(ids[1], segment(2), "TOO_LATE", "by an hour")])
    with Spool(tmp_path / "spool") as spool:
        assert numbers(spool) == [3]
        assert spool.rejected() == [RejectedSegment(ids[1], segment(2), "TOO_LATE", "by an hour")]
        assert spool.sessions() == [state(4)]


def test_rejected_ones_can_be_sent_again(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 2)
        entry = spool.oldest(1)[0]
        spool.reject([RejectedSegment(entry.entry_id, entry.segment, "R", "")])
        assert [each.segment for each in spool.rejected("SO1")] == [segment(1)]
        assert spool.rejected("other") == []
        assert spool.retry_rejected() == 1
        assert numbers(spool) == [2, 1]
        assert spool.rejected() == []


def test_acknowledging_twice_hits_nothing_else(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 1)
        ids = [entry.entry_id for entry in spool.oldest(9)]
        spool.acknowledge(ids)
        spool.append([segment(2)], state(3))
        spool.acknowledge(ids)
        assert numbers(spool) == [2]


def test_an_ended_session_is_not_resumed(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.append([], state(1))
        spool.append([], state(1, "SO2"))
        assert [each.service_order_number for each in spool.sessions()] == ["SO1", "SO2"]
        spool.append([segment(1)], state(2, ended=True))
        assert spool.sessions() == [state(1, "SO2")]


def test_a_full_spool_says_so_and_stores_nothing_of_the_call(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", limit_bytes=64 * 1024, fsync=False) as spool:
        with pytest.raises(SpoolFull, match="nothing was stored"):
            fill(spool, 100_000)
        stored = spool.pending()
        assert numbers(spool) == list(range(1, stored + 1))
        assert spool.sessions() == [state(stored + 1)]
        many = [segment(number) for number in range(stored + 1, stored + 2_000)]
        with pytest.raises(SpoolFull):
            spool.append(many, state(stored + 2_000))
        assert spool.pending() == stored
        # Acknowledgements make room again.
        spool.acknowledge([entry.entry_id for entry in spool.oldest(stored // 2)])
        spool.append([segment(stored + 1)], state(stored + 2))
        assert numbers(spool)[-1] == stored + 1


def test_one_spool_at_a_time(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool"), pytest.raises(SpoolBusy, match="one process at a time"):
        Spool(tmp_path / "spool")
    Spool(tmp_path / "spool").close()


def test_a_file_that_is_no_spool_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are no segments " * 100)
    with pytest.raises(SpoolBroken):
        Spool(path)
    assert path.read_bytes() == b"these are no segments " * 100
    with pytest.raises(SpoolBroken):
        Spool(tmp_path / "no" / "such" / "folder")


def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = 0
        while said < 50:
            said = int(writer.stdout.readline())
        with pytest.raises(SpoolBusy):
            Spool(path)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        said = int(rest[-1]) if rest else said
    with Spool(path) as spool:
        stored = spool.pending()
        assert stored in (said, said + 1)  # it may have died between the commit and the word
        assert numbers(spool) == list(range(1, stored + 1))
        assert spool.sessions() == [
            SessionState("SO1", 10, stored + 1, 1_000_000 + 10 * stored, False)
        ]


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 30:
            pass
        writer.kill()
    log = path.with_name("spool-wal")
    os.truncate(log, log.stat().st_size - 1_000)
    with Spool(path) as spool:
        stored = spool.pending()
        assert stored > 0
        assert numbers(spool) == list(range(1, stored + 1))
        assert spool.sessions()[0].next_number == stored + 1


def test_a_disk_that_others_fill_loses_nothing(small_disk: Path) -> None:
    with Spool(small_disk / "spool") as spool:
        fill(spool, 50)
        others = fill_up(small_disk)
        with pytest.raises(SpoolFull, match="nothing was stored"):
            fill_on(spool, 51, 1_000_050, at_once=20)
        stored = spool.pending()
        assert numbers(spool) == list(range(1, stored + 1))
        assert spool.sessions() == [state(stored + 1)]
        # What the server has is removed all the same.
        spool.acknowledge([entry.entry_id for entry in spool.oldest(30)])
        assert numbers(spool) == list(range(31, stored + 1))
        others.unlink()
        spool.append([segment(stored + 1)], state(stored + 2))
        spool.acknowledge([])
    with Spool(small_disk / "spool") as spool:
        assert numbers(spool) == list(range(31, stored + 2))
        assert (small_disk / "spool-reserve").exists()


def fill_on(spool: Spool, first: int, last: int, at_once: int = 1) -> None:
    for number in range(first, last + 1, at_once):
        after = number + at_once
        spool.append([segment(each) for each in range(number, after)], state(after))


def test_a_disk_that_the_spool_has_filled_is_emptied_by_sending(small_disk: Path) -> None:
    others = fill_up(small_disk)
    os.truncate(others, others.stat().st_size - 2_500_000)
    others.rename(small_disk / "others")
    with Spool(small_disk / "spool", fsync=False) as spool:
        number = 1
        for _ in range(2):
            with pytest.raises(SpoolFull):
                fill_on(spool, number, number + 1_000_000, at_once=250)
            number = spool.sessions()[0].next_number
            while spool.pending():
                oldest = spool.oldest(5_000)
                refused = [RejectedSegment(oldest[0].entry_id, oldest[0].segment, "R", "")]
                spool.reject(refused)
                spool.acknowledge([entry.entry_id for entry in oldest[1:]])
            spool.append([segment(number)], state(number + 1))
            number += 1
        assert numbers(spool) == [number - 1]


@pytest.mark.parametrize("room", [None, 400_000, 250_000])
def test_empty_queue_on_a_full_disk_takes_segments_into_the_reserve(
    small_disk: Path, room: int | None
) -> None:
    """And is emptied again, for as long as it lasts, without a restart."""
    if room is not None:  # so that the reserve is a small one
        before = fill_up(small_disk)
        os.truncate(before, before.stat().st_size - room)
        before.rename(small_disk / "before")
    with Spool(small_disk / "spool") as spool:
        spool.append([], state(1))
        fill_up(small_disk)
        number = 1
        for _ in range(100):
            spool.append([segment(number)], state(number + 1))
            assert [number] == numbers(spool)
            spool.acknowledge([entry.entry_id for entry in spool.oldest(9)])
            number += 1
        for _ in range(2):
            with pytest.raises(SpoolFull):  # there is an end, and a way back from it
                fill_on(spool, number, number + 1_000_000, at_once=10)
            assert spool.pending() >= (100 if room is None else 1)
            number = spool.sessions()[0].next_number
            while spool.pending():
                spool.acknowledge([entry.entry_id for entry in spool.oldest(500)])
            spool.append([segment(number)], state(number + 1))
            assert [number] == numbers(spool)
            spool.acknowledge([entry.entry_id for entry in spool.oldest(9)])
            number += 1


def test_full_disk_without_a_reserve_heals_when_there_is_room(small_disk: Path) -> None:
    others = fill_up(small_disk)
    room = 15 * 4096  # less than a part of a reserve is, besides the file
    os.truncate(others, others.stat().st_size - room)
    with Spool(small_disk / "spool") as spool:
        assert not (small_disk / "spool-reserve").exists()
        with pytest.raises(SpoolFull):
            fill_on(spool, 1, 100_000)
        number = spool.pending() + 1
        with pytest.raises(SpoolFull):
            spool.append([segment(number)], state(number + 1))
        os.truncate(others, others.stat().st_size - room)
        spool.append([segment(number)], state(number + 1))
        assert list(range(1, number + 1)) == numbers(spool)
        others.unlink()
        spool.acknowledge([])
        assert (small_disk / "spool-reserve").exists()


def test_spool_that_is_full_of_refused_ones_says_so_and_is_emptied(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", limit_bytes=64 * 1024, fsync=False) as spool:
        with pytest.raises(SpoolFull) as told:
            fill_on(spool, 1, 100_000, at_once=10)
        assert "refused" not in str(told.value)
        refused = spool.pending()
        with pytest.raises(SpoolFull):  # words that are longer than all the room there is
            set_aside(spool, "d" * 500)
        assert refused == spool.pending() + spool.rejected_count()
        assert 1 <= spool.rejected_count() < 100
        set_aside(spool, "d")
        assert (0, refused) == (spool.pending(), spool.rejected_count())
        number = spool.sessions()[0].next_number
        with pytest.raises(SpoolFull, match=f"{refused} refused segments take room") as told:
            fill_on(spool, number, 100_000, at_once=100)
        assert spool.discard_rejected("other") == 0
        assert refused == spool.discard_rejected("SO1")
        number = spool.sessions()[0].next_number
        fill_on(spool, number, number + 10)


def test_refused_ones_have_room_in_a_full_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", limit_bytes=64 * 1024, fsync=False) as spool:
        with pytest.raises(SpoolFull):
            fill_on(spool, 1, 100_000)
        for entry in spool.oldest(20):
            spool.reject([RejectedSegment(entry.entry_id, entry.segment, "R", "d" * 500)])
        assert spool.rejected_count() == 20
        number = spool.sessions()[0].next_number
        with pytest.raises(SpoolFull):  # that room is for them alone
            fill_on(spool, number, number + 100, at_once=50)


def set_aside(spool: Spool, detail: str) -> None:
    spool.reject([RejectedSegment(e.entry_id, e.segment, "R", detail) for e in spool.oldest(10**6)])


def test_refused_ones_of_one_order_are_discarded(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        fill(spool, 2)
        fill(spool, 3, "SO2")
        set_aside(spool, "d")
        assert (
            spool.pending(),
            len(spool.rejected("SO1")),
            len(spool.rejected("SO2")),
        ) == (0, 2, 3)
        assert spool.discard_rejected("SO1") == 2
        assert spool.discard_rejected() == 3
        assert spool.rejected() == []


def test_no_query_numbers_its_placeholders() -> None:
    """With values in a sequence, Python 3.12.0 to 3.12.3 warn of that, and warnings are errors."""
    root = Path(__file__).parents[2]
    sources = [
        path for each in ("schemas", "producers", "deploy") for path in (root / each).rglob("*.py")
    ]
    users = [path for path in sources if "sqlite3" in path.read_text(encoding="utf-8")]
    assert "spool_file.py" in {path.name for path in users}
    users += [path for path in sources if "spool" in path.name]
    assert [path for path in users if re.search(r"[?]\d", path.read_text(encoding="utf-8"))] == []


def test_threads_that_append_at_once_are_committed_together(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        before = spool.commit_counts()[0]
        with spool._mutex:  # somebody commits just now
            threads = [
                threading.Thread(
                    target=spool.append, args=([segment(1, f"SO{n}")], state(2, f"SO{n}"))
                )
                for n in range(50)
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: len(spool._waiting) == 50, "all wait")
        for thread in threads:
            thread.join()
        assert spool.commit_counts()[0] == before + 1
        assert len({each.segment.service_order_number for each in spool.oldest(99)}) == 50


def test_one_that_does_not_fit_spoils_no_other(tmp_path: Path) -> None:
    """Of entries that are committed together, each of which is some thread's own."""
    with Spool(tmp_path / "spool", limit_bytes=64 * 1024, fsync=False) as spool:
        huge = [segment(at, "huge") for at in range(1, 5_000)]
        failed = list[Exception]()

        def store(segments: list[SegmentEvent], after: SessionState) -> None:
            try:
                spool.append(segments, after)
            except SpoolFull as error:
                failed.append(error)

        with spool._mutex:
            threads = [threading.Thread(target=store, args=(huge, state(5_000, "huge")))]
            threads += [
                threading.Thread(target=store, args=([segment(1, f"SO{n}")], state(2, f"SO{n}")))
                for n in range(9)
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: len(spool._waiting) == 10, "all wait")
        for thread in threads:
            thread.join()
        assert (len(failed), spool.pending(), spool.pending("huge")) == (1, 9, 0)
        assert spool.session("huge") is None


def test_lease_stays_until_the_last_segment_is_gone(tmp_path: Path) -> None:
    terms = OrderTerms("a.b.c", 10**13)
    with Spool(tmp_path / "spool") as spool:
        spool.append_all([Entry([segment(1), segment(2)], state(3, ended=True), terms)])
        assert (spool.sessions(), spool.session("SO1"), spool.terms("SO1")) == ([], None, terms)
    with Spool(tmp_path / "spool") as spool:
        assert (spool.sessions(), spool.terms("SO1")) == ([], terms)
        first, second = spool.oldest(9)
        spool.acknowledge([first.entry_id])
        spool.reject([RejectedSegment(second.entry_id, second.segment, "R", "")])
        assert terms == spool.terms("SO1")  # it may be sent once more
        newer = OrderTerms("d.e.f", 10**13)
        spool.keep_terms({"SO1": newer, "unknown": newer})
        assert spool.retry_rejected() == 1
        assert newer == spool.terms("SO1")
        spool.acknowledge([each.entry_id for each in spool.oldest(9)])
        assert OrderTerms() == spool.terms("SO1")
