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
from durabill.stream_processors.core.opening import Opened
from durabill.stream_processors.core.order import Order
from durabill.stream_processors.engine import blocks
from durabill.stream_processors.engine.openings import WaitingOpenings
from durabill.stream_processors.engine.orders import PlainOrders
from durabill.stream_processors.engine.table import IntervalTable
from durabill.stream_processors.engine.timers import Timers
from durabill.stream_processors.worker import recovery
from durabill.stream_processors.worker.partition_task import PartitionTask
from durabill.stream_processors.worker.processor import Processor
from durabill.stream_processors.worker.recovery import Recovery
from tests.sim.broker import Coordinator
from tests.sim.history import Verdict, run_seed
from tests.sim.ports import SimPartitionWriter, SimRuntime

SEEDS_MAX = 510
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


_COMMIT = "await self.runtime.commit({each.task.partition: each.next_offset for each in barriers})"
_PUBLISHED = "self._on_step(Step.PUBLISHED)"
_WAIT = "await asyncio.gather(*(each.flushed() for each in involved))"
_AT_HEAD = """\
self._runs.insert(
        1 if self._runs and topic is self._link.broker.changelog else len(self._runs),
        (topic[self._coordinator.partition], records),
    )"""

_LINK = "broker, coordinator, epoch = self._link.broker, self._coordinator, self._epoch"
_LATE_FENCE = f"""\
if self._epoch < 0:
        self._epoch = await self._link.broker.ask("open writer", self._coordinator.init)
    {_LINK}"""

_NEXT = "next_offset=self.next_offset"
_ENCODE = "encoded = [(barrier, await"
_TOTALS_START = "min(totals_end, next(iter(self._published_at), totals_end))"
_PUT_TOTALS = "writer.put_totals(task.not_yet_published(effects.totals))"
_PUT_OPENINGS = (
    "if effects.openings:  # ahead of the totals of their orders\n"
    "        writer.put_openings(task.openings_not_yet_published(effects.openings))"
)
_OPENINGS_FIRST = f"{_PUT_OPENINGS}\n    {_PUT_TOTALS}"
_TOTALS_FIRST = f"{_PUT_TOTALS}\n    {_PUT_OPENINGS}"
_PUBLISH_MARK = "self.side_output.publish_mark(partition, encode_clock_mark(mark), on_told)"

EFFECT_ORDER = (
    Mutation(
        "blocks overtake totals",  # waiting for totals is one safety, the writer's queue the other
        (
            Change(
                Processor, "_write_checkpoint",
                f"delivered(generation)\n        {_WAIT}", "delivered(generation)",
            ),
            Change(
                SimPartitionWriter, "_append",
                "self._runs.append((topic[self._coordinator.partition], records))", _AT_HEAD,
            ),
        ),
    ),
    _one(
        "dead letters are not waited for",
        Processor, "_write_checkpoint", "await self.side_output.delivered(generation)", "pass",
    ),
    _one(
        "the generation before is waited for",
        Processor, "_write_checkpoint", "delivered(generation)", "delivered(generation - 1)",
    ),
    _one(
        "offsets move before anything is written",
        Processor, "_write_checkpoint",
        _PUBLISHED, f"{_PUBLISHED}; {_COMMIT}",
    ),
    _one(
        "offsets move while it is written",
        Processor, "_write_checkpoint",
        f"put_entries(own)\n        {_WAIT}", "put_entries(own)",
    ),
    _one(
        "the meta before the blocks",
        Processor, "_encode", "entries.append((", "entries.insert(0, (",
    ),
    _one(
        "slots are given back at the barrier",
        Processor, "_write_checkpoint",
        _ENCODE, f"[each.task.table.confirm(each.clock_ms) for each in barriers]; {_ENCODE}",
    ),
    _one(
        "slots are given back as of now",
        Processor, "_write_checkpoint",
        "table.confirm(barrier.clock_ms)", "table.confirm(barrier.task.table.clock_ms)",
    ),
    _one(
        "a chunk is folded while barriers are set",
        Processor, "_fold", "async with self._effects_lock:", "if True:",
    ),
)  # fmt: skip
"""What may happen after what."""

CHECKPOINTS = (
    _one("the meta is one ahead", PartitionTask, "_encode_meta", _NEXT, f"{_NEXT} + 1"),
    _one("the meta is one behind", PartitionTask, "_encode_meta", _NEXT, f"{_NEXT} - 1"),
    _one(
        "totals are looked for too late",
        PartitionTask, "_totals_start",
        _TOTALS_START, _TOTALS_START.replace("totals_end", "totals_end + 1"),
    ),
    _one(
        "totals not yet repeated are left out of the meta",
        PartitionTask, "_totals_start", _TOTALS_START, "totals_end",
    ),
    _one(
        "totals are looked for from the start",
        Recovery, "_recover_one", "writer.starts_at(ends)", "pass",
    ),
    _one("the clock is not restored", recovery, "restore_task", ", clock_ms)", ", 0)"),
    _one(
        "the clock is ahead of the meta",
        recovery, "restore_task", ", clock_ms)", ", clock_ms + 900)",
    ),
    _one(
        "a changed block is forgotten",
        PartitionTask, "begin_checkpoint", "take_changed()", "take_changed()[1:]",
    ),
    _one(
        "the last changed block is forgotten",
        PartitionTask, "begin_checkpoint", "take_changed()", "take_changed()[:-1]",
    ),
    _one(
        "published totals are published again",
        PartitionTask, "not_yet_published", "if not self.published:", "if True:",
    ),
    _one(
        "published totals by revision alone",
        recovery, "_published_since",
        "(total.source_offset, total.revision) > known", "total.revision > known[1]",
    ),
    _one(
        "all totals count as published",
        recovery, "_published_since", "> known", "> (-1, 0)",
    ),
    _one(
        "the meta is that of the writing",
        Processor, "_encode", "barrier.meta",
        "barrier.task._encode_meta(self.writers[barrier.task.partition].ends)",
    ),
    _one(
        "restored orders have no deadline",
        PlainOrders, "restore", "self.put(slot, order)", "self.slots.put(slot, order)",
    ),
    _one(
        "a transaction that the broker gave up is not written again",
        SimPartitionWriter, "_commit", "continue", "return True",
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
                SimRuntime, "open_writer",
                'await broker.ask(f"open writer {partition}", coordinator.init)', "-1",
            ),
            Change(SimPartitionWriter, "_commit", _LINK, _LATE_FENCE),
        ),
    ),
    _one(
        "tasks are kept over a rebalance",
        Processor, "_release", "self.tasks, self.is_assigned = {}, False", "pass",
    ),
)  # fmt: skip
"""Who may write."""

TIME = (
    _one(
        "a high watermark that stands still is silence",  # by a clock that is right, less a slack
        Processor, "tick",
        "if due_ms is not None and task.clock.is_mark_due(due_ms, now_s):\n"
        "            self._mark(partition, task, due_ms)",
        "await self._publish(task, self.writers[partition],"
        " task.table.tick(task.clock.guess_ms(now_s) - 2000))",
    ),
    _one(
        "a clock mark's acknowledgement moves the clock",
        Processor, "_mark", "task.clock.note_told(append_ms, self.runtime.elapsed_s())",
        "task.clock.note_told(append_ms, self.runtime.elapsed_s()); "
        "asyncio.get_running_loop().create_task("
        "self._publish(task, self.writers[partition], task.table.tick(append_ms or 0)))",
    ),
    _one("no clock marks", Processor, "_mark", _PUBLISH_MARK, "pass"),
    _one(
        "a clock mark is a dead letter",
        PlainOrders, "fold_record", "if is_clock_mark(record.value):", "if False:",
    ),
    Mutation(
        "a deadline is over a moment later",
        (
            Change(
                Order, "is_due",
                "self.next_due_ms(policy) <= now_ms", "self.next_due_ms(policy) < now_ms",
            ),
            Change(
                Timers, "has_by",
                "self._heap[0][0] <= now_ms", "self._heap[0][0] < now_ms",
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
        Recovery, "_recover_one",
        "log_end=max(bounds[1], task.next_offset)", "log_end=task.next_offset",
    ),
    _one(
        "a policy is not recorded",
        Recovery, "_recover_one",
        "if meta is None or task.history != history:", "if not history:",
    ),
    _one(
        "a policy is forgotten by its offset",
        Recovery, "_recover_one",
        "encode_history(task.history)", "encode_history(task.history[-1:])",
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
        admission.Known, "is_ahead_of", "offset <= order.source_offset", "False",
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
        "made-up sources are kept",
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
        PlainOrders, "_forward", "(*record.headers, (FORWARDED_FROM, source))", "record.headers",
    ),
    _one(
        "misplaced records are dropped",
        PlainOrders, "_forward", "effects.forwards.append(", "(lambda forward: None)(",
    ),
)  # fmt: skip
"""What becomes of a record."""

OPENINGS = (
    _one(
        "an opening leaves its entry with its order's first segment",
        WaitingOpenings, "take", "self._begun.append((clock_ms, opened.offset))",
        "self._drop(opened.offset)",
    ),
    _one(
        "an opening that has lapsed still holds",
        WaitingOpenings, "at", "None if each.is_forgotten(clock_ms) else each", "each",
    ),
    _one(
        "an opened order is forgotten like any other",
        Order, "_settle", "if self.opening is not None:", "if False:",
    ),
    _one(
        "what is late is too late, opened or not",
        admission, "_may_be_late", "opening is not None and", "False and",
    ),
    _one(
        "anybody may open an order again",
        Opened, "is_of", "(self.tenant, self.client) == (record.tenant, record.client)", "True",
    ),
    _one(
        "an opened order loses its opening in a checkpoint",
        blocks, "_order_of", "elif state.opening is not None:", "elif False:",
    ),
    _one(
        "an opening can't be extended",
        Opened, "is_longer", "record.accept_until_ms > self.accept_until_ms", "False",
    ),
    _one(
        "an opening can be shortened",
        Opened, "is_longer", "record.accept_until_ms > self.accept_until_ms",
        "record.accept_until_ms != self.accept_until_ms",
    ),
    _one(
        "a waiting opening's extension is lost in a checkpoint",
        WaitingOpenings, "extend", "self._changed.add(place // ENTRY_PLACES)", "pass",
    ),
    _one(
        "an order's extension is lost in a checkpoint",
        PlainOrders, "_fold_opening", "self._note([], order, effects)", "pass",
    ),
    _one(
        "an extended opening is given up when it would have been forgotten",
        WaitingOpenings, "_forget", "opened is not None and", "False and",
    ),
    _one(
        "published openings are passed on again",
        PartitionTask, "openings_not_yet_published", "if self.openings is None", "if True",
    ),
    _one(
        "openings are looked for too late",
        PartitionTask, "_encode_meta",
        "self._orders_start(ends.orders)", "self._orders_start(ends.orders) + 1",
    ),
    _one(
        "openings not yet repeated are left out of the meta",
        PartitionTask, "_orders_start", "return self.openings.start(orders_end)",
        "return orders_end",
    ),
    _one(
        "an opening is passed on behind the totals of its order",
        Processor, "_publish", _OPENINGS_FIRST, _TOTALS_FIRST,
    ),
    _one("openings are not passed on", Processor, "_publish", "if effects.openings:", "if False:"),
)  # fmt: skip
"""What an opening changes."""

MUTATIONS = (*EFFECT_ORDER, *CHECKPOINTS, *OWNERS, *TIME, *POLICIES, *RECORDS, *OPENINGS)
