"""Receipts are kept in little room until the total is out: what goes first, and what is told."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.sdk.receipt_clerk import ReceiptClerk
from durabill.producers.sdk.receipt_pack import packed, unpacked
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.spool_errors import ReceiptsDropped
from durabill.producers.sdk.spool_receipts import KEPT_MS
from durabill.producers.sdk.standing import ServerNow, Standing
from durabill.producers.sdk.timekeeper import Timekeeper
from durabill.producers.sdk.uplink import UplinkRefused, UplinkUnavailable
from durabill.schemas import SegmentEvent
from durabill.schemas.upload_receipt import Statement, receipts_of, upload_of

KIB = 1024


def receipts(*orders: str, count: int = 1, seed: int = 0) -> list[str]:
    """Return as many receipts as a gateway would sign, of uploads with a segment an order."""
    dice = random.Random(seed)
    statements = [
        Statement(
            "default",
            "",
            "segments",
            tuple(
                upload_of(each, 2, (8_120_000 + at, 8_120_000 + at), [at], [dice.randbytes(40)])
                for each in orders
            ),
            dice.randbytes(16).hex(),
        )
        for at in range(1, count + 1)
    ]
    return [
        each
        for at, statement in enumerate(statements)
        for each in receipts_of(
            [statement], 1_735_689_600_000 + at * 10_000, "k3n9w5m2", lambda _: dice.randbytes(64)
        )
    ]


def segment(number: int, order: str = "SO1") -> SegmentEvent:
    return SegmentEvent(order, number, number * 10, number * 10 + 10, False)


def state(next_number: int, order: str = "SO1", *, ended: bool = False) -> SessionState:
    return SessionState(order, 10, next_number, next_number * 10, ended)


def kept(spool: Spool, *orders: str) -> list[str]:
    return [each for each in orders if spool.receipts(each)]


def keep_all(spool: Spool, texts: list[str], kept_ms: int = 0) -> None:
    for each in texts:
        spool.acknowledge([], each, kept_ms=kept_ms)


@given(st.lists(st.text(alphabet=".~LR-_Aab9=\n:é", max_size=30), min_size=1, max_size=5))
def test_a_block_gives_back_what_went_in(texts: list[str]) -> None:
    assert unpacked(packed(texts)) == texts


def test_a_receipt_takes_little_room() -> None:
    texts = receipts("01JGF8ZP3V7K1Q2W3E4R5T6Y7U", count=64)
    block = packed(texts)
    assert isinstance(block, bytes)
    assert unpacked(block) == texts
    assert len(block) / 64 < 220 < 550 < len(texts[0])
    assert len(packed(texts[:1])) < 340


def test_a_damaged_block_gives_nothing_wrong(tmp_path: Path) -> None:
    texts = receipts("SO1", "SO2")
    block = packed(texts)
    assert isinstance(block, bytes)
    for at in range(len(block)):
        with pytest.raises(ValueError, match="block of receipts"):
            unpacked(block[:at])
        with suppress(ValueError):  # some bits of a compressed text say nothing
            flipped = bytes([block[at] ^ 0x10])
            assert unpacked(block[:at] + flipped + block[at + 1 :]) == texts


def test_receipts_are_pressed_together_and_found_again(tmp_path: Path) -> None:
    texts = receipts("SO1", count=150) + receipts("SO2", count=50)
    with Spool(tmp_path / "spool", fsync=False) as spool:
        keep_all(spool, texts)
        assert spool.receipts() == texts
        assert spool.receipts_size()[0] < 250 * len(texts)
    with Spool(tmp_path / "spool", fsync=False) as spool:
        assert spool.receipts("SO2") == texts[150:]
        keep_all(spool, receipts("SO3", count=80))
        assert spool.receipts()[:200] == texts
        assert len(spool.receipts("SO3")) == 80


def test_what_is_no_receipt_at_all_is_not_kept(tmp_path: Path) -> None:
    odd = ["no.receipt", "A" * 20_000, "e~" + "W" * 300_000]
    with Spool(tmp_path / "spool", fsync=False) as spool:
        keep_all(spool, [*odd, "\0", "é", "\ud800", "x\ny"])
        assert spool.receipts() == odd
        assert spool.receipts("SO1") == []
    with Spool(tmp_path / "spool", fsync=False) as spool:
        assert spool.receipts() == odd


def test_without_room_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    texts = receipts("SO1", count=900)
    with Spool(tmp_path / "spool", limit_bytes=256 * KIB, fsync=False) as spool:
        keep_all(spool, texts)
        left = spool.receipts()
        assert left == texts[-len(left) :]
        size_bytes, dropped = spool.receipts_size()
        assert (size_bytes <= 128 * KIB, dropped) == (True, 900 - len(left))
        assert len(left) > 500
        keep_all(spool, ["r." + random.Random(1).randbytes(150_000).hex()])
        assert spool.receipts_size()[1] == dropped + 1


def test_no_receipt_goes_for_its_age_alone(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", fsync=False) as spool:
        keep_all(spool, receipts("SO1") + receipts("SO2"))
        first = spool.receipts_in_doubt(0, KEPT_MS + 1)
        assert first is not None
        spool.settle_receipts(first[0])
        keep_all(spool, receipts("SO3"), KEPT_MS)
        assert kept(spool, "SO1", "SO2", "SO3") == ["SO1", "SO2", "SO3"]
        keep_all(spool, receipts("SO3"), KEPT_MS + 1)
        assert kept(spool, "SO1", "SO2", "SO3") == ["SO2", "SO3"]
        assert spool.receipts_size()[1] == 0


def test_receipts_whose_total_is_out_go_first(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", limit_bytes=128 * KIB, fsync=False) as spool:
        keep_all(spool, receipts("old", count=64) + receipts("settled", count=64))
        found = spool.receipts_in_doubt(0, KEPT_MS + 1)
        assert found is not None
        later = spool.receipts_in_doubt(found[0], KEPT_MS + 1)
        assert later is not None
        assert later[1] == {"settled"}
        spool.settle_receipts(later[0])
        spool.settle_receipts(10**9)
    with Spool(tmp_path / "spool", limit_bytes=128 * KIB, fsync=False) as spool:
        for at in range(100):
            if not kept(spool, "settled"):
                break
            keep_all(spool, receipts("new", seed=at, count=20))
        assert kept(spool, "settled") == []
        assert kept(spool, "old") == ["old"]
        assert spool.receipts_size()[1] == 0


def test_segments_take_the_room_of_receipts(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", limit_bytes=128 * KIB, fsync=False) as spool:
        keep_all(spool, receipts("SO1", count=300))
        assert spool.receipts_size()[0] > 50 * KIB
        last = 0
        while spool.receipts_size()[0] > 16 * KIB:
            assert last < 5_000
            spool.append([segment(last + each) for each in range(1, 21)], state(last + 21))
            last += 20
        assert spool.pending() == last
        assert spool.receipts("SO1")[-1] == receipts("SO1", count=300)[-1]
        assert spool.receipts_size()[1] > 0


class Totals:
    """A server that has the totals of some orders, and counts the questions."""

    def __init__(self) -> None:
        self.out: set[str] = set()
        self.asked: list[str] = []
        self.error: Exception | None = None

    def total_is_out(self, service_order_number: str, *, timeout_s: float | None = None) -> bool:
        self.asked.append(service_order_number)
        if self.error is not None:
            raise self.error
        return service_order_number in self.out


def timekeeper() -> Timekeeper:
    return Timekeeper(None, suspends="exclude", drift_ppm=0, absent_us=10**9, tell=print)


def clerk(spool: Spool, totals: Totals, now_ms: Callable[[], int]) -> ReceiptClerk:
    now = ServerNow(timekeeper(), spool)
    now.now_ms = now_ms  # type: ignore[method-assign]
    return ReceiptClerk(spool, totals, now, lambda: 0.0)  # type: ignore[arg-type]


def test_the_clerk_asks_for_old_receipts_of_orders_that_have_ended(tmp_path: Path) -> None:
    totals, at_ms = Totals(), [0]
    totals.out = {"SO1"}
    with Spool(tmp_path / "spool", fsync=False) as spool:
        spool.append([], state(1, "runs"))
        keep_all(spool, receipts("SO1") + receipts("runs") + receipts("SO1", "SO2"))
        clerks = clerk(spool, totals, lambda: at_ms[0])
        for minute in range(200):
            clerks.look(minute * 60.0)
        assert totals.asked == []  # there is room, and they are young
        at_ms[0] = 2 * KEPT_MS
        for minute in range(200, 300):
            clerks.look(minute * 60.0)
        assert totals.asked[:2] == ["SO1", "SO2"]
        assert set(totals.asked[2:]) <= {"SO2"}  # one that is out isn't asked for again
        keep_all(spool, receipts("runs"), at_ms[0])
        assert len(spool.receipts("SO1")) == 1
        totals.out.add("SO2")
        for minute in range(300, 500):
            clerks.look(minute * 60.0)
        keep_all(spool, receipts("runs"), at_ms[0])
        assert kept(spool, "SO1", "SO2", "runs") == ["runs"]


@pytest.mark.parametrize(
    ("error", "questions"),
    [
        (UplinkRefused("INSUFFICIENT_SCOPE", ""), 1),
        (UplinkUnavailable("away"), 15),
        (UplinkUnavailable("busy", float("inf")), 1),
        (UplinkRefused("NOT_FOUND", ""), 27),
    ],
)
def test_the_clerk_asks_seldom_where_it_gets_no_answer(
    tmp_path: Path, error: Exception, questions: int
) -> None:
    totals = Totals()
    totals.error = error
    with Spool(tmp_path / "spool", fsync=False) as spool:
        keep_all(spool, [each for at in range(9) for each in receipts(f"SO{at}")])
        clerks = clerk(spool, totals, lambda: 2 * KEPT_MS)
        for second in range(0, 9_000, 10):
            clerks.look(float(second))
        assert 1 <= len(totals.asked) <= questions
        assert len(spool.receipts()) == 9


def test_dropped_receipts_are_told_once_a_day(tmp_path: Path) -> None:
    told: list[Exception] = []
    with Spool(tmp_path / "spool", limit_bytes=64 * KIB, fsync=False) as spool:
        standing = Standing(spool, timekeeper(), "", told.append)
        dropped = []
        for at_s in (0.0, 40.0, 80_000.0, 90_000.0, 180_000.0):
            standing.look(at_s)
            dropped.append(spool.receipts_size()[1])
            if at_s < 90_000.0:
                keep_all(spool, receipts("SO1", count=300))
        stats = standing.stats()
    assert [each.count for each in told if isinstance(each, ReceiptsDropped)] == [
        dropped[1],
        dropped[3],
    ]
    assert len(told) == 2
    assert (stats.receipts_dropped, stats.receipt_bytes <= 32 * KIB) == (dropped[-1], True)
