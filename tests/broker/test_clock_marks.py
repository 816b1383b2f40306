"""Clock marks on a real broker: none while records flow, and soon enough."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Message

from durabill.schemas import Status, decode_total, partition_for
from durabill.schemas.clock_mark import is_clock_mark
from tests.broker.traffic_kit import Pair, now_ms, segment
from tests.broker.worker_kit import Deployment, deployment, read_committed
from tests.waiting import wait_until

TRIES = 5
"""A machine that is busy with other things may be slow once; what is broken is so each time."""

FLOW_S = 3.0
PAUSE_S = 0.02
MARKS_AFTER_MAX = 12
"""Three seconds of deadlines by four marks a second, though each order needs one at most."""

LATE_MS_MAX = 2_000


def marks(deployed: Deployment) -> list[Message]:
    """The clock marks in the log."""
    log = read_committed(deployed.bootstrap_servers, deployed.segments)
    return [each for each in log if is_clock_mark(each.value())]


def in_partition(partition: int, partitions: int, prefix: str) -> Iterator[str]:
    """Order numbers that belong to a partition, without end."""
    number = 0
    while True:
        number += 1
        name = f"{prefix}-{number}"
        if partition_for(name.encode(), partitions) == partition:
            yield name


def flow(deployed: Deployment, prefix: str) -> Iterator[Pair]:
    """Records for every partition in turn; orders without an end, so that all of them idle."""
    names = [in_partition(each, deployed.partitions, prefix) for each in range(deployed.partitions)]
    until_s = time.monotonic() + FLOW_S
    while time.monotonic() < until_s:
        for each in names:
            at_ms = now_ms()
            yield segment(next(each), 1, at_ms - 10, at_ms)


def nothing_while_records_flow(bootstrap_servers: str, folder: Path) -> None:
    """Deadlines pass by the records, which come anyway; the silence after them costs a few."""
    with deployment(
        bootstrap_servers, folder, partitions=2, settle_grace_s=0.3, idle_timeout_s=0.5
    ) as deployed:
        deployed.start_and_wait()
        wrong: list[str] = []
        for at in range(TRIES):
            began_ms = now_ms()
            deployed.send(flow(deployed, f"flow-{at}"), pause_s=PAUSE_S)
            ended_ms = now_ms()
            came_ms = [each.timestamp()[1] for each in deployed.found_totals()]
            settled = sum(began_ms < each < ended_ms for each in came_ms)
            deployed.wait_for_truth()
            found = [each for each in marks(deployed) if each.timestamp()[1] > began_ms]
            after = [each.partition() for each in found if each.timestamp()[1] >= ended_ms]
            assert {0, 1} == set(after), "what the flow has left open is settled by marks"
            most = max(map(after.count, after))
            in_flow = len(found) - len(after)
            wrong.append(f"{in_flow} in the flow, {settled} settled meanwhile, {most} after it")
            if in_flow == 0 < settled and most <= MARKS_AFTER_MAX:
                break
        else:
            raise AssertionError(wrong)
        # One may have been on its way yet; then nothing is open, so none is needed.
        wait_until(lambda: stays_quiet(deployed), "no mark comes any more")


def stays_quiet(deployed: Deployment) -> bool:
    """Whether no mark comes for a while."""
    before = len(marks(deployed))
    time.sleep(1.0)
    return len(marks(deployed)) == before


def late_ms(deployed: Deployment, prefix: str) -> dict[Status, int]:
    """How late the last total of each status came, by the log's own times."""
    before = len(deployed.found_totals())
    at_ms = now_ms() - 10_000
    names = [next(in_partition(each, 2, f"{prefix}-holey")) for each in range(2)]
    names += [next(in_partition(each, 2, f"{prefix}-endless")) for each in range(2)]
    for name in names:
        deployed.send([segment(name, 2, at_ms, at_ms + 10, end="holey" in name)])
    wait_until(lambda: len(deployed.found_totals()) == before + 4, "four totals")
    deployed.wait_for_truth()
    late: dict[Status, int] = {}
    for each in deployed.found_totals():
        total = decode_total(each.value())
        if total.service_order_number.startswith(prefix):
            by_ms = each.timestamp()[1] - total.settled_at_ms
            assert by_ms >= 0, total
            late[total.status] = max(by_ms, late.get(total.status, 0))
    return late


def silent_orders_settle_in_time(bootstrap_servers: str, folder: Path) -> None:
    """INCOMPLETE and ABANDONED in a partition to which nothing comes any more."""
    with deployment(bootstrap_servers, folder, partitions=2) as deployed:
        deployed.start_and_wait()
        found: list[dict[Status, int]] = []
        for at in range(TRIES):
            found.append(late_ms(deployed, f"try-{at}"))
            assert {Status.INCOMPLETE, Status.ABANDONED} == found[-1].keys()
            if max(found[-1].values()) <= LATE_MS_MAX:
                return
        raise AssertionError(found)


CASES = {each.__name__: each for each in (nothing_while_records_flow, silent_orders_settle_in_time)}


@pytest.fixture(scope="module")
def outcomes(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What came of each case; all run side by side."""
    folder = tmp_path_factory.mktemp("marks")
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {name: pool.submit(case, bootstrap_servers, folder) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_clock_marks(outcomes: dict[str, Future[None]], case: str) -> None:
    outcomes[case].result(250)
