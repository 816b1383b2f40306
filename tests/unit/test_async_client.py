"""The SDK under asyncio: the same answers, and a loop that is never blocked."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from durabill.producers.sdk.async_client import AsyncClient
from durabill.producers.sdk.client import Client, ClientStopped
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.spool import Spool
from durabill.producers.sdk.uplink import NO_NOTES, Grant, SendNotes, SendResult
from durabill.schemas import SegmentEvent
from tests.broker.test_client import NOW_MS, Uplink, check_whole
from tests.waiting import HANG_S


class Slow(Uplink):
    """A server that takes its time for everything."""

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        time.sleep(0.3)
        return super().start(service_order_number, timeout_s=timeout_s)

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        time.sleep(0.2)
        return super().send(segments, notes)


class SlowToSayItsTime(Uplink):
    """A server that takes its time for that alone."""

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        time.sleep(0.2)
        return super().server_time(timeout_s=timeout_s)


def test_service_from_start_to_end(tmp_path: Path) -> None:
    uplink = Uplink()

    async def run() -> None:
        async with AsyncClient(uplink, tmp_path / "spool", client_name="m1") as client:
            async with await client.start() as service:
                while service.state.next_number < 4:
                    await asyncio.sleep(0.01)
            assert await client.flush(HANG_S) == 0
            stats = await client.stats()
            assert (stats.pending, stats.refused) == (0, 0)
            await client.start("left")
        with pytest.raises(ClientStopped, match="not open"):
            await client.start()
        async with AsyncClient(uplink, tmp_path / "spool") as client:
            (state,) = await client.unfinished()
            resumed = await client.resume(state.service_order_number)
            assert (await resumed.end()).acknowledged
            assert await client.rejected() == []
            assert await client.receipts() == []

    asyncio.run(run())
    check_whole([each for each in uplink.got if each.service_order_number == "SO1"])


def test_loop_goes_on_whatever_the_server_takes(tmp_path: Path) -> None:
    """Turns are counted, not timed: a loop that was blocked would have had none."""

    async def run() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        async with AsyncClient(Slow(), tmp_path / "spool") as client:
            for wait in (client.start, client.flush):
                before = turns
                await wait()
                assert turns > before + 5
        counting.cancel()

    asyncio.run(run())


def test_many_wait_for_their_end_at_once(tmp_path: Path) -> None:
    uplink = Uplink()

    async def run() -> None:
        async with AsyncClient(uplink, tmp_path / "spool") as client:
            names = [f"SO{each}" for each in range(300)]
            services = await asyncio.gather(
                *(client.start(grant=Grant(name, NOW_MS, 10_000)) for name in names)
            )
            uplink.is_up = False
            ending = [asyncio.create_task(each.end(HANG_S)) for each in services]
            await asyncio.sleep(0.1)
            uplink.is_up = True
            assert all(receipt.acknowledged for receipt in await asyncio.gather(*ending))

    asyncio.run(run())
    assert sum(each.end_identifier for each in set(uplink.got)) == 300


def test_end_gives_up_in_time_and_start_that_is_cancelled_meters_nothing(tmp_path: Path) -> None:
    uplink = Slow()

    async def run() -> None:
        async with AsyncClient(uplink, tmp_path / "spool", on_error=lambda _: None) as client:
            starting = asyncio.create_task(client.start("ghost"))
            await asyncio.sleep(0.1)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            service = await client.start("SO2")
            uplink.is_up = False
            receipt = await service.end(timeout_s=0.3)
            assert (receipt.pending > 0, receipt.acknowledged) == (True, False)
            uplink.is_up = True
            assert await client.flush(HANG_S) == 0
            assert await client.unfinished() == []

    asyncio.run(run())
    ghost = [each for each in uplink.got if each.service_order_number == "ghost"]
    assert ghost[-1].end_identifier


def test_resume_that_is_cancelled_leaves_the_service_unfinished(tmp_path: Path) -> None:
    """Its thread is at work and goes on: nobody else could ever end it."""
    uplink = SlowToSayItsTime()

    async def run() -> None:
        async with AsyncClient(uplink, tmp_path / "spool") as client:
            await client.start("SO1")
            await client.close(timeout_s=0)
        async with AsyncClient(uplink, tmp_path / "spool") as client:
            resuming = asyncio.create_task(client.resume("SO1"))
            await asyncio.sleep(0.05)  # its thread asks for the time
            resuming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await resuming
            await asyncio.to_thread(client._threads.shutdown)
            assert len(client._client()._reporter) == 0
            client._threads = ThreadPoolExecutor(2)
            assert [each.service_order_number for each in await client.unfinished()] == ["SO1"]
            service = await client.resume("SO1")
            assert (await service.end()).acknowledged
            assert await client.unfinished() == []

    asyncio.run(run())
    numbers = [each.business_data_number for each in uplink.got]
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))


def test_open_that_is_cancelled_holds_no_spool(tmp_path: Path) -> None:
    async def run() -> None:
        client = AsyncClient(Uplink(), tmp_path / "spool")
        make: Callable[[], Client] = client._make
        began = threading.Event()

        def slow() -> Client:
            began.set()
            time.sleep(0.1)
            return make()

        client._make = slow
        opening = asyncio.create_task(client.open())
        await asyncio.to_thread(began.wait, HANG_S)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.to_thread(client._threads.shutdown)
        Spool(tmp_path / "spool").close()

    asyncio.run(run())


def test_service_that_was_let_go_cuts_nothing(tmp_path: Path) -> None:
    with Client(Uplink(), tmp_path / "spool") as client:
        service = client.start("SO1", grant=Grant("SO1", NOW_MS, 86_400_000))
        client.let_go(service)
        assert service.cut() is None
        assert [each.service_order_number for each in client.unfinished()] == ["SO1"]
        assert client.resume("SO1").end(HANG_S).acknowledged
