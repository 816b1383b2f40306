"""What counts as standing still, with a clock by hand; tests/broker puts hangs into workers."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from durabill.schemas.errors import StallError
from durabill.stream_processors.worker.health import Health

TIMEOUT_S = 10.0


class Bench:
    """A health and the numbers that it looks at."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.lag, self.waiting_s = 0, 0.0
        self.task = SimpleNamespace(next_offset=5, held="", is_broken=False)
        writer = SimpleNamespace(waiting_s=lambda: self.waiting_s)
        processor: Any = SimpleNamespace(
            tasks={3: self.task},
            writers={3: writer},
            lag=lambda partition: self.lag,
            last_checkpoint_ms=0,
            last_tick_ms=0,
            stopping=False,
            is_assigned=True,
        )
        self.processor: Any = processor
        self.health = Health(self.processor, TIMEOUT_S, lambda: self.now_s)
        self.health.observe()

    def pass_by(self, seconds: float, *, ticking: bool = True, checkpointing: bool = True) -> None:
        """Lets time pass, observed each second."""
        for _ in range(round(seconds)):
            self.now_s += 1
            self.processor.last_tick_ms += ticking
            self.processor.last_checkpoint_ms += checkpointing
            self.health.observe()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_silence_is_no_problem(bench: Bench) -> None:
    bench.pass_by(1_000)
    assert bench.health.problems() == []
    assert bench.health.unready() == []


def test_records_that_wait_and_are_not_read(bench: Bench) -> None:
    bench.lag = 7
    bench.pass_by(TIMEOUT_S)
    assert bench.health.problems() == []
    bench.pass_by(1)
    assert bench.health.problems() == ["reading partition 3: still for 11 s"]
    bench.task.next_offset += 1
    bench.pass_by(1)
    assert bench.health.problems() == []


def test_silence_before_a_hang_does_not_count(bench: Bench) -> None:
    bench.pass_by(100)
    bench.lag = 1
    bench.pass_by(TIMEOUT_S)
    assert bench.health.problems() == []


def test_checkpoints_and_timers_have_to_go_on(bench: Bench) -> None:
    bench.pass_by(TIMEOUT_S + 1, checkpointing=False)
    assert bench.health.problems() == ["checkpoints: still for 11 s"]
    bench.pass_by(TIMEOUT_S + 1, ticking=False)
    assert bench.health.problems() == ["timers: still for 11 s"]


def test_totals_that_are_not_committed(bench: Bench) -> None:
    bench.waiting_s = TIMEOUT_S + 0.5
    assert bench.health.problems() == ["publishing partition 3: still for 10 s"]


def test_a_stall_of_twice_the_time_ends_the_worker(bench: Bench) -> None:
    bench.pass_by(2 * TIMEOUT_S, ticking=False)
    with pytest.raises(StallError, match="timers: still for 21 s"):
        bench.pass_by(1, ticking=False)


def test_a_worker_without_partitions_has_nothing_to_do(bench: Bench) -> None:
    bench.processor.tasks.clear()
    bench.processor.writers.clear()
    bench.pass_by(1_000, ticking=False, checkpointing=False)
    assert bench.health.problems() == []
    assert bench.health.unready() == []
    bench.processor.is_assigned = False
    assert bench.health.unready() == ["it has no partitions: it joins the group, or recovers"]
    bench.processor.stopping = True
    assert bench.health.unready() == ["it is stopping"]


def test_a_held_partition_is_said_again_each_minute(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durabill.worker")

    def said() -> list[tuple[int, str]]:
        lines = [(each.levelno, each.getMessage()) for each in caplog.records]
        caplog.clear()
        return lines

    bench.task.held = "asks the schema registry"
    bench.pass_by(60)
    assert said() == []
    bench.pass_by(1)
    text = "partition 3 has been held for 60 s: asks the schema registry"
    assert [(logging.WARNING, text)] == said()
    bench.task.held, bench.task.is_broken = "a bug", True  # another reason is no new beginning
    bench.pass_by(59)
    assert said() == []
    bench.pass_by(1)
    assert said() == [(logging.CRITICAL, "partition 3 has been held for 120 s: a bug")]
    bench.task.held, bench.task.is_broken = "", False
    bench.pass_by(1)
    bench.task.held = "again"
    bench.pass_by(60)
    assert said() == []
    assert bench.health.unready() == ["partition 3 is held: again"]


def test_a_broken_partition_is_no_stall(bench: Bench) -> None:
    bench.lag, bench.task.held, bench.task.is_broken = 9, "a bug", True
    bench.pass_by(10 * TIMEOUT_S)
    assert bench.health.problems() == []
