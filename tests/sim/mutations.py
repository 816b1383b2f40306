"""The engine, deliberately broken: what the simulation has to notice.

Each mutation is a small change to the source of one function, or another function in its place.
Where the engine is safe twice over, a single change shows nothing; then both safeties go, and the
comment says which.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from durabill.stream_processors.core import admission
from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine import blocks
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.worker import checkpoint
from durabill.stream_processors.worker import recovery as lanes
from durabill.stream_processors.worker.checkpoint import Lane
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.recovery import LaneBuilder
from tests.sim.broker import Coordinator
from tests.sim.history import Verdict, run_seed
from tests.sim.ports import SimExit, SimRuntime

SEEDS_MAX = 500
"""So many histories at the most it takes to notice any of the mutations."""


@dataclass(frozen=True, slots=True)
class Change:
    """Text of a function's source, and what stands in its place."""

    owner: Any
    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """A broken engine."""

    name: str
    changes: tuple[Change, ...]


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Break the engine for as long as it lasts."""
    with ExitStack() as undo:
        for change in mutation.changes:
            original = getattr(change.owner, change.name)
            undo.callback(setattr, change.owner, change.name, original)
            setattr(change.owner, change.name, rewritten(original, change.old, change.new))
        yield


def caught_at(mutation: Mutation, seeds: Iterable[int]) -> Verdict | None:
    """Return the first history that goes wrong with the mutation, None if none does."""
    with mutated(mutation):
        return next((each for each in map(run_seed, seeds) if each.problems), None)


def rewritten(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """Return a function like the one given, with a part of its source replaced."""
    source = getattr(function, "source", None) or textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has {source.count(old)} times: {old}"
    changed: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, changed)
    result = changed[function.__name__]
    result.source = source.replace(old, new)  # for a further change of the same function
    return result  # type: ignore[no-any-return]


def _one(name: str, owner: Any, function: str, old: str, new: str) -> Mutation:
    return Mutation(name, (Change(owner, function, old, new),))


_COMMIT = "await self.runtime.commit({cut.lane.partition: cut.next_offset for cut in cuts})"
_WAIT = "await asyncio.gather(*(each.flushed() for each in ways_out))"
_AT_HEAD = """\
self._runs.insert(
        1 if self._runs and topic is self._link.broker.changelog else len(self._runs),
        (topic[self._coordinator.partition], records),
    )"""

_LINK = "broker, coordinator, epoch = self._link.broker, self._coordinator, self._epoch"
_LATE_FENCE = f"""\
if self._epoch < 0:
        self._epoch = await self._link.broker.ask("open exit", self._coordinator.init)
    {_LINK}"""

_TOTALS_START = "min(totals_end, next(iter(self._said_at), totals_end))"
_PUBLISH_MARK = "self.letters.publish_mark(partition, encode_clock_mark(mark), on_told)"

EFFECT_ORDER = (
    Mutation(
        "blocks overtake totals",  # waiting for totals is one safety, the exit's queue the other
        (
            Change(
                Processor, "_write_checkpoint",
                f"delivered(epoch)\n        {_WAIT}", "delivered(epoch)",
            ),
            Change(
                SimExit, "_append",
                "self._runs.append((topic[self._coordinator.partition], records))", _AT_HEAD,
            ),
        ),
    ),
    _one(
        "dead letters are not waited for",
        Processor, "_write_checkpoint", "await self.letters.delivered(epoch)", "pass",
    ),
    _one(
        "the epoch before is waited for",
        Processor, "_write_checkpoint", "delivered(epoch)", "delivered(epoch - 1)",
    ),
    _one(
        "offsets move before anything is written",
        Processor, "_write_checkpoint",
        'self._step("published")', f'self._step("published"); {_COMMIT}',
    ),
    _one(
        "offsets move while it is written",
        Processor, "_write_checkpoint",
        f"put_entries(own)\n        {_WAIT}", "put_entries(own)",
    ),
    _one(
        "marks before blocks",
        Processor, "_encode", "entries.append((", "entries.insert(0, (",
    ),
    _one(
        "slots are given back at the cut",
        Processor, "_write_checkpoint",
        "entries = [", "[cut.lane.table.confirm(cut.clock_ms) for cut in cuts]; entries = [",
    ),
    _one(
        "slots are given back as of now",
        Processor, "_write_checkpoint",
        "cut.lane.table.confirm(cut.clock_ms)", "cut.lane.table.confirm(cut.lane.table.clock_ms)",
    ),
    _one(
        "a chunk is folded during a cut",
        Processor, "_fold", "async with self._effects_lock:", "if True:",
    ),
)  # fmt: skip
"""What may happen after what."""

CHECKPOINTS = (
    _one("marks are one ahead", Lane, "_marks", "self.next_offset,", "self.next_offset + 1,"),
    _one("marks are one behind", Lane, "_marks", "self.next_offset,", "self.next_offset - 1,"),
    _one(
        "totals are looked for too late",
        Lane, "_totals_start", _TOTALS_START, _TOTALS_START.replace("totals_end", "totals_end + 1"),
    ),
    _one(
        "totals not yet repeated are left out of the marks",
        Lane, "_totals_start", _TOTALS_START, "totals_end",
    ),
    _one(
        "totals are looked for from the start",
        LaneBuilder, "_build_one", "way_out.starts_at(tail.end)", "pass",
    ),
    Mutation(
        "the clock is not restored",
        tuple(
            Change(module, "restore_lane", "(blocks, clock_ms)", "(blocks, 0)")
            for module in (checkpoint, lanes)
        ),
    ),
    Mutation(
        "the clock is ahead of the marks",
        tuple(
            Change(module, "restore_lane", "(blocks, clock_ms)", "(blocks, clock_ms + 900)")
            for module in (checkpoint, lanes)
        ),
    ),
    _one("a changed block is forgotten", Lane, "cut", "take_changed()", "take_changed()[1:]"),
    _one(
        "the last changed block is forgotten",
        Lane, "cut", "take_changed()", "take_changed()[:-1]",
    ),
    _one("said totals are said again", Lane, "unsaid", "if self.said", "if False"),
    _one("said totals by revision alone",
        checkpoint, "_said",
        "(total.source_offset, total.revision) > known", "total.revision > known[1]",
    ),
    _one("all totals count as said", checkpoint, "_said", "> known", "> (-1, 0)"),
    _one(
        "marks are those of the writing",
        Processor, "_encode", "cut.marks",
        "cut.lane._marks(self.exits[cut.lane.partition].position)",
    ),
    _one(
        "restored orders have no deadline",
        IntervalTable, "restore", "self._queue(order)", "pass",
    ),
    _one(
        "a transaction that the broker gave up is not said again",
        SimExit, "_say", "continue", "return True",
    ),
    _one(
        "a block goes on changing until it is packed",
        blocks, "_state_of", "dict(order.forwarded)", "order.forwarded",
    ),
)  # fmt: skip
"""What is written, and what is made of it."""

OWNERS = (
    _one(
        "nobody is fenced",
        Coordinator, "init",
        "if self.current", "if self.epoch: return self.epoch\n    if self.current",
    ),
    Mutation(
        "fenced after reading",
        (
            Change(
                SimRuntime, "open_exit",
                'await broker.ask(f"open exit {partition}", coordinator.init)', "-1",
            ),
            Change(SimExit, "_say", _LINK, _LATE_FENCE),
        ),
    ),
    _one(
        "lanes are kept over a rebalance",
        Processor, "_let_go", "self.lanes, self.is_assigned = {}, False", "pass",
    ),
)  # fmt: skip
"""Who may write."""

TIME = (
    _one(
        "a high watermark that stands still is silence",  # by a clock that is right, less a slack
        Processor, "tick",
        "if due_ms is not None and lane.clock.is_mark_due(due_ms, now_s):\n"
        "            self._mark(partition, lane, due_ms)",
        "await self._publish(lane, lane.table.tick(lane.clock.guess_ms(now_s) - 2000))",
    ),
    _one(
        "a clock mark's acknowledgement moves the clock",
        Processor, "_mark", "lane.clock.note_told(append_ms, self.runtime.elapsed_s())",
        "lane.clock.note_told(append_ms, self.runtime.elapsed_s()); "
        "asyncio.get_running_loop().create_task("
        "self._publish(lane, lane.table.tick(append_ms or 0)))",
    ),
    _one("no clock marks", Processor, "_mark", _PUBLISH_MARK, "pass"),
    _one(
        "a clock mark is a dead letter",
        IntervalTable, "_fold_record", "if is_clock_mark(record.value):", "if False:",
    ),
    Mutation(
        "a deadline is over a moment later",
        (
            Change(
                Order, "is_due",
                "self.next_due_ms(policy) <= now_ms", "self.next_due_ms(policy) < now_ms",
            ),
            Change(
                IntervalTable, "_run_due",
                "self._due[0][0] <= self.clock_ms", "self._due[0][0] < self.clock_ms",
            ),
        ),
    ),
    _one(
        "forgotten too early",
        Order, "_settle",
        "max(settled_at_ms, self.ended_ms - FUTURE_TOLERANCE_MS)",
        "settled_at_ms - FUTURE_TOLERANCE_MS",
    ),
    _one(
        "a late repeat doesn't keep its order",
        Order, "apply",
        "self.deadline_ms = max(self.deadline_ms, last_repeat_ms)", "pass",
    ),
    _one(
        "repeats put off the idle deadline",
        Order, "apply", "elif new_evidence and self.phase", "elif self.phase",
    ),
    _one(
        "a reopened order completes at once",
        Order, "apply", "self.phase is not Phase.REOPENED", "True",
    ),
    _one(
        "each correction waits as long as the first",
        Order, "apply", "correction_grace_ms(self.settlements)", "correction_grace_ms(1)",
    ),
    _one(
        "interim totals count as settlements",
        Order, "_give", "return total",
        "self.settlements += self.settlements and status is Status.RUNNING; return total",
    ),
    _one(
        "the interim interval starts late",
        Order, "_give", "self.unbilled_since_ms = settled_at_ms",
        "self.unbilled_since_ms = settled_at_ms + 100",
    ),
    _one(
        "an order settles when an interim total is due shortly before",
        Order, "give_due", "due_ms < self.deadline_ms", "due_ms + 1_500 < self.deadline_ms",
    ),
    _one(
        "the clock goes back with the broker's",
        IntervalTable, "_fold_chunk", "max(self.clock_ms, append_ms)", "append_ms",
    ),
)  # fmt: skip
"""When something is due."""

POLICIES = (
    _one(
        "another policy holds for the tail as well",
        LaneBuilder, "_build_one",
        "log_end=max(bounds[1], lane.next_offset)", "log_end=lane.next_offset",
    ),
    _one(
        "a policy is not recorded",
        LaneBuilder, "_build_one",
        "if marks is None or lane.history != history:", "if not history:",
    ),
    _one(
        "a policy is forgotten by its offset",
        LaneBuilder, "_build_one",
        "encode_history(lane.history)", "encode_history(lane.history[-1:])",
    ),
    _one(
        "what a worker began with is in force at once",
        Processor, "_fold", "if terms is not None:", "if False:",
    ),
    _one(
        "interim totals are due by the old interval",
        IntervalTable, "set_policy", "if is_other_interval:", "if False:",
    ),
)  # fmt: skip
"""What it is billed by."""

RECORDS = (
    _one(
        "replayed records are taken in again",
        IntervalTable, "_fold_record", "record.offset <= order.source_offset", "False",
    ),
    _one(
        "a piece more than the limit",
        Order, "excess", "len(self.time) >= pieces_max", "len(self.time) > pieces_max",
    ),
    _one(
        "too many pieces of numbers",
        Order, "excess", "len(self.numbers) >= pieces_max", "False",
    ),
    _one(
        "made-up origins are kept",
        admission, "source_of", "place.partition != int(partition) < place.partitions", "True",
    ),
    _one(
        "a total is complete without the numbers after its end",
        Order, "is_complete",
        "self.numbers.is_one_from(1)", "self.numbers.covers(1, self.end_number + 1)",
    ),
    _one(
        "copies that come again count",
        Order, "has_seen", "self.forwarded.get(source[0], -1) >= source[1]", "False",
    ),
    _one(
        "copies don't say where they are from",
        IntervalTable, "_send_on", "(*record.headers, (FORWARDED_FROM, origin))", "record.headers",
    ),
    _one(
        "misplaced records are dropped",
        IntervalTable, "_send_on", "effects.forwards.append(", "(lambda forward: None)(",
    ),
)  # fmt: skip
"""What becomes of a record."""

MUTATIONS = (*EFFECT_ORDER, *CHECKPOINTS, *OWNERS, *TIME, *POLICIES, *RECORDS)
