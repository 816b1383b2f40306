"""Assigns partitions to the workers of a group, also where a broker's metadata lacks our topics.

A broker that has just started may answer before it knows our topics. Faust's assignor leaves out
the topics that metadata lacks: it assigns no partitions to anybody until the next rebalance. All
that it needs from metadata is the number of partitions. A worker knows that number since its start,
and ends should it change (see `driver`). So our assignor doesn't ask for metadata.
"""

from collections.abc import Set
from typing import Any

from faust.assignor import PartitionAssignor


class KnownTopics:
    """A cluster's metadata, with the numbers of partitions that a worker knows by itself."""

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
        """Assign all partitions; called in the group's leader."""
        known = dict.fromkeys(self._our_topics(), self._count())
        return super().assign(KnownTopics(cluster, known), member_metadata)

    def unowned(self) -> list[int]:
        """Return the partitions that the leader's last assignment gave to nobody.

        Before the first assignment these are all.
        """
        segments = self._our_topics()[0]
        owned = {
            partition
            for topics in self.external_topic_distribution.values()
            for partition in topics.get(segments, ())
        }
        return sorted(set(range(self._count())) - owned)

    def _get_external_topic_distribution(self, assignments: Any) -> Any:
        """Return the partitions by web address, also where two members share an address."""
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
