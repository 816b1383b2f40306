"""One order, every legal move: what can happen to it in each state, and what then holds."""

from dataclasses import dataclass

import pytest

from durabill.schemas import OrderTotal, SegmentEvent
from durabill.stream_processors.core.order import Order, Policy

POLICY = Policy(
    settle_grace_ms=30, idle_timeout_ms=300, correction_window_ms=1000, interim_interval_ms=200
)
FORGET_MS = 1000 + 60_000
NOW = 2_000
"""Append time of the move under test."""

STATES = ("OPEN", "ENDED", "COMPLETE", "INCOMPLETE", "ABANDONED", "REOPENED")
"""Each has seen numbers up to 5; 2 and 4 are missing unless the move or COMPLETE wants them in.
OPEN: last record at 1,980. ENDED: 5 was the end, at 1,980. COMPLETE: at 1,980, by the end 5.
INCOMPLETE: end 5 at 1,900, settled at 1,930. ABANDONED: last record at 1,690, settled at 1,990.
REOPENED: as INCOMPLETE (COMPLETE where 2 and 4 are wanted in), then new time at 1,985."""

DEADLINES = {
    "OPEN": 2_280,
    "ENDED": 2_010,
    "COMPLETE": 1_980 + FORGET_MS,
    "INCOMPLETE": 1_930 + FORGET_MS,
    "ABANDONED": 1_990 + FORGET_MS,
    "REOPENED": 2_015,
}


def settle_if_due(order: Order, now_ms: int, policy: Policy) -> list[OrderTotal]:
    """Return the totals that are due, in the order of their time, and settle as of then."""
    totals = []
    while order.is_due(now_ms, policy):
        totals.append(order.give_due(policy))
    return totals


def segment(number: int, *, end: bool = False, shift_ms: int = 0) -> SegmentEvent:
    """Return the order's segment: number n's time is [1000 + 10 n, 1010 + 10 n)."""
    start_ms = 1_000 + 10 * number + shift_ms
    return SegmentEvent("SO1", number, start_ms, start_ms + 10, end)


def empty_end(number: int) -> SegmentEvent:
    """Return an end identifier of zero length."""
    return SegmentEvent("SO1", number, 1_100, 1_100, True)


@dataclass(frozen=True)
class Move:
    """What happens: a record at NOW (or `late_ms` after), or a tick so long after the deadline.

    Or a tick so long after the interim deadline of the order that has one, OPEN's.
    """

    event: SegmentEvent | None = None
    late_ms: int = 0
    tick_after_deadline_ms: int = 0
    tick_after_interim_ms: int | None = None
    whole: bool = False
    """Start with 2 and 4 there too."""
    seen_2: bool = False


MOVES = {
    "segment next": Move(segment(6)),
    "segment in a hole": Move(segment(2)),
    "segment filling the last hole": Move(segment(4), seen_2=True),
    "segment in a hole, after the deadline": Move(segment(2), late_ms=1_000),
    "end with all there": Move(segment(6, end=True), whole=True),
    "end with a hole": Move(segment(7, end=True)),
    "empty end with all there": Move(empty_end(6), whole=True),
    "empty end with a hole": Move(empty_end(7)),
    "repeat exact": Move(segment(3)),
    "repeat inside known time": Move(SegmentEvent("SO1", 3, 1_032, 1_035, False)),
    "repeat with new time": Move(segment(3, shift_ms=500)),
    "repeated end": Move(segment(5, end=True)),
    "known last number comes as the end": Move(segment(5, end=True)),
    "earlier number comes as an end": Move(segment(3, end=True)),
    "number after end": Move(segment(6)),
    "tick before deadline": Move(tick_after_deadline_ms=-1),
    "tick at deadline": Move(tick_after_deadline_ms=0),
    "tick after deadline": Move(tick_after_deadline_ms=1),
    "tick before the interim deadline": Move(tick_after_interim_ms=-1),
    "tick at the interim deadline": Move(tick_after_interim_ms=0),
}

# What then holds: the phase, when it ends by itself, the totals that came out with the time that
# they are settled as of. A word alone says why the cell cannot be.
TABLE = """
segment next
  OPEN        OPEN      2300
  ENDED       impossible: it would be a number after the end
  COMPLETE    impossible: it would be a number after the end
  INCOMPLETE  impossible: it would be a number after the end
  ABANDONED   REOPENED  2030
  REOPENED    impossible: it would be a number after the end
segment in a hole
  OPEN        OPEN      2300
  ENDED       ENDED     2010
  COMPLETE    impossible: there is no hole
  INCOMPLETE  REOPENED  2030
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
segment filling the last hole
  OPEN        OPEN      2300
  ENDED       SETTLED  63000  COMPLETE@2000
  COMPLETE    impossible: there is no hole
  INCOMPLETE  REOPENED  2030
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
segment in a hole, after the deadline
  OPEN        REOPENED  3030  RUNNING@2180  ABANDONED@2280
  ENDED       REOPENED  3030  INCOMPLETE@2010
  COMPLETE    impossible: there is no hole
  INCOMPLETE  REOPENED  3030
  ABANDONED   REOPENED  3030
  REOPENED    REOPENED  3060  INCOMPLETE@2015
end with all there
  OPEN        SETTLED  63000  COMPLETE@2000
  ENDED       impossible: all there would be COMPLETE
  COMPLETE    REOPENED  2030
  INCOMPLETE  impossible: all there would be COMPLETE
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
end with a hole
  OPEN        ENDED     2030
  ENDED       ENDED     2010
  COMPLETE    REOPENED  2030
  INCOMPLETE  REOPENED  2030
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
empty end with all there
  OPEN        SETTLED  63000  COMPLETE@2000
  ENDED       impossible: all there would be COMPLETE
  COMPLETE    REOPENED  2030
  INCOMPLETE  impossible: all there would be COMPLETE
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
empty end with a hole
  OPEN        ENDED     2030
  ENDED       ENDED     2010
  COMPLETE    REOPENED  2030
  INCOMPLETE  REOPENED  2030
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
repeat exact
  OPEN        OPEN      2280
  ENDED       ENDED     2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    REOPENED  2015
repeat inside known time
  OPEN        OPEN      2280
  ENDED       ENDED     2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    REOPENED  2015
repeat with new time
  OPEN        OPEN      2300
  ENDED       ENDED     2010
  COMPLETE    REOPENED  2030
  INCOMPLETE  REOPENED  2030
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
repeated end
  OPEN        impossible: no end has been seen
  ENDED       ENDED     2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   impossible: no end has been seen
  REOPENED    REOPENED  2015
known last number comes as the end
  OPEN        ENDED     2030
  ENDED       impossible: it is a repeated end
  COMPLETE    impossible: it is a repeated end
  INCOMPLETE  impossible: it is a repeated end
  ABANDONED   REOPENED  2030
  REOPENED    impossible: it is a repeated end
earlier number comes as an end
  OPEN        ENDED     2030
  ENDED       ENDED     2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   REOPENED  2030
  REOPENED    REOPENED  2015
number after end
  OPEN        impossible: no end has been seen
  ENDED       ENDED     2010
  COMPLETE    REOPENED  2030
  INCOMPLETE  REOPENED  2030
  ABANDONED   impossible: no end has been seen
  REOPENED    REOPENED  2015
tick before deadline
  OPEN        OPEN      2280  RUNNING@2180
  ENDED       ENDED     2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    REOPENED  2015
tick at deadline
  OPEN        SETTLED  63280  RUNNING@2180  ABANDONED@2280
  ENDED       SETTLED  63010  INCOMPLETE@2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    SETTLED  63015  INCOMPLETE@2015
tick after deadline
  OPEN        SETTLED  63280  RUNNING@2180  ABANDONED@2280
  ENDED       SETTLED  63010  INCOMPLETE@2010
  COMPLETE    FORGOTTEN
  INCOMPLETE  FORGOTTEN
  ABANDONED   FORGOTTEN
  REOPENED    SETTLED  63015  INCOMPLETE@2015
tick before the interim deadline
  OPEN        OPEN      2280
  ENDED       SETTLED  63010  INCOMPLETE@2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    SETTLED  63015  INCOMPLETE@2015
tick at the interim deadline
  OPEN        OPEN      2280  RUNNING@2180
  ENDED       SETTLED  63010  INCOMPLETE@2010
  COMPLETE    SETTLED  62980
  INCOMPLETE  SETTLED  62930
  ABANDONED   SETTLED  62990
  REOPENED    SETTLED  63015  INCOMPLETE@2015
"""


def table_cells() -> dict[tuple[str, str], str]:
    """Return (move, state) -> what then holds; each cell may stand in the table once."""
    cells: dict[tuple[str, str], str] = {}
    move = ""
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            move = line
            continue
        state, then = line.split(maxsplit=1)
        assert (move, state) not in cells, f"{move} x {state} stands twice"
        cells[move, state] = " ".join(then.split())
    return cells


CELLS = table_cells()


def order_in(state: str, move: Move) -> Order:
    """Return an order in `state`, as the move wants it."""
    order = Order("SO1", 0)
    numbers = [1, 3]
    if move.whole or move.seen_2 or state == "COMPLETE":
        numbers.append(2)
    if move.whole or state == "COMPLETE":
        numbers.append(4)
    last_at_ms = {"INCOMPLETE": 1_900, "ABANDONED": 1_690, "REOPENED": 1_900}.get(state, 1_980)
    for offset, number in enumerate(numbers):
        assert order.apply(segment(number), last_at_ms, offset, POLICY) is None
    last = segment(5, end=state not in ("OPEN", "ABANDONED"))
    total = order.apply(last, last_at_ms, 5, POLICY)
    if state in ("INCOMPLETE", "ABANDONED"):
        found = settle_if_due(order, NOW - 1, POLICY)
        assert found
        total = found[-1]
    if state == "REOPENED":
        settle_if_due(order, 1_985, POLICY)
        total = order.apply(segment(1, shift_ms=700), 1_985, 6, POLICY)
    assert state == (total.status if total else order.phase)
    assert order.deadline_ms == DEADLINES[state]
    order.check()
    return order


def make(move: Move, order: Order) -> list[OrderTotal]:
    """Let `move` happen to `order`; return the totals that it gave."""
    now_ms = order.deadline_ms + move.tick_after_deadline_ms if move.event is None else NOW
    if move.tick_after_interim_ms is not None:
        now_ms = 1_980 + POLICY.interim_interval_ms + move.tick_after_interim_ms
    now_ms += move.late_ms
    totals = settle_if_due(order, now_ms, POLICY)
    if move.event is not None:
        total = order.apply(move.event, now_ms, 7, POLICY)
        totals += [] if total is None else [total]
    elif order.is_forgotten(now_ms):
        assert not totals
        return []
    order.check()
    return totals


def test_no_cell_of_the_table_is_absent() -> None:
    assert set(CELLS) == {(move, state) for move in MOVES for state in STATES}


@pytest.mark.parametrize(
    ("name", "state"),
    [cell for cell, then in CELLS.items() if not then.startswith("impossible")],
)
def test_each_move_in_each_state_is_as_the_table_says(name: str, state: str) -> None:
    move = MOVES[name]
    order = order_in(state, move)
    totals = make(move, order)
    if CELLS[name, state] == "FORGOTTEN":
        assert order.is_forgotten(DEADLINES[state] + 1)
        return
    assert not order.is_forgotten(order.deadline_ms)
    found = [order.phase.value, str(order.deadline_ms)]
    found += [f"{total.status}@{total.settled_at_ms}" for total in totals]
    assert CELLS[name, state] == " ".join(found)


@pytest.mark.parametrize(
    ("name", "state"), [cell for cell, then in CELLS.items() if then.startswith("impossible")]
)
def test_impossible_cell_says_the_truth(name: str, state: str) -> None:
    """A state that contradicts the move can't be built, or the move is another one in it."""
    move, why = MOVES[name], CELLS[name, state].removeprefix("impossible: ")
    if why == "all there would be COMPLETE":
        with pytest.raises(AssertionError):
            order_in(state, move)
        return
    order = order_in(state, move)
    assert move.event is not None
    number = move.event.business_data_number
    holds = {
        "it would be a number after the end": order.end_number is not None
        and number > order.end_number,
        "there is no hole": not order.numbers.missing(1, 6),
        "no end has been seen": order.end_number is None,
        "it is a repeated end": order.end_number == number,
    }
    assert holds[why]
