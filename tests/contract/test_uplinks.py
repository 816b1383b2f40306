"""`Uplink`: what a client may rely on, over HTTP to a gateway and straight into Kafka."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from durabill.producers.gateway.server import GatewayConfig
from durabill.producers.sdk.http_uplink import HttpUplink
from durabill.producers.sdk.kafka_uplink import KafkaUplink
from durabill.producers.sdk.uplink import Uplink, UplinkRefused, UplinkUnavailable
from durabill.schemas import Reason, SegmentEvent, decode_segment, partition_for
from durabill.schemas.limits import FUTURE_TOLERANCE_MS
from tests.broker.gateway_kit import gateway, read_topic
from tests.conftest import Topics
from tests.waiting import HANG_S

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on
WINDOW_MS = 3_600_000
REPORT_INTERVAL_MS = 5_000

MakeUplink = Callable[..., Uplink]
"""Makes an uplink to the test's topic; `up=False`: to a server that isn't there."""


@pytest.fixture(params=["http", "kafka"])
def make_uplink(
    request: pytest.FixtureRequest, bootstrap_servers: str, topics: Topics
) -> Iterator[MakeUplink]:
    with ExitStack() as stack:
        config = GatewayConfig(
            {"bootstrap.servers": bootstrap_servers},
            topics.segments,
            correction_window_ms=WINDOW_MS,
            report_interval_ms=REPORT_INTERVAL_MS,
        )
        url = stack.enter_context(gateway(config))

        def make(*, up: bool = True) -> Uplink:
            http = HttpUplink(url if up else f"http://{NOTHING_HERE}", timeout_s=HANG_S)
            uplink: Uplink = http
            if request.param == "kafka":
                uplink = KafkaUplink(
                    {"bootstrap.servers": bootstrap_servers if up else NOTHING_HERE},
                    topics.segments,
                    orders=http,
                    delivery_timeout_s=HANG_S if up else 1,
                    correction_window_ms=WINDOW_MS,
                )
            stack.callback(uplink.close)
            return uplink

        yield make


@pytest.fixture
def uplink(make_uplink: MakeUplink) -> Uplink:
    return make_uplink()


def segment(number: str, at: int, *, ends_ms: int | None = None) -> SegmentEvent:
    """The order's segment number `at`, of one second, that ends now or when it is said to."""
    end_ms = time.time_ns() // 1_000_000 if ends_ms is None else ends_ms
    return SegmentEvent(number, at, end_ms - 1_000, end_ms, False)


def stored(bootstrap_servers: str, topics: Topics) -> list[SegmentEvent]:
    """What the topic holds, each record in the place and with the key of the contract."""
    found = []
    for record in read_topic(bootstrap_servers, topics.segments):
        event = decode_segment(record.value())
        key = event.service_order_number.encode()
        assert (key, partition_for(key, topics.partitions)) == (record.key(), record.partition())
        found.append(event)
    return found


def deliver(uplink: Uplink, segments: Sequence[SegmentEvent]) -> dict[int, UplinkRefused]:
    """Send until each is accepted or refused, as a client does; returns what was refused."""
    waiting = list(range(len(segments)))
    refused: dict[int, UplinkRefused] = {}
    for _ in range(10):
        result = uplink.send([segments[index] for index in waiting])
        assert not set(result.accepted) & set(result.refused)
        refused |= {waiting[at]: why for at, why in result.refused.items()}
        settled = {*result.accepted, *result.refused}
        waiting = [index for at, index in enumerate(waiting) if at not in settled]
        if not waiting:
            return refused
    raise AssertionError(f"neither accepted nor refused: {waiting}")


def test_what_is_accepted_is_in_the_topic(
    uplink: Uplink, bootstrap_servers: str, topics: Topics
) -> None:
    sent = [segment(number, at) for number in ("SO1", "ü/..", ".", "SO 2") for at in (1, 2, 3)]
    result = uplink.send(sent)
    assert (list(range(12)), {}, {}, None) == (
        sorted(result.accepted),
        result.refused,
        result.failed,
        result.problem,
    )
    found = stored(bootstrap_servers, topics)
    assert len(sent) == len(found)
    assert set(sent) == set(found)
    for number in {each.service_order_number for each in sent}:  # in the order of sending
        numbers = [e.business_data_number for e in found if e.service_order_number == number]
        assert numbers == [1, 2, 3]


def test_orders_take_turns_in_one_send(
    uplink: Uplink, bootstrap_servers: str, topics: Topics
) -> None:
    sent = [segment(number, at) for at in (1, 2, 3) for number in ("SO1", "SO2")]
    assert deliver(uplink, sent) == {}
    assert set(sent) == set(stored(bootstrap_servers, topics))


def test_nothing_to_send_is_nothing_sent(uplink: Uplink) -> None:
    result = uplink.send([])
    assert (
        result.accepted,
        result.refused,
        result.failed,
        result.problem,
    ) == ([], {}, {}, None)


def test_what_is_sent_again_is_accepted_again(
    uplink: Uplink, bootstrap_servers: str, topics: Topics
) -> None:
    sent = [segment("SO1", 1)]
    for _ in range(2):
        assert uplink.send(sent).accepted == [0]
    assert sent * 2 == stored(bootstrap_servers, topics)


def test_what_cannot_count_is_refused_and_holds_up_nothing(
    uplink: Uplink, bootstrap_servers: str, topics: Topics
) -> None:
    wrong = segment("SO1", 2, ends_ms=time.time_ns() // 1_000_000 - WINDOW_MS - 600_000)
    sent = [segment("SO1", 1), wrong, segment("SO1", 3), segment("SO2", 1)]
    refused = deliver(uplink, sent)
    assert {index: why.reason for index, why in refused.items()} == {1: Reason.TOO_LATE}
    assert {sent[0], *sent[2:]} == set(stored(bootstrap_servers, topics)) - {wrong}


@pytest.mark.parametrize("beyond_ms", [20_000, 7_200_000])
def test_what_lies_ahead_waits_until_it_has_come(uplink: Uplink, beyond_ms: int) -> None:
    """A server's clock was set back, say; stored in vain or not at all: it counts later."""
    ends_ms = time.time_ns() // 1_000_000 + FUTURE_TOLERANCE_MS + beyond_ms
    sent = [segment("SO1", 1), segment("SO1", 2, ends_ms=ends_ms), segment("SO2", 1)]
    result = uplink.send(sent)
    assert (sorted(result.accepted), result.refused, set(result.failed)) == ([0, 2], {}, {"SO1"})
    assert result.problem is None
    ahead = uplink.send(sent[1:2])
    assert (ahead.accepted, ahead.refused, set(ahead.failed)) == ([], {}, {"SO1"})
    assert ahead.problem is None


def test_a_server_that_is_away_is_told_and_decides_nothing(make_uplink: MakeUplink) -> None:
    uplink = make_uplink(up=False)
    result = uplink.send([segment("SO1", 1), segment("SO2", 1)])
    assert isinstance(result.problem, UplinkUnavailable)
    assert (result.accepted, result.refused) == ([], {})
    for ask in (uplink.start, uplink.server_time):
        with pytest.raises(UplinkUnavailable):
            ask(timeout_s=1)


def test_an_order_is_granted(uplink: Uplink) -> None:
    before_ms = time.time_ns() // 1_000_000
    grant = uplink.start("SO 1/ü", timeout_s=HANG_S)
    assert (grant.service_order_number, grant.report_interval_ms) == ("SO 1/ü", REPORT_INTERVAL_MS)
    assert before_ms - 60_000 <= grant.server_timestamp_ms <= before_ms + 60_000
    chosen = {uplink.start(timeout_s=HANG_S).service_order_number for _ in range(3)}
    assert len(chosen) == 3
    assert before_ms - 60_000 <= uplink.server_time(timeout_s=HANG_S).sent_ms <= before_ms + 60_000


def test_what_was_stored_tells_the_servers_time(uplink: Uplink) -> None:
    """Here all have one clock: the time told lies between asking and answer."""
    before_ms = time.time_ns() // 1_000_000
    result = uplink.send([segment("SO1", 1), segment("SO2", 1), segment("SO3", 1)])
    stamps = result.stamps or uplink.server_time(timeout_s=HANG_S)  # older gateways say it only so
    after_ms = time.time_ns() // 1_000_000
    assert before_ms - 60_000 <= stamps.received_ms <= stamps.sent_ms <= after_ms + 60_000
    if isinstance(uplink, KafkaUplink):
        assert before_ms - 1 <= stamps.received_ms == stamps.sent_ms <= after_ms + 1


def test_an_illegal_number_is_refused(uplink: Uplink) -> None:
    with pytest.raises(UplinkRefused) as raised:
        uplink.start("x" * 65, timeout_s=HANG_S)
    assert raised.value.reason == Reason.BAD_ORDER_NUMBER


def test_it_closes_twice(make_uplink: MakeUplink) -> None:
    uplink = make_uplink()
    assert uplink.send([segment("SO1", 1)]).accepted == [0]
    uplink.close()
    uplink.close()
