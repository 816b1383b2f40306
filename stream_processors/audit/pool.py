"""Runs work on partitions: in this process, or in several, a partition at a time."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import psycopg
from confluent_kafka import KafkaException

from durabill.schemas.errors import DurabillError, SettingsError
from durabill.stream_processors.audit.errors import AuditError
from durabill.stream_processors.audit.replay import Engine
from durabill.stream_processors.audit.sources import Wanted
from durabill.stream_processors.dsn import error_text

LOOK_S = 0.2
SMALL_LOG = {Engine.COLUMNS: 4_000_000, Engine.REFERENCE: 100_000}
"""A log of fewer records is done before other processes would have started."""

Progress = Callable[[str, int, int], None]

Tell = Callable[[int, int], None]
"""Called as tell(partition, next offset) now and then."""


class Job(Wanted, Protocol):
    """Work on one partition, [first_offset, end_offset); it must be possible to pickle it."""

    @property
    def engine(self) -> Engine:
        """Return by what the log is folded."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")

_positions: Any = None
"""In a process of the pool: the next offset of each partition, which the parent looks at."""


@contextmanager
def audit_errors() -> Iterator[None]:
    """Raise AuditError for what keeps an audit, or a replay, from being carried out."""
    try:
        yield
    except (AuditError, SettingsError):
        raise
    except DurabillError as error:
        raise AuditError(str(error)) from error
    except KafkaException as error:
        cause = error.args[0]
        raise AuditError(f"Kafka: {cause.str() if hasattr(cause, 'str') else cause}") from error
    except psycopg.Error as error:
        raise AuditError(f"PostgreSQL: {error_text(error)}") from error


def run_jobs(
    jobs: Sequence[J],
    work: Callable[[J, Tell], R],
    processes: int | None,
    progress: Progress,
    phase: str = "auditing",
) -> tuple[list[R], int]:
    """Return what `work` gives for each job, and how many processes have worked.

    `work` is a function of a module, so that it can go to another process. `processes` None: one a
    core, where the log is long enough for that to be worth it. Raises AuditError.
    """
    total = sum(job.end_offset - _first(job) for job in jobs)
    if processes is None:
        is_small = all(total < SMALL_LOG[job.engine] for job in jobs)
        processes = 1 if is_small else _cores()
    processes = min(processes, max(1, len(jobs)))
    for engine in {job.engine for job in jobs}:
        load(engine)
    if processes > 1:
        tell_all = partial(progress, phase)
        return _in_processes(jobs, work, processes, tell_all, total), processes
    firsts = {job.place.partition: _first(job) for job in jobs}
    done = dict.fromkeys(firsts, 0)

    def tell(partition: int, next_offset: int) -> None:
        done[partition] = next_offset - firsts[partition]
        progress(phase, sum(done.values()), total)

    return [_outcome(job, work, tell) for job in jobs], 1


def _first(job: Job) -> int:
    """Return where a job's log begins, an archive's part included."""
    begins = getattr(job, "begins", None)
    return job.first_offset if begins is None else int(begins)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(engine: Engine) -> None:
    """Have the engine's code loaded and compiled: what that takes is not the audit's work."""
    if engine is Engine.COLUMNS:
        from durabill.stream_processors.engine.columns import compile_kernel

        compile_kernel()


def _outcome(job: J, work: Callable[[J, Tell], R], tell: Tell) -> R:
    with audit_errors():
        return work(job, tell)


def _in_processes(
    jobs: Sequence[J],
    work: Callable[[J, Tell], R],
    processes: int,
    progress: Callable[[int, int], None],
    total: int,
) -> list[R]:
    context = multiprocessing.get_context("spawn")
    positions = context.Array("q", max(job.place.partition for job in jobs) + 1, lock=False)
    for job in jobs:
        positions[job.place.partition] = _first(job)
    engines = {job.engine for job in jobs}
    pool = ProcessPoolExecutor(processes, context, _begin, (positions, engines))
    try:
        # The longest first, so that no process is left with one of them at the end.
        order = sorted(jobs, key=lambda job: _first(job) - job.end_offset)
        futures = {job.place.partition: pool.submit(_task, job, work) for job in order}
        _watch(futures.values(), jobs, positions, progress, total)
        outcomes = [futures[job.place.partition].result() for job in jobs]
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # one of them has failed, or somebody has had enough
        if isinstance(error, BrokenProcessPool):
            raise AuditError(
                "a process of this command was killed (is there enough memory?); with fewer"
                " --processes it needs less"
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return outcomes


def _watch(
    futures: Iterable["Future[R]"],
    jobs: Sequence[J],
    positions: Any,
    progress: Callable[[int, int], None],
    total: int,
) -> None:
    """Return when all are done, or one has failed; tell how far they are meanwhile."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, LOOK_S, FIRST_COMPLETED)
        for each in done:
            each.result()
        reached = sum(positions[job.place.partition] - _first(job) for job in jobs)
        progress(reached, total)


def _begin(positions: Any, engines: set[Engine]) -> None:
    """Set up a process of the pool."""
    global _positions
    _positions = positions
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for engine in engines:
        load(engine)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        time.sleep(1)
    os._exit(2)


def _task(job: J, work: Callable[[J, Tell], R]) -> R:
    def tell(partition: int, next_offset: int) -> None:
        _positions[partition] = next_offset

    return _outcome(job, work, tell)
