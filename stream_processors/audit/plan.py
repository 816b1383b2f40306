"""What an audit has to do: which partitions, up to which ends, by which terms."""

from collections.abc import Mapping, Sequence

from durabill.schemas import partition_for
from durabill.schemas.errors import AccessError
from durabill.stream_processors.audit.archive_check import ArchiveCheck, archived_since
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.ledger_view import OpenLedger
from durabill.stream_processors.audit.options import AuditOptions
from durabill.stream_processors.audit.partition_job import PartitionJob
from durabill.stream_processors.audit.pool import Progress
from durabill.stream_processors.audit.scope import TotalsScope
from durabill.stream_processors.audit.terms import RecordedTerms
from durabill.stream_processors.core.admission import Place
from durabill.stream_processors.kafka.options import LOOK_GROUP, quiet
from durabill.stream_processors.kafka.reading import (
    common_partition_count,
    offsets_since,
    read_bounds,
)
from durabill.stream_processors.kafka.topic_ids import find_topic_ids
from durabill.stream_processors.settings import Settings

Bounds = dict[int, tuple[int, int]]


class AuditPlan:
    """The jobs of one audit. Raises ContractError where the topics don't fit together."""

    def __init__(self, settings: Settings, options: AuditOptions) -> None:
        self._settings = settings
        self._options = options
        self._kafka = quiet(settings.librdkafka())
        self.partitions = self._partition_count()
        self.has_orders = self._has_orders()

    def _partition_count(self) -> int:
        settings = self._settings
        return common_partition_count(self._kafka, settings.segments_topic, settings.totals_topic)

    def _has_orders(self) -> bool:
        """Tell whether there is an orders topic: a deployment from before has none."""
        settings = self._settings
        try:
            common_partition_count(self._kafka, settings.orders_topic, settings.segments_topic)
        except AccessError:
            return False
        return True

    def wanted(self) -> list[int]:
        """Return the partitions that are asked for. Raises AuditError for what is not there."""
        options, partitions = self._options, self.partitions
        wrong = [each for each in options.partitions if not 0 <= each < partitions]
        wrong += [each for each in options.as_of_offsets if not 0 <= each < partitions]
        if wrong:
            raise AuditError(
                f"{self._settings.segments_topic} has no partition"
                f" {', '.join(map(str, wrong))}: it has 0 to {partitions - 1}"
            )
        wanted = set(options.partitions or range(partitions))
        if options.order:
            own = partition_for(options.order.encode(), partitions)
            if own not in wanted:
                raise AuditError(f"order {options.order} lives in partition {own}")
            wanted = {own}
        return sorted(wanted)

    def jobs(
        self,
        wanted: Sequence[int],
        archive: ArchiveCheck,
        ledger: OpenLedger | None,
        progress: Progress,
    ) -> list[PartitionJob]:
        """Return what is to be done, once the moment of the ledger has been taken.

        Takes the ends of totals and orders, then those of the segments, then the recorded terms.
        """
        settings, options = self._settings, self._options
        totals = read_bounds(self._kafka, LOOK_GROUP, settings.totals_topic, wanted)
        orders: Bounds = {}
        if self.has_orders:
            orders = read_bounds(self._kafka, LOOK_GROUP, settings.orders_topic, wanted)
        segments = read_bounds(self._kafka, LOOK_GROUP, settings.segments_topic, wanted)
        ends = self._ends(segments, archive)
        log_id = find_topic_ids(self._kafka, settings.segments_topic)[settings.segments_topic]
        recorded = RecordedTerms(settings, wanted, progress)
        return [
            PartitionJob(
                archive.settings_for(settings, each),
                Place(each, self.partitions),
                recorded.of(each),
                segments[each][0],
                ends[each],
                *totals[each],
                TotalsScope(options.order, options.from_ms, options.to_ms),
                options.engine,
                is_as_of=ends[each] < segments[each][1],
                has_checkpoint=recorded.has_checkpoint(each),
                ledger=None if ledger is None else ledger.view,
                begins=archive.begins(each, segments[each][0]),
                from_archive=options.from_archive and each in archive.usable,
                orders=orders.get(each, (0, 0)),
                has_orders=self.has_orders,
                log_id=log_id,
            )
            for each in wanted
        ]

    def _ends(self, segments: Bounds, archive: ArchiveCheck) -> dict[int, int]:
        """Return where the replay of each partition ends."""
        options, topic = self._options, self._settings.segments_topic
        ends = {each: end for each, (_, end) in segments.items()}
        if options.as_of_ms is not None:
            since = offsets_since(self._kafka, topic, options.as_of_ms, list(ends))
            ends = {each: min(end, since.get(each, end)) for each, end in ends.items()}
            ends.update(self._archived_ends(segments, ends, archive))
        for each, offset in options.as_of_offsets.items():
            if each in ends and offset > ends[each]:
                raise AuditError(f"{topic}/{each} ends at offset {ends[each]}, before {offset}")
            if each in ends:
                ends[each] = offset
        begins = {each: archive.begins(each, first) for each, (first, _) in segments.items()}
        return {each: max(begins[each], end) for each, end in ends.items()}

    def _archived_ends(
        self, segments: Bounds, ends: Mapping[int, int], archive: ArchiveCheck
    ) -> dict[int, int]:
        """Return where the replay ends of partitions whose end is in the archive's part."""
        manifest, as_of_ms, found = archive.manifest, self._options.as_of_ms, {}
        for each in archive.usable & set(ends):
            is_archived = ends[each] == segments[each][0]
            if manifest is not None and as_of_ms is not None and is_archived:
                offset = archived_since(self._settings, manifest, each, as_of_ms)
                found[each] = ends[each] if offset is None else min(offset, ends[each])
        return found
