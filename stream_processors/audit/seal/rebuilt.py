"""A rebuilt totals topic takes the old one's place in the sealed log, by signed lines.

The log of each partition of the old topic ends with the line `closed totals-rebuilt`, and names the
log that goes on; that one begins with the line `follows`, which has the old one's size and root. So
nobody can pass a rebuilt topic for the one that was sealed, or forget that there was another. The
new log is there first: a kill between the two leaves nothing that the next run doesn't mend.
"""

from collections.abc import Sequence
from pathlib import Path

from confluent_kafka.admin import AdminClient

from durabill.schemas.errors import UnreachableError
from durabill.stream_processors.audit.seal.checkpoints import REBUILT, Follows, Origin
from durabill.stream_processors.audit.seal.folder import locked, logs_in
from durabill.stream_processors.audit.seal.growing import GrowingLog
from durabill.stream_processors.audit.seal.keys import KeyFile
from durabill.stream_processors.audit.seal.opening import SealPlan
from durabill.stream_processors.audit.seal.publish import Publisher
from durabill.stream_processors.audit.seal.source import look_at_topic
from durabill.stream_processors.kafka.options import quiet


def hand_over_logs(
    folder: Path, keys: KeyFile, old_topic: str, news: Sequence[Origin]
) -> list[GrowingLog]:
    """Have the new logs follow what is open of the old topic's; return all that was signed.

    A partition without an old log begins as any other. What is handed over already stays as it is.
    Raises SealError where the folder isn't what a sealer with our keys left behind.
    """
    signed = []
    for origin in news:
        old = _open_log_of(folder, keys, old_topic, origin)
        if old is None:
            continue
        new = GrowingLog(folder, origin, keys)
        if not new.resume():
            new.begin(Follows(old.origin, old.checkpoint.size, old.checkpoint.root))
        old.close(REBUILT, origin)
        signed += [new, old]
    return signed


def _open_log_of(folder: Path, keys: KeyFile, topic: str, by: Origin) -> GrowingLog | None:
    """Return the log of the same partition of the old topic that is not closed."""
    found = []
    for each in logs_in(folder, by.cluster, topic):
        log = GrowingLog(folder, each, keys)
        if each.partition == by.partition and log.resume() and log.checkpoint.closed is None:
            found.append(log)
    return max(found, key=lambda log: log.origin.first_offset, default=None)


def hand_over_topic(plan: SealPlan, new_topic: str) -> int:
    """Hand the logs of a plan's topic over to those of a rebuilt one, and publish what was signed.

    Returns how many logs were handed over. Raises SealBusy while a sealer works in the folder.
    """
    with locked(plan.folder):
        state = look_at_topic(AdminClient(quiet(plan.kafka)), plan.kafka, new_topic)
        news = [
            Origin(state.cluster, new_topic, state.topic_id, each)
            for each in range(state.partitions)
        ]
        signed = hand_over_logs(plan.folder, plan.keys, plan.totals_topic, news)
        publisher = Publisher(plan.kafka, plan.checkpoints_topic, plan.dsn)
        for log in signed:
            publisher.owe(log.checkpoint, log.note)
        if troubles := publisher.deliver():
            raise UnreachableError("; ".join(troubles) + ". The folder has all of them")
        return len(signed) // 2
