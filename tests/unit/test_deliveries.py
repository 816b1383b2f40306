"""Which records have been acknowledged, by flush generation."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError

from durabill.stream_processors.kafka.deliveries import Deliveries
from tests.waiting import HANG_S

MESSAGE: Any = SimpleNamespace(topic=lambda: "segments")


def ours(error: BaseException) -> None:
    raise AssertionError(error)


def is_acknowledged(deliveries: Deliveries, generation: int) -> bool:
    async def ask() -> bool:
        try:
            await asyncio.wait_for(deliveries.acknowledged(generation), 0.01)
        except TimeoutError:
            return False
        return True

    return asyncio.run(ask())


def test_a_generation_waits_for_its_own_records_and_those_before_it() -> None:
    deliveries = Deliveries(ours)
    assert is_acknowledged(deliveries, deliveries.close_generation())
    first = deliveries.expect()
    early = deliveries.close_generation()
    second, third = deliveries.expect(), deliveries.expect()
    late = deliveries.close_generation()
    second(None, MESSAGE)
    third(None, MESSAGE)
    assert not is_acknowledged(deliveries, early)
    assert not is_acknowledged(deliveries, late)
    first(None, MESSAGE)
    assert is_acknowledged(deliveries, early)
    assert is_acknowledged(deliveries, late)


def test_what_comes_after_a_generation_is_not_waited_for() -> None:
    deliveries = Deliveries(ours)
    closed = deliveries.close_generation()
    deliveries.expect()
    assert is_acknowledged(deliveries, closed)


def test_a_report_from_another_thread_wakes_all_who_wait_for_it() -> None:
    deliveries = Deliveries(ours)
    report = deliveries.expect()
    closed = deliveries.close_generation()

    async def wait() -> None:
        waiting = [asyncio.ensure_future(deliveries.acknowledged(closed)) for _ in range(2)]
        await asyncio.sleep(0)
        thread = threading.Thread(target=report, args=(None, MESSAGE))
        thread.start()
        await asyncio.wait_for(asyncio.gather(*waiting), HANG_S)
        thread.join()

    asyncio.run(wait())


def test_a_lost_record_is_told_and_its_generation_stays_open() -> None:
    told: list[BaseException] = []
    deliveries = Deliveries(told.append)
    report = deliveries.expect()
    closed = deliveries.close_generation()
    report(KafkaError(KafkaError._MSG_TIMED_OUT), MESSAGE)
    (error,) = told
    assert "a record for segments was not delivered" in str(error)
    assert not is_acknowledged(deliveries, closed)
