"""The SDK: over HTTP and straight to Kafka, through outages, refusals, full disks and kill -9."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.gateway.web_server import Limits
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.kafka_uplink import KafkaUplink
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Spool, SpoolFull
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    Backoff,
    Grant,
    SendNotes,
    SendResult,
    UplinkRefused,
    UplinkUnavailable,
)
from durabill.schemas import SegmentEvent, partition_for
from tests.broker.gateway_kit import gateway, number_in, read_topic, segments_of
from tests.conftest import Topics
from tests.waiting import HANG_S, wait_until

QUICK = Backoff(first_s=0.02, max_s=0.1, spread_s=0.1)
NOW_MS = 1_770_000_000_000


class Uplink:
    """Stands in for a server whose doings the test decides. Keeps what it was sent."""

    def __init__(self) -> None:
        self.is_up = True
        self.refuses: set[str] = set()
        self.got: list[SegmentEvent] = []
        self.ahead_ms = 0
        self._begun_s = time.monotonic()

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        return Grant(service_order_number or "SO1", self.now_ms(), 20)

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        return ServerStamps(self.now_ms(), self.now_ms())

    def now_ms(self) -> int:
        return NOW_MS + self.ahead_ms + int((time.monotonic() - self._begun_s) * 1000)

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        result = SendResult()
        if not self.is_up:
            result.problem = UplinkUnavailable("down", retry_after_s=0.05)
            return result
        for index, segment in enumerate(segments):
            if segment.service_order_number in self.refuses:
                result.refused[index] = UplinkRefused("NO", "never")
            else:
                self.got.append(segment)
                result.accepted.append(index)
        return result

    def close(self) -> None:
        """Nothing to close."""


def ignore(_: Exception) -> None:
    """Take trouble in silence: the test causes it."""


def check_whole(segments: list[SegmentEvent], *, contiguous: bool = True) -> None:
    assert [s.business_data_number for s in segments] == list(range(1, len(segments) + 1))
    assert [s.end_identifier for s in segments] == [False] * (len(segments) - 1) + [True]
    for one, next_one in pairwise(segments):
        assert one.end_ms == next_one.start_ms or (
            not contiguous and one.end_ms < next_one.start_ms
        )


@pytest.fixture
def gateway_config(bootstrap_servers: str, topics: Topics) -> GatewayConfig:
    kafka = {"bootstrap.servers": bootstrap_servers}
    return GatewayConfig(kafka, topics.segments, report_interval_ms=50)


@pytest.mark.parametrize("way", ["http", "kafka"])
def test_services_arrive_whole(
    way: str,
    gateway_config: GatewayConfig,
    bootstrap_servers: str,
    topics: Topics,
    tmp_path: Path,
) -> None:
    with gateway(gateway_config) as url:
        uplink = HttpUplink(url)
        kafka = KafkaUplink(gateway_config.kafka, topics.segments, orders=uplink)
        with Client(uplink if way == "http" else kafka, tmp_path / "spool") as client:
            started_s = time.monotonic()
            services = [client.start(), client.start("my own/1")]
            time.sleep(0.4)
            wait_until(lambda: all(each.state.next_number > 3 for each in services), "reported")
            receipts = [service.end() for service in services]
            elapsed_ms = (time.monotonic() - started_s) * 1000
            assert all(receipt.acknowledged for receipt in receipts)
            assert client.unfinished() == []
    records = read_topic(bootstrap_servers, topics.segments)
    for service in services:
        number = service.service_order_number
        segments = segments_of(records, number)
        assert len(segments) >= 3
        check_whole(segments)
        assert 400 <= segments[-1].end_ms - segments[0].start_ms <= elapsed_ms
    for record in records:
        key = record.key()
        assert isinstance(key, bytes)
        assert record.partition() == partition_for(key, topics.partitions)
        assert number_in(record) == key.decode()


METER = """
import sys, time
from durabill.producers.sdk.client import Client
from durabill.producers.sdk.http_uplink import HttpUplink
with Client(HttpUplink(sys.argv[1]), sys.argv[2]) as client:
    service = client.start()
    print(service.service_order_number, flush=True)
    while True:
        time.sleep(0.01)
        print(service.state.next_number, flush=True)
"""


def test_kill_9_of_the_client_loses_no_segment(
    gateway_config: GatewayConfig, bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with gateway(replace(gateway_config, report_interval_ms=5)) as url:
        command = [sys.executable, "-c", METER, url, str(spool)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as meter:
            assert meter.stdout is not None
            number = meter.stdout.readline().strip()
            while int(meter.stdout.readline()) < 40:
                pass
            meter.kill()
        with Client(HttpUplink(url), spool, backoff=QUICK) as client:
            (state,) = client.unfinished()
            assert state.service_order_number == number
            assert state.next_number >= 40
            with pytest.raises(LookupError, match="no unfinished order"):
                client.resume("another")
            service = client.resume(number)
            assert client.unfinished() == []
            time.sleep(0.05)
            assert service.end(HANG_S).acknowledged
    segments = segments_of(read_topic(bootstrap_servers, topics.segments), number)
    assert len(segments) >= state.next_number
    check_whole(segments, contiguous=False)  # the time in which the client was dead isn't counted
    gaps = [one for one, two in pairwise(segments) if one.end_ms != two.start_ms]
    assert [gap.business_data_number for gap in gaps] == [state.next_number - 1]


def test_segments_wait_for_a_gateway_that_is_down(
    gateway_config: GatewayConfig, bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    spool, trouble = tmp_path / "spool", list[Exception]()
    with gateway(gateway_config) as url:
        client = Client(HttpUplink(url), spool, backoff=QUICK, on_error=trouble.append)
        service = client.start()
    with client:
        wait_until(lambda: service.state.next_number > 3, "it reports")
        wait_until(lambda: bool(trouble), "it is told")
        receipt = service.end(timeout_s=0.2)
        assert receipt.pending >= 3
        assert not receipt.acknowledged
        assert {type(error) for error in trouble} == {UplinkUnavailable}
        with pytest.raises(UplinkUnavailable):
            client.start(timeout_s=0.1)
        again = replace(gateway_config, port=urlsplit(url).port or 0)
        with gateway(again):
            assert service.end(HANG_S).acknowledged
            assert client.flush(HANG_S) == 0
    check_whole(segments_of(read_topic(bootstrap_servers, topics.segments)))


def test_segments_wait_for_a_kafka_that_is_down(tmp_path: Path) -> None:
    kafka = {"bootstrap.servers": "127.0.0.1:1", "log_level": "0"}
    uplink = KafkaUplink(kafka, delivery_timeout_s=0.5)
    with Client(uplink, tmp_path / "spool", on_error=ignore) as client:
        with pytest.raises(UplinkRefused, match="NO_SERVER_TIME"):
            client.start()
        service = client.start(grant=Grant("SO1", NOW_MS, 1_000))
        assert service.end(timeout_s=0.1).pending == 1
        client.close(timeout_s=0)
    with Spool(tmp_path / "spool") as spool:
        assert [entry.segment.end_identifier for entry in spool.oldest(9)] == [True]


def test_refused_segments_are_kept_and_block_nobody(
    gateway_config: GatewayConfig, bootstrap_servers: str, topics: Topics, tmp_path: Path
) -> None:
    trouble: list[Exception] = []
    far_ms = 7_500_000_000_000  # a go that no server of ours has given: no clock is so wrong
    with gateway(gateway_config) as url:
        uplink = HttpUplink(url)
        with Client(uplink, tmp_path / "spool", on_error=trouble.append) as client:
            future = client.start(grant=Grant("future", far_ms, 1_000))
            good = client.start()
            refused = future.end()
            assert good.end(HANG_S).acknowledged
            assert (refused.pending, refused.acknowledged) == (0, False)
            (rejected,) = refused.rejected
            assert (rejected.reason, rejected.segment.start_ms) == ("IN_THE_FUTURE", far_ms)
            assert client.rejected() == [rejected]
            assert "IN_THE_FUTURE" in str(trouble)
            assert client.retry_rejected() == 1
            assert client.flush(HANG_S) == 0
            assert [each.reason for each in client.rejected()] == ["IN_THE_FUTURE"]
    assert segments_of(read_topic(bootstrap_servers, topics.segments), "future") == []


def test_the_good_ones_of_a_refused_request_arrive(
    gateway_config: GatewayConfig, bootstrap_servers: str, topics: Topics
) -> None:
    now_ms = time.time_ns() // 1_000_000
    segments = [
        SegmentEvent("SO2", 7, now_ms - 3, now_ms, True),
        SegmentEvent("SO1", 1, now_ms - 9, now_ms - 5, False),
        SegmentEvent("SO1", 2, now_ms - 5, now_ms + 10**8, False),
        SegmentEvent("SO1", 3, now_ms - 5, now_ms, True),
    ]
    with gateway(gateway_config) as url:
        uplink = HttpUplink(url)
        first = uplink.send(segments)
        assert (first.accepted[0], set(first.refused), first.problem) == (0, {2}, None)
        # An older gateway takes nothing of an order with a bad one, so they are sent again.
        left = [each for at, each in enumerate(segments) if at not in (*first.accepted, 2)]
        rest = uplink.send(left)
        assert (rest.accepted, rest.refused, rest.problem) == (list(range(len(left))), {}, None)
        uplink.close()
    stored = segments_of(read_topic(bootstrap_servers, topics.segments))
    assert set(stored) == {segments[0], segments[1], segments[3]}


def test_a_request_that_is_too_large_is_halved(
    gateway_config: GatewayConfig, bootstrap_servers: str, topics: Topics
) -> None:
    segments = [SegmentEvent("SO1", n, n, n + 1, False) for n in range(1, 101)]
    with gateway(replace(gateway_config, limits=Limits(body_bytes_max=1_000))) as url:
        uplink = HttpUplink(url)
        assert sorted(uplink.send(segments).accepted) == list(range(100))
        uplink.close()
    assert segments_of(read_topic(bootstrap_servers, topics.segments)) == segments


def test_a_full_spool_is_told_and_the_time_is_not_lost(tmp_path: Path) -> None:
    trouble: list[Exception] = []
    uplink = Uplink()
    uplink.is_up = False
    with Spool(tmp_path / "spool", limit_bytes=64 * 1024, fsync=False) as spool:
        other = [SegmentEvent("SO2", at, at, at + 1, False) for at in range(1, 900)]
        spool.append(other, SessionState("SO2", 10, 900, 900, ended=True))
    with Client(
        uplink,
        tmp_path / "spool",
        spool_limit_bytes=64 * 1024,
        backoff=QUICK,
        on_error=trouble.append,
    ) as client:
        service = client.start(grant=Grant("SO1", NOW_MS, 1))
        wait_until(lambda: any(isinstance(each, SpoolFull) for each in trouble), "SpoolFull")
        with suppress(SpoolFull):  # a row may be a byte shorter than the one before
            for at in range(900, 1_000):
                more = [SegmentEvent("SO2", at, NOW_MS, NOW_MS + 1, False)]
                client._spool.append(more, SessionState("SO2", 10, at + 1, 900, ended=True))
                other += more
        with pytest.raises(SpoolFull, match="nothing was stored"):
            service.end()
        uplink.is_up = True
        assert client.flush(HANG_S) == 0
        assert service.end(HANG_S).acknowledged
    got = {each for each in uplink.got if each.service_order_number == "SO1"}
    check_whole(sorted(got, key=lambda each: each.business_data_number))
    assert set(uplink.got) - got == set(other)


def test_running_services_outlive_a_clean_close(tmp_path: Path) -> None:
    uplink = Uplink()
    with Client(uplink, tmp_path / "spool") as client:
        client.start()
        with pytest.raises(ValueError, match="in use"):
            client.start("SO1")
        time.sleep(0.1)
    assert [s for s in uplink.got if s.end_identifier] == []
    uplink.ahead_ms = 60_000
    with Client(uplink, tmp_path / "spool") as client:
        (state,) = client.unfinished()
        with client.resume("SO1", count_gap=True):
            pass
    check_whole(uplink.got)
    assert len(uplink.got) >= state.next_number
    assert uplink.got[-1].end_ms >= NOW_MS + 60_000


def test_refusals_of_one_order_do_not_stop_the_others(tmp_path: Path) -> None:
    uplink = Uplink()
    uplink.refuses = {"bad"}
    with Client(uplink, tmp_path / "spool", on_error=ignore) as client:
        bad, good = client.start("bad"), client.start("good")
        wait_until(lambda: bad.state.next_number > 2, "it reports")
        assert good.end(HANG_S).acknowledged
        assert len(bad.end().rejected) >= 2
    check_whole([each for each in uplink.got if each.service_order_number == "good"])


def test_an_uplink_that_raises_does_not_end_the_sender(tmp_path: Path) -> None:
    class Broken(Uplink):
        def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
            if self.is_up:
                return super().send(segments, notes)
            self.is_up = True
            raise RuntimeError("a fault of the uplink")

    uplink, trouble = Broken(), list[Exception]()
    uplink.is_up = False
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=trouble.append) as client:
        assert client.start().end(HANG_S).acknowledged
    assert [type(error) for error in trouble] == [RuntimeError]


def test_pauses_double_up_to_the_cap_and_jitter_takes_up_to_half() -> None:
    backoff = Backoff(first_s=0.2, max_s=1.0)
    assert [backoff.pause_s(n, 0.0) for n in (1, 2, 3, 4, 10_000)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert 0.5 <= backoff.pause_s(9, 0.999) < 0.51
