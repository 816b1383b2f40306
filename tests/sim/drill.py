"""What if everybody died here? A recovery from what is committed at some moment, on the side.

A crash shows a mistake in a checkpoint only if it comes at the right moment. So at some of the
moments at which a checkpoint becomes visible, the engine's own recovery is run on what there is,
the rest of the log is folded and settled, and what has been said until then, together with what
this would still say, must be the truth about the log as it is.
"""

from collections import defaultdict
from collections.abc import Sequence

from producers import truth
from producers.truth_order import Policy
from schemas import OWN_SCHEMA_ONLY, decode_total, encode_total, partition_for
from stream_processors import checkpoint
from stream_processors.batch import Chunk
from stream_processors.checkpoint import Origin, marks_of
from stream_processors.outlet import Tail
from stream_processors.table import IntervalTable, Place, Total
from tests.sim.broker import Broker, Outcome, TopicLog
from tests.sim.faults import Plan
from tests.sim.tables import PIECES_MAX, empty_table

Records = list[tuple[int, bytes, bytes | None]]


def decided(log: TopicLog) -> Records:
    """Return what is committed, whether or not its markers are there: a recovery waits for them."""
    return [
        (offset, record[1], record[2])
        for offset, record in enumerate(log.records)
        if record is not None and record[0].outcome is Outcome.COMMITTED
    ]


def drill(plan: Plan, broker: Broker, partition: int, policy: Policy) -> list[str]:
    """Return what is wrong with a recovery from here; nothing of the history is touched."""
    origin = Origin("segments", "id", plan.partitions)
    latest = {key: value for _, key, value in decided(broker.changelog[partition])}
    entries = {key: value for key, value in latest.items() if value is not None}
    said = decided(broker.totals[partition])
    log = broker.segments[partition]
    place = Place(partition, plan.partitions)
    table = empty_table(plan.columns, place, plan.settings.policy, OWN_SCHEMA_ONLY)
    marks = marks_of(entries, partition, origin, None)
    start = len(broker.totals[partition].records) if marks is None else marks.totals_offset or 0
    tail = Tail([each for each in said if each[0] >= start], len(broker.totals[partition].records))
    lane = checkpoint.restore_lane(table, entries, origin, marks, first_offset=0, tail=tail)
    later: list[Total] = []
    if lane.next_offset < log.next_offset:
        rest = b"".join(data for _, after, data in log.batches if after > lane.next_offset)
        effects = table.fold(Chunk(lane.next_offset, log.next_offset, rest))
        later += lane.unsaid(effects.totals)
    later += lane.unsaid(settle_all(table))
    found: dict[str, list[bytes | None]] = defaultdict(list)
    for key, value in [(key, value) for _, key, value in said] + [*later]:
        found[key.decode()].append(value)
    logs = [record for each in broker.segments for record in each.records]
    known = truth.read_log(logs, policy, plan.partitions, pieces_max=PIECES_MAX)
    expected = {
        number: [encode_total(each) for each in totals]
        for number, totals in known.totals.items()
        if partition_for(number.encode(), plan.partitions) == partition
    }
    return [
        f"{number} would be {short(found[number])}, not {short(expected.get(number, []))}"
        for number in sorted(expected.keys() | found.keys())
        if expected.get(number, []) != found[number]
    ]


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
