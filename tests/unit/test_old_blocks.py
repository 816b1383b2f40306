"""Checkpoint blocks that the version before wrote: the bytes themselves, and what they become."""

import base64

import pytest

from durabill.schemas import OWN_SCHEMA_ONLY, OrderTotal, decode_total
from durabill.stream_processors.core.order import Order, Phase, Policy
from durabill.stream_processors.engine.blocks import PLAIN_VERSION, decode_block
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.plain import PlainTable
from durabill.stream_processors.engine.table import Effects, IntervalTable, Place

NOW_MS = 1_700_000_000_000
POLICY = Policy(30_000, 300_000, 86_400_000, 40_000)

OLD_PLAIN = base64.b64decode(
    "ASi1L/1guwINEAAW4Ws6UGvTBkCAARnunI0zCapUP831xSLAZonGWVsXAGSSNkdhEx4gL2TTMGlzZXd//GFIHaJz"
    "v9sIYmRyB18AXgBVAJI0kUjKfuUvloeAYUFqwnCDf/1eCZllXb1dy85Nnys/o93e2ptSUseP1su6r3XH2M5rebIX"
    "bZZqoCGCAwUlgYUFhcEFiLUgS8pAqIsOHxKWUh9SRtnP2Nh4jQsKUlOFDSn0+16NHO2jDrZHmzVAM+FDBWWBgg4J"
    "zRORmFQwqAN6oPIXSwZIbM62uXkZbOiP3XUyNsikUzqfNfvsLHP7lFOyZ41lW/pix2nhv442CwJ64OGDooLiMYE4"
    "EUeCrLJZQgkhdTq/MThlu2XMUQcne581NvpfXUI3Ybx82W3a5pVxsmbRZjkRggLPszSQJWUejIvFLTiQmjDPNdaM"
    "HbNsHttO6eR8PZnfWlvrBqW3xrTW92YYDiVgIvJEJpytvAcASE0YDhWxQTJxNM6SMpLKXywdD6QmjGt+Gx9l1Om/"
    "1/7Ktjmlbn71vnD2O3b21c5mIe3nti1tdceS/6PNeigYIDCRaHyG5cIjAqkpgBMh2iAAoBMgB9wDBJtM8BdeB4M5"
    "RjZLR8rk4F4VgDggGFWzxAAygzlG3UvFpoYCcsA9IJjKCEVgRZQ5VRkdQEFAzqYIjPLS0LzBc6+ZJEai4AE="
)
OLD_COLUMNS = base64.b64decode(
    "Aii1L/1gtgRlEAAmm189UIvSBjAVWKd+Fr+mq82uui3bgNAYQTRAGlCGMdSY15umlMIBFHz8AYJdald2d3d/3BCm"
    "JqzOoS2mlyzZKVIATwBMAO6PtwIOiG/qXWNPgEskI5qg3lI9zL0xCGLEo0OExmNUFeecOe7eHGaAgQiS/RgbG6/x"
    "4JxtNpsNw0BsaAC5s44rpOIUGIi7A3B35+6Pu3vEYUJZ5/vwzVux3u/FHOd9r69EYf6XdJ3xTjrZ6U04wztVeh9+"
    "kwxrEwQEMBSUBBYWFAYYHLs4zPpwXgm5Opj7ZX34/gtLpS+0yDUS3DMRIccJ05t4amnjFCuF81Wd8/0H99u4rcX6"
    "1lvfP2gr3llSTO+eL/Ekw6AoQ+SiqKBYkDjtaZbDLEsSAVm+n3pL9Q8ysMg1Dw0C3RXbOuucARwywoefjdZWqCne"
    "t8Z6Jb5PT5IEIYazaghtliQpL5556klKiVq6ZY4T60mGCbh4jFRQFiioIHFxj4SEusgO8gHqLZUGJ3INB4Xabhhv"
    "QiDwgiHaeO1Q5nQvwbCKqKpTFh0qGHLGgmkW80hrzIRh6nH4HWSSuzexSHRNQL7J7LLYL2CcjBVT5tuBwsET22ak"
    "ITpN8BICbhJgKwh2AhSEIHOSqCjYTKqbUffqCyUGTymzkRHPhye75nZORnQhNQje05X1fCKafWFpkG88i/AAGUi9"
    "TiBoIC+DTg=="
)
"""Seven orders: settled, settled with holes, settled by a copy that was sent on, open, ended, and
two that were reopened, one of them without an end. Of the code before version 3, with a grace
of 30 s, an idle timeout of 300 s and a window of a day."""

BLOCKS = pytest.mark.parametrize(
    ("kind", "block"),
    [(PlainTable, OLD_PLAIN), (ColumnTable, OLD_PLAIN), (ColumnTable, OLD_COLUMNS)],
    ids=["version 1", "version 1 in columns", "version 2"],
)
SETTLED = {
    "settled": ("SETTLED", NOW_MS + 86_460_000, 1),
    "holes": ("SETTLED", NOW_MS + 86_490_000, 1),
    "copied": ("SETTLED", NOW_MS + 86_760_000, 1),
}
UNSETTLED = {
    "open": ("OPEN", NOW_MS + 600_007, 0),
    "ended": ("ENDED", NOW_MS + 330_000, 0),
    "reopened": ("REOPENED", NOW_MS + 330_000, 1),
    "open-again": ("REOPENED", NOW_MS + 600_000, 1),
}


def restored(kind: type[IntervalTable], block: bytes) -> IntervalTable:
    table = kind(Place(0, 1), POLICY, OWN_SCHEMA_ONLY)
    table.restore([block], NOW_MS + 300_007)
    return table


def brief(effects: Effects) -> list[tuple[str, int, str, int]]:
    """Return what totals say, by order."""
    totals: list[OrderTotal] = [decode_total(each.value) for each in effects.totals]
    return sorted(
        (each.service_order_number, each.revision, each.status.value, each.settled_at_ms - NOW_MS)
        for each in totals
    )


@BLOCKS
def test_orders_of_old_blocks_are_what_they_were(kind: type[IntervalTable], block: bytes) -> None:
    table = restored(kind, block)
    assert len(table) == 7
    for name, (phase, deadline_ms, revision) in {**SETTLED, **UNSETTLED}.items():
        state = table.describe(name)
        assert state is not None
        assert (phase, deadline_ms, revision) == (
            state.phase,
            state.deadline_ms,
            state.revision,
        )
    open_state = table.describe("open")
    assert open_state is not None
    assert (
        open_state.segments,
        open_state.duplicates,
        open_state.overlap_ms,
    ) == (2, 1, 10)
    assert table.oldest_deadline_ms() == NOW_MS + 330_000


@BLOCKS
def test_orders_of_old_blocks_go_on_by_the_new_rules(
    kind: type[IntervalTable], block: bytes
) -> None:
    table = restored(kind, block)
    expected = [
        ("ended", 1, "INCOMPLETE", 330_000),
        ("open", 1, "ABANDONED", 600_007),
        ("open-again", 2, "ABANDONED", 600_000),
        ("reopened", 2, "INCOMPLETE", 330_000),
    ]
    assert brief(table.tick(NOW_MS + 10**6)) == expected
    # All of it is written in the new form, and comes back the same.
    table.take_changed()
    snapshot = table.snapshot("0")
    assert snapshot is not None
    again = restored(kind, snapshot.pack())
    for name in (*SETTLED, *UNSETTLED):
        assert table.describe(name) == again.describe(name)


@BLOCKS
def test_interim_totals_count_from_the_deadline_of_an_old_block(
    kind: type[IntervalTable], block: bytes
) -> None:
    """Not from the clock of the recovery, which would be another the next time."""
    for clock_ms in (NOW_MS + 300_007, NOW_MS + 320_000):
        table = kind(Place(0, 1), POLICY, OWN_SCHEMA_ONLY)
        table.restore([block], clock_ms)
        assert table.oldest_deadline_ms() == NOW_MS + 330_000
    content = decode_block(OLD_PLAIN)
    orders: dict[str, Order] = {each.service_order_number: each for _, each in content.orders}
    assert content.version < PLAIN_VERSION
    assert orders["open"].deadline_ms == orders["open"].unbilled_since_ms
    assert orders["reopened"].settlements == 1
    assert Phase.REOPENED is orders["open-again"].phase
