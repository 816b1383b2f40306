"""What would it have been? One partition's history, folded under another policy beside its own.

Both foldings read the same log, so whatever differs comes from the policy. What a policy changes:
when orders settle, and which records are too late (`correction_window`). Clock marks stand where
the workers of then needed them; a deadline of another policy that no record has reached by the end
of the log has not come, as it would not have in a replay of a worker.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from heapq import nsmallest
from typing import NamedTuple

import msgspec

from durabill.schemas import ClockMark, encode_clock_mark
from durabill.schemas.limits import GRACE_FACTOR_MAX, POLICY_TIME_MAX_S
from durabill.stream_processors.audit.bills import Bills, Difference, Summary, differences
from durabill.stream_processors.audit.replay import (
    Engine,
    LogSource,
    PartitionTerms,
    Replay,
    chunk_of_rows,
)
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.core.what_if import DurationRules, PolicyChange, WhatIf
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.effects import Effects
from durabill.stream_processors.engine.table import Total

_LONGEST_WAIT_MS = 2 * GRACE_FACTOR_MAX * POLICY_TIME_MAX_S * 1000
"""After this long without a record every order has settled, whatever the policy."""

OnTotals = Callable[[list[Total]], None]
OnOffset = Callable[[int], None]


class Compared(NamedTuple):
    """What one partition comes to under both policies; `biggest` has the biggest first."""

    summary: Summary
    biggest: list[Difference]


def changed_terms(terms: PartitionTerms, change: PolicyChange) -> PartitionTerms:
    """Return the terms with every policy there ever was changed.

    Raises SettingsError where a changed policy is none that a worker would take.
    """
    history = tuple(
        msgspec.structs.replace(
            record,
            terms=msgspec.structs.replace(
                record.terms, policy=change.applied_to(record.terms.policy)
            ),
        )
        for record in terms.history
    )
    return replace(terms, history=history)


def compare_partition(
    source: LogSource,
    terms: PartitionTerms,
    partitions: int,
    what_if: WhatIf,
    *,
    engine: Engine = Engine.COLUMNS,
    top: int = 20,
    on_difference: Callable[[Difference], None] | None = None,
    on_totals: OnTotals | None = None,
    on_offset: OnOffset | None = None,
) -> Compared:
    """Return how a partition's orders differ under another policy.

    `on_difference` is told each order. `on_totals` gets the totals under the other policy as they
    come, those that settled by the end of the log. `on_offset` hears how far it has come.
    """
    place = Place(source.partition, partitions)
    old, new = Bills(DurationRules()), Bills(what_if.duration)
    foldings = [_Folding(place, terms, engine, [old])]
    if what_if.change == PolicyChange():
        foldings[0].bills.append(new)  # the same totals, billed otherwise
    else:
        other_terms = changed_terms(terms, what_if.change)
        foldings.append(_Folding(place, other_terms, engine, [new]))
    for part in source.parts():
        for folding in foldings:
            for totals in folding.fold(part.chunk):
                if on_totals is not None and folding is foldings[-1]:
                    on_totals(totals)
        if on_offset is not None:
            on_offset(part.chunk.next_offset)
    for folding in foldings:
        folding.bill_running(source.end_offset)
    return _compared(old, new, top, on_difference)


def _compared(
    old: Bills, new: Bills, top: int, on_difference: Callable[[Difference], None] | None
) -> Compared:
    summary = Summary(old_totals=old.totals, new_totals=new.totals)
    summary.old_rejected += old.rejected
    summary.new_rejected += new.rejected

    def counted() -> Iterator[Difference]:
        for each in differences(old, new):
            summary.count(each)
            if on_difference is not None:
                on_difference(each)
            if each.is_changed:
                yield each

    return Compared(summary, nsmallest(top, counted(), key=lambda each: each.rank))


class _Folding:
    """One folding of a partition, and the bills that it feeds."""

    def __init__(
        self, place: Place, terms: PartitionTerms, engine: Engine, bills: list[Bills]
    ) -> None:
        self.bills = bills
        self._replay = Replay(place, terms, engine)

    def fold(self, chunk: Chunk) -> Iterator[list[Total]]:
        """Fold a chunk; yield the totals that it gives."""
        for step in self._replay.fold(chunk):
            self._count(step.effects)
            yield step.effects.totals

    def _count(self, effects: Effects) -> None:
        for bills in self.bills:
            bills.add(effects.totals)
            bills.rejected.update(each.reason.value for each in effects.dead_letters)

    def bill_running(self, end_offset: int) -> None:
        """Bill what has not settled by the end of the log; the table is of no use after it.

        A mark from the far future makes all of it settle, without interim totals on the way.
        """
        table = self._replay.table
        table.set_policy(replace(table.policy, interim_interval_ms=0))
        far_ms = table.clock_ms + _LONGEST_WAIT_MS
        mark = encode_clock_mark(ClockMark("what-if", far_ms))
        chunk = chunk_of_rows([(end_offset, far_ms, None, mark, ())], end_offset, end_offset + 1)
        for step in table.steps(chunk):
            for bills in self.bills:
                bills.add_running(step.effects.totals)
