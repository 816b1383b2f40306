"""A spool whose file isn't what was written: put aside, read as far as possible, told."""

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from durabill.producers.sdk.spool import Entry, Spool, SpoolBroken, SpoolDamaged
from durabill.producers.sdk.uplink import OrderTerms
from tests.unit.test_spool import fill, numbers, segment, state

TERMS = OrderTerms("a.b.c", 10**13, 10**13, 86_400_000)


def filled(path: Path, orders: int = 40, each: int = 60) -> dict[str, int]:
    """A spool with segments, closed; returns what each order has."""
    with Spool(path, fsync=False) as spool:
        for at in range(each):
            spool.append_all(
                [
                    Entry([segment(at + 1, f"SO{n}")], state(at + 2, f"SO{n}"), TERMS)
                    for n in range(orders)
                ]
            )
    return {f"SO{n}": each for n in range(orders)}


def healed(path: Path, told: list[SpoolDamaged]) -> Spool:
    return Spool(path, on_damage=told.append)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4_096, b"these are no segments " * 100])
def test_file_that_is_no_spool_any_more_is_put_aside(tmp_path: Path, garbage: bytes) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    path.write_bytes(garbage)
    with healed(path, told) as spool:
        fill(spool, 2)
        assert numbers(spool) == [1, 2]
    if not garbage:  # an empty file is a new spool
        assert told == []
        return
    (error,) = told
    assert str(tmp_path / "spool.damaged-1") in str(error)
    assert "may be lost" in str(error)
    assert (tmp_path / "spool.damaged-1").read_bytes() == garbage
    with Spool(path) as spool:
        assert numbers(spool) == [1, 2]


def test_first_page_may_be_gone(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    filled(path)
    with open(path, "r+b") as file:
        file.write(random.Random(1).randbytes(1_024))
    with healed(path, told) as spool:
        assert spool.pending() == 2_400
        assert len(spool.sessions()) == 40
        assert spool.terms("SO7") == TERMS
    assert "2400 waiting and 0 refused segments and 40 services were read" in str(told)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_damaged_nothing_wrong_comes_out(tmp_path: Path, seed: int) -> None:
    """Pages overwritten, bits flipped, the file cut off: what is left is as it was."""
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    counts = filled(path)
    dice = random.Random(seed)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for _ in range(dice.randint(1, 5)):
            file.seek(dice.randrange(size))
            file.write(dice.randbytes(dice.choice([1, 8, 1_024])))
        if dice.random() < 0.3:
            file.truncate(size - dice.randrange(size // 2))
    with healed(path, told) as spool:
        fill(spool, 3, "new")
        found = spool.oldest(10_000)
        assert len(found) == spool.pending()
        for each in found:
            number = each.segment.service_order_number
            assert 1 <= each.segment.business_data_number <= counts.get(number, 3)
            assert each.segment == segment(each.segment.business_data_number, number)
        spool.acknowledge([each.entry_id for each in found])
        assert spool.pending() == 0
        assert {each.next_number for each in spool.sessions()} <= {61, 4}
    assert len(told) <= 2


def test_damage_while_it_is_open_costs_no_running_service(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    filled(path)
    with healed(path, told) as spool:
        in_hand = spool.oldest(5)
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.write(b"\xff" * size)
        spool._file.db.execute("PRAGMA shrink_memory")
        # SQLite notices when it reads or writes a page anew.
        for number in range(61, 200):
            spool.append([segment(number, "SO1")], state(number + 1, "SO1"))
        spool.oldest(10_000)
        assert told
        assert len(spool.sessions()) == 40
        assert spool.session("SO1") == state(200, "SO1")
        assert spool.terms("SO1") == TERMS
        spool.acknowledge([each.entry_id for each in in_hand])
        spool.append([segment(200, "SO1")], state(201, "SO1"))
        assert numbers(spool)[-1] == 200
    assert "SO1" in {each.service_order_number for each in Spool(path).sessions()}


def test_row_that_was_changed_is_never_sent(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    filled(path, 1, 3)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE pending SET end_ms = end_ms + 1000 WHERE id = 2")
    with pytest.raises(SpoolDamaged, match="isn't what was written"), Spool(path) as spool:
        spool.oldest(9)
    with healed(path, told) as spool:
        assert numbers(spool) == [1, 3]
    assert "1 rows can't be read" in str(told)


def test_what_cannot_be_a_spool_is_refused(tmp_path: Path) -> None:
    told = list[SpoolDamaged]()
    with pytest.raises(SpoolBroken):
        healed(tmp_path / "no" / "such", told)
    with Spool(tmp_path / "spool") as spool:
        spool._file.db.execute("PRAGMA user_version=77")
    with pytest.raises(SpoolBroken, match="format 77"):
        healed(tmp_path / "spool", told)
    assert told == []
    assert [each.name for each in tmp_path.iterdir() if "damaged" in each.name] == []


def test_file_that_somebody_removes_is_saved(tmp_path: Path) -> None:
    path, told = tmp_path / "spool", list[SpoolDamaged]()
    with healed(path, told) as spool:
        fill(spool, 5)
        spool.look_after()
        assert told == []
        for each in tmp_path.iterdir():
            each.unlink()
        spool.append([segment(6)], state(7))
        spool.look_after()
        assert "somebody has removed" in str(told)
        assert "6 waiting and 0 refused segments and 1 services were read" in str(told)
        spool.append([segment(7)], state(8))
    with Spool(path) as spool:
        assert numbers(spool) == [1, 2, 3, 4, 5, 6, 7]
        assert spool.sessions() == [state(8)]


FORMAT_1 = """
CREATE TABLE pending (id INTEGER PRIMARY KEY AUTOINCREMENT,
    service_order_number TEXT NOT NULL, business_data_number INTEGER NOT NULL,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, end_identifier INTEGER NOT NULL);
CREATE INDEX pending_by_order ON pending (service_order_number);
CREATE TABLE rejected (id INTEGER PRIMARY KEY,
    service_order_number TEXT NOT NULL, business_data_number INTEGER NOT NULL,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, end_identifier INTEGER NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE sessions (service_order_number TEXT PRIMARY KEY,
    report_interval_ms INTEGER NOT NULL, next_number INTEGER NOT NULL,
    reported_until_ms INTEGER NOT NULL, ended INTEGER NOT NULL);
INSERT INTO pending VALUES (3, 'SO1', 3, 30, 40, 0), (4, 'SO2', 1, 10, 20, 1);
INSERT INTO rejected VALUES (2, 'SO1', 2, 20, 30, 0, 'R', 'd');
INSERT INTO sessions VALUES ('SO1', 10, 4, 40, 0), ('SO3', 10, 1, 10, 0);
PRAGMA user_version=1;
"""


def test_spool_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FORMAT_1)
    for _ in range(2):
        with Spool(path) as spool:
            assert [(e.entry_id, e.segment) for e in spool.oldest(9)] == [
                (3, segment(3)),
                (4, replace(segment(1, "SO2"), end_identifier=True)),
            ]
            assert [each.segment for each in spool.rejected()] == [segment(2)]
            assert spool.sessions() == [state(4), state(1, "SO3")]
    with Spool(path) as spool:
        spool.append([segment(4)], state(5))
        spool.acknowledge([3, 4])
        assert numbers(spool) == [4]
        assert spool.retry_rejected() == 1
    with Spool(path) as spool:
        assert numbers(spool) == [4, 2]


FORK = """
import os, sys
from durabill.producers.sdk.spool import Spool, SpoolBusy
from tests.unit.test_spool import fill, numbers, segment, state
spool = Spool(sys.argv[1])
fill(spool, 3)
if os.fork() == 0:
    try:
        spool.append([segment(4)], state(5))
    except SpoolBusy:
        spool.close()
        sys.exit(0)  # Python clears up all that it has, connections too
    os._exit(3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
spool.append([segment(4)], state(5))
assert numbers(spool) == [1, 2, 3, 4]
os._exit(0)
"""


def test_fork_of_the_process_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, str(path)], check=True)
    with Spool(path) as spool:
        assert numbers(spool) == [1, 2, 3, 4]
