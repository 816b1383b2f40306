"""A stand-in of Kafka for the worker's own code: one partition, all of it in memory, at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from durabill.stream_processors.engine.checkpoint import SegmentsTopic
from durabill.stream_processors.engine.effects import Opening
from durabill.stream_processors.engine.table import Effects, Total
from durabill.stream_processors.worker.ports import (
    Ends,
    Entry,
    OpeningsTail,
    PublishedOpening,
    Tail,
)


class StandWriter:
    """A partition's writer: what is put is in the changelog, and in the outputs, at once."""

    def __init__(self, world: "World") -> None:
        self.is_closed = False
        self._world = world

    @property
    def ends(self) -> Ends:
        return Ends(len(self._world.totals), len(self._world.openings))

    @property
    def strays(self) -> int:
        return 0

    def starts_at(self, ends: Ends) -> None:
        assert ends == self.ends

    def put_openings(self, openings: Sequence[Opening]) -> None:
        assert not self.is_closed
        self._world.openings += openings

    def put_totals(self, totals: Sequence[Total]) -> None:
        assert not self.is_closed
        self._world.totals += totals

    def put_entries(self, entries: Sequence[Entry]) -> None:
        assert not self.is_closed
        for key, content in entries:
            if content is None:
                self._world.changelog.pop(key, None)
            else:
                self._world.changelog[key] = content

    async def flushed(self) -> None:
        """All of it is."""

    async def wait_for_room(self) -> None:
        """It always has."""

    def waiting_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self.is_closed = True

    async def closed(self) -> None:
        """It is at once."""


class World:
    """A worker's runtime: a log that ends at `log_end`, the totals, and the changelogs."""

    segments_topic = SegmentsTopic("segments", "id", 1)

    def __init__(self, previous: Mapping[bytes, bytes] | None = None) -> None:
        self.changelog: dict[bytes, bytes] = {}
        self.totals: list[Total] = []
        self.openings: list[Opening] = []
        self.previous = previous or {}
        self.asked_previous: list[Sequence[int]] = []
        self.log_start_offset = self.log_end_offset = 0
        self.held: set[int] = set()
        self.now_s = 1000.0

    def assigned(self) -> list[int]:
        return [0]

    async def committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        return dict.fromkeys(partitions, None)

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        return True

    async def read_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        return dict(self.changelog)

    async def read_previous_entries(self, partitions: Sequence[int]) -> dict[bytes, bytes]:
        self.asked_previous.append(partitions)
        return dict(self.previous)

    async def log_bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        return dict.fromkeys(partitions, (self.log_start_offset, self.log_end_offset))

    async def totals_since(self, starts: Mapping[int, int | None]) -> dict[int, Tail]:
        records = [(at, *total) for at, total in enumerate(self.totals)]
        known = {each: start or 0 for each, start in starts.items()}
        end = len(self.totals)
        return {each: Tail([*records[start:]], end) for each, start in known.items()}

    async def openings_since(self, starts: Mapping[int, int | None]) -> dict[int, OpeningsTail]:
        found = [
            PublishedOpening(at, each.offset, each.key, each.value, "id")
            for at, each in enumerate(self.openings)
        ]
        known = {each: start or 0 for each, start in starts.items()}
        return {each: OpeningsTail(found[start:], len(found)) for each, start in known.items()}

    async def open_writer(self, partition: int) -> StandWriter:
        return StandWriter(self)

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """Chunks come by the test's hand."""

    def log_end(self, partition: int) -> int:
        return self.log_end_offset

    def high_watermark(self, partition: int) -> int:
        return self.log_end_offset

    def hold(self, partition: int, *, held: bool) -> None:
        (self.held.add if held else self.held.discard)(partition)

    def elapsed_s(self) -> float:
        return self.now_s

    async def aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)


class StandSideOutput:
    """A side output that keeps what it is given."""

    def __init__(self) -> None:
        self.effects: list[Effects] = []
        self.marks: list[tuple[int, Callable[[int | None], None]]] = []

    async def publish(self, partition: int, effects: Effects) -> None:
        self.effects.append(effects)

    def publish_mark(
        self, partition: int, value: bytes, on_told: Callable[[int | None], None]
    ) -> None:
        self.marks.append((partition, on_told))

    def close_generation(self) -> int:
        return 0

    async def delivered(self, generation: int) -> None:
        """All of it is."""

    def stop(self) -> None:
        """Nothing runs."""
