"""A worker's place in its group: partitions are shared out whatever a broker's metadata lacks.

A broker that has just started may answer before it knows of our topics. Faust's assignor leaves
topics out that metadata lacks, gives nobody any partitions, and stays so until the next rebalance.
What it needs of metadata is the number of partitions, which a worker knows since its start; should
it change, the worker ends (see `driver`). So our assignor doesn't ask.
"""

from collections.abc import Set
from typing import Any

from faust.assignor import PartitionAssignor


class KnownTopics:
    """A cluster's metadata in which topics have the partitions that they are known to have."""

    def __init__(self, cluster: Any, counts: dict[str, int]) -> None:
        self._cluster = cluster
        self._counts = counts

    def partitions_for_topic(self, topic: str) -> Set[int] | None:
        """Return the partitions of a topic."""
        count = self._counts.get(topic)
        if count is not None:
            return frozenset(range(count))
        found: Set[int] | None = self._cluster.partitions_for_topic(topic)
        return found


class Assignor(PartitionAssignor):
    """Faust's assignor, which knows the partitions of our topics by itself."""

    def assign(self, cluster: Any, member_metadata: Any) -> Any:
        """Share out all partitions; called in the group's leader."""
        known = dict.fromkeys(self._our_topics(), self._count())
        return super().assign(KnownTopics(cluster, known), member_metadata)

    def unowned(self) -> list[int]:
        """Return the partitions that the leader's last word gave to nobody, us included.

        None has an owner before the first assignment.
        """
        segments = self._our_topics()[0]
        owned = {
            partition
            for topics in self.external_topic_distribution.values()
            for partition in topics.get(segments, ())
        }
        return sorted(set(range(self._count())) - owned)

    def _get_external_topic_distribution(self, assignments: Any) -> Any:
        """Return who has which partitions by web address, also where two members share one."""
        shared: dict[str, dict[str, list[int]]] = {}
        for client, assignment in assignments.items():
            ours = super()._get_external_topic_distribution({client: assignment})
            for url, topics in ours.items():
                those = shared.setdefault(url, {})
                for topic, partitions in topics.items():
                    those[topic] = sorted({*those.get(topic, ()), *partitions})
        return shared

    def _our_topics(self) -> list[str]:
        app: Any = self.app
        return [app.segments_topic_name, *app.tables.changelog_topics]

    def _count(self) -> int:
        app: Any = self.app
        count: int = app.segments_partitions
        return count
