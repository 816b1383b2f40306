"""What if everybody died here? A recovery from what is committed at some moment, on the side.

A crash shows a mistake in a checkpoint only if it comes at the right moment. So at some of the
moments at which a checkpoint becomes visible, the engine's own recovery is run on what there is,
and the rest of the log is folded and settled. The totals published until then, together with those
that this would still publish, must be the truth about the log as it is.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields

from durabill.producers.fleet import truth
from durabill.producers.fleet.truth_order import Policy
from durabill.schemas import OWN_SCHEMA_ONLY, decode_total, encode_total, partition_for
from durabill.stream_processors.core.order import Policy as EnginePolicy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.checkpoint import CheckpointMeta, SegmentsTopic, find_meta
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.policies import (
    PolicyRecord,
    Terms,
    decode_history,
    in_force,
    split,
)
from durabill.stream_processors.engine.table import IntervalTable, Place, Total
from durabill.stream_processors.worker import recovery
from durabill.stream_processors.worker.ports import OpeningsTail, Tail
from tests.sim.broker import Broker, Outcome, TopicLog
from tests.sim.faults import Plan
from tests.sim.ports import openings_in
from tests.sim.tables import PIECES_MAX, empty_table

Records = list[tuple[int, bytes, bytes | None]]


def decided(log: TopicLog) -> Records:
    """Return what is committed, whether or not its markers are there: a recovery waits for them."""
    return [
        (offset, record[1], record[2])
        for offset, record in enumerate(log.records)
        if record is not None and record[0].outcome is Outcome.COMMITTED
    ]


PolicyHistory = list[tuple[int, Policy]]
"""(Offset from which on it holds, policy), as recorded; read apart from the engine's own class."""


def history_in(value: bytes) -> PolicyHistory:
    """Return what an entry records."""
    names = [each.name for each in fields(Policy)]
    return [
        (each["from_offset"], Policy(**{name: each["terms"]["policy"][name] for name in names}))
        for each in json.loads(value)
    ]


def oracles(policy: EnginePolicy) -> Policy:
    """Return a policy as the oracle has it."""
    return Policy(**{each.name: getattr(policy, each.name) for each in fields(Policy)})


def policy_at(history: PolicyHistory, offset: int) -> Policy:
    """Return the policy for the record at an offset."""
    return [policy for from_offset, policy in history if from_offset <= offset][-1]


def drill(
    plan: Plan, broker: Broker, partition: int, histories: Mapping[int, PolicyHistory]
) -> list[str]:
    """Return what is wrong with a recovery from here; nothing of the history is touched."""
    segments_topic = SegmentsTopic("segments", "id", plan.partitions)
    latest = {key: value for _, key, value in decided(broker.changelog[partition])}
    entries = {key: value for key, value in latest.items() if value is not None}
    published = decided(broker.totals[partition])
    log = broker.segments[partition]
    place = Place(partition, plan.partitions)
    history = decode_history(entries.get(b"%d/policy" % partition))
    history = history or (PolicyRecord(0, Terms(plan.settings.policy)),)
    meta = find_meta(entries, partition, segments_topic, None)
    held = in_force(history, 0 if meta is None else meta.next_offset)
    table = empty_table(plan.columns, place, held.policy, OWN_SCHEMA_ONLY)
    start = 0 if meta is None else meta.totals_offset or 0
    tail = Tail(
        [each for each in published if each[0] >= start], len(broker.totals[partition].records)
    )
    task = recovery.restore_task(
        table, entries, segments_topic, meta, first_offset=0, tail=tail,
        openings=_openings_since(broker, partition, meta),
    )  # fmt: skip
    passed_on = {each.source_offset for each in openings_in(decided(broker.orders[partition]))}
    later: list[Total] = []
    later_openings: list[Opening] = []
    if task.next_offset < log.visible_end:
        rest = Chunk(task.next_offset, log.visible_end, log.data(task.next_offset))
        for terms, piece in split(rest, history):
            if terms is not None:
                task.use(terms)
            effects = table.fold(piece)
            later_openings += task.openings_not_yet_published(effects.openings)
            later += task.not_yet_published(effects.totals)
    task.use(history[-1].terms)  # they hold for whatever will move the time
    later += task.not_yet_published(settle_all(table))
    found: dict[str, list[bytes | None]] = defaultdict(list)
    for key, value in [(key, value) for _, key, value in published] + [*later]:
        found[key.decode()].append(value)
    logs = [record for each in broker.segments for record in each.records]

    def policy_of(partition: int, offset: int) -> Policy:
        return policy_at(histories.get(partition) or [(0, oracles(plan.settings.policy))], offset)

    known = truth.read_log(logs, policy_of, plan.partitions, pieces_max=PIECES_MAX)
    expected = {
        number: [encode_total(each) for each in totals]
        for number, totals in known.totals.items()
        if partition_for(number.encode(), plan.partitions) == partition
    }
    opened = sorted([*passed_on, *(each.offset for each in later_openings)])
    must_be = sorted(_offset_in(each, partition) for each in known.opened)
    must_be = [each for each in must_be if each >= 0]
    wrong = [] if opened == must_be else [f"opened would be {opened}, not {must_be}"]
    return wrong + [
        f"{number} would be {short(found[number])}, not {short(expected.get(number, []))}"
        for number in sorted(expected.keys() | found.keys())
        if expected.get(number, []) != found[number]
    ]


def _openings_since(broker: Broker, partition: int, meta: CheckpointMeta | None) -> OpeningsTail:
    start = 0 if meta is None else meta.orders_offset or 0
    log = broker.orders[partition]
    found = openings_in(each for each in decided(log) if each[0] >= start)
    return OpeningsTail(found, len(log.records))


def _offset_in(place: bytes, partition: int) -> int:
    """Return the offset of a place `partition/offset`, -1 if it is in another partition."""
    own, _, offset = place.partition(b"/")
    return int(offset) if int(own) == partition else -1


def settle_all(table: IntervalTable) -> list[Total]:
    """Let time pass until every order of a table has settled; return the totals."""
    totals: list[Total] = []
    while (deadline_ms := table.oldest_deadline_ms()) is not None:
        settled = table.tick(deadline_ms + 1).totals
        assert settled, f"something due at {deadline_ms} never settles"
        totals += settled
    return totals


def short(totals: Sequence[bytes | None]) -> list[str]:
    """Return totals in a form that fits on a line."""
    decoded = map(decode_total, totals)
    return [
        f"{each.revision}:{each.status.value} {each.duration_ms} ms, {each.segments}"
        f"+{each.duplicates} @{each.source_offset}, {each.settled_at_ms % 10**7}"
        for each in decoded
    ]
