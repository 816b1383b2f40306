"""POST /v1/segments, behind HTTP and before Kafka: each segment has a verdict of its own."""

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from durabill.producers.gateway.api import SEGMENTS_MAX, SegmentRequest, TimeRules, check_segments
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.client_reports import Risk
from durabill.producers.gateway.delivery import Delivery
from durabill.producers.gateway.kafka import BackendUnavailable
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.quotas import QuotaLimits, Quotas
from durabill.producers.gateway.upload_shapes import UploadAnswer, UploadsAnswer
from durabill.producers.gateway.uploads import UploadDesk
from durabill.producers.sdk.stored import Stored
from durabill.schemas import SegmentEvent, decode_segment, encode_segment
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, LONG_MAX
from durabill.schemas.upload_receipt import digest_of, read_public_keys, read_upload_receipt
from tests.unit.authority_kit import authority_of, stopped_clock

NOW_MS = 1_800_000_000_000
WINDOW_MS = 86_400_000
ANNA = Caller("acme", "anna", ALL_SCOPES, "key-1")
NOBODY = Caller("default", "192.0.2.1", ALL_SCOPES)


class Kafka:
    """Takes deliveries; those of some keys fail. Records of others come in between."""

    def __init__(self) -> None:
        self.records: dict[int, tuple[bytes, bytes]] = {}
        self.away: set[bytes] = set()
        self.append_ms: Callable[[], int | None] = lambda: NOW_MS
        self.forgets_each = False
        self._offsets = count(100, 3)

    async def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.key in self.away:
                delivery.error = KafkaError(KafkaError._MSG_TIMED_OUT)
                continue
            places = [self._append(delivery.key, value) for value in delivery.values]
            delivery.first, delivery.last = places[0], places[-1]
            if delivery.each is not None:
                delivery.each = None if self.forgets_each else places

    def _append(self, key: bytes, value: bytes) -> Stored:
        offset = next(self._offsets)
        self.records[offset] = key, value
        return Stored(2, offset, self.append_ms())

    def told(self, error: object) -> BackendUnavailable:
        return BackendUnavailable(f"Kafka has not acknowledged all segments ({error})")

    @property
    def values(self) -> list[bytes]:
        return [value for _, value in self.records.values()]


class Stand:
    """A desk with its surroundings; its clock stands still, and is the broker's too."""

    def __init__(self, *, knows_broker: bool = True) -> None:
        self.clock = clock = stopped_clock(NOW_MS, knows_broker=knows_broker)
        self.kafka = Kafka()
        self.stored: list[str] = []
        self.authority = authority_of(clock, WINDOW_MS)
        surroundings: Any = self
        self.desk = UploadDesk(
            self.authority,
            surroundings.kafka,
            surroundings,
            clock,
            correction_window_ms=WINDOW_MS,
            delivery_timeout_ms=10_000,
        )

    def note_stored(self, number: str, _tenant: str) -> None:
        self.stored.append(number)

    def post(self, body: object, caller: Caller = NOBODY) -> UploadsAnswer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(self.desk.take(caller, content, self.authority.clock.came()))

    def post_one(self, segments: object, **more: object) -> UploadAnswer:
        (answer,) = self.post({"uploads": [upload("SO1", segments, **more)]}).uploads
        return answer


@pytest.fixture
def stand() -> Stand:
    return Stand()


def upload(number: str, segments: object, **more: object) -> dict[str, object]:
    return {"service_order_number": number, "segments": segments, **more}


def item(number: Any, start_ms: Any = NOW_MS - 9, end_ms: Any = NOW_MS, ends: Any = False) -> Any:
    return {
        "business_data_number": number,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "end_identifier": ends,
    }


def found(answer: UploadAnswer) -> list[tuple[int, int, str, bool, bool]]:
    """An answer's errors without their texts."""
    return [
        (each.index, each.business_data_number, each.reason, each.final, each.stored)
        for each in answer.errors
    ]


def test_numbers_that_nobody_opened_are_within_the_quota_of_orders(stand: Stand) -> None:
    """Under a lease they are counted where they were opened."""
    stand.authority.quotas = Quotas(QuotaLimits(tenant_orders_max=1))
    mine = [[1, NOW_MS - 9, NOW_MS, True]]
    token, _ = stand.authority.leases.mint(
        "SO9", "default", "", now_ms=NOW_MS - 9, interval_ms=10_000
    )
    assert not stand.post({"uploads": [upload("SO1", mine), upload("SO1", mine)]}).uploads[0].errors
    assert not stand.post({"uploads": [upload("SO9", mine, lease=token)]}).uploads[0].errors
    before = len(stand.kafka.values)
    with pytest.raises(ApiError, match="QUOTA_ORDERS"):
        stand.post({"uploads": [upload("SO1", mine), upload("SO2", mine)]})
    assert len(stand.kafka.values) == before


def test_many_orders_in_one_request(stand: Stand) -> None:
    segments = [item(number) for number in (1, 2, 3)]
    short = [list(each.values()) for each in segments]
    answer = stand.post(
        {"uploads": [upload("SO1", segments), upload("SO2", short), upload("SO3", [item(9.0)])]}
    )
    assert (answer.received_ms, answer.sent_ms) == (NOW_MS, NOW_MS)
    assert answer.clock_id == stand.authority.clock.clock_id
    assert [
        (each.service_order_number, each.count, each.stored, each.first_offset, each.last_offset)
        for each in answer.uploads
    ] == [("SO1", 3, 3, 100, 106), ("SO2", 3, 3, 109, 115), ("SO3", 1, 1, 118, 118)]
    assert {(e.partition, e.append_ms, tuple(e.errors)) for e in answer.uploads} == {
        (2, NOW_MS, ())
    }
    expected = [
        encode_segment(SegmentEvent(order, number, NOW_MS - 9, NOW_MS, False))
        for order, numbers in (("SO1", (1, 2, 3)), ("SO2", (1, 2, 3)), ("SO3", (9,)))
        for number in numbers
    ]
    assert stand.kafka.values == expected
    assert stand.stored == ["SO1", "SO2", "SO3"]


def test_the_receipt_is_of_what_is_stored_and_no_more(stand: Stand) -> None:
    answer = stand.post(
        {
            "uploads": [
                upload("SO1", [item(1), item(2), item(0), item(7)]),
                upload("SO2", [item(0)]),
                upload("SO3", [item(5), item(5)]),
            ]
        },
        Caller("acme", "anna", ALL_SCOPES),
    )
    assert answer.receipt is not None
    content = json.dumps({"keys": [json.loads(stand_keys(stand))["keys"][0]]}).encode()
    receipt = read_upload_receipt(answer.receipt, read_public_keys(content))
    assert (receipt.ten, receipt.cli, receipt.topic) == ("acme", "anna", "segments")
    values = stand.kafka.values
    assert [(e.ord, e.par, e.off, e.num, e.cnt, e.sha256) for e in receipt.uploads] == [
        ("SO1", 2, (100, 106), ((1, 2), (7, 7)), 3, digest_of(b"".join(values[:3]))),
        ("SO3", 2, (109, 112), ((5, 5),), 2, digest_of(b"".join(values[3:]))),
    ]


def stand_keys(stand: Stand) -> bytes:
    response = asyncio.run(stand.authority.get_receipt_keys(None))  # type: ignore[arg-type]
    assert isinstance(response.body, bytes)
    return response.body


TIMES = f'"start_ms": {NOW_MS - 9}, "end_ms": {NOW_MS}, "end_identifier": false'


def four(start_ms: str, end_ms: str, ends: str) -> str:
    """Segment 4 as JSON, its times as they are given."""
    times = f'"start_ms": {start_ms}, "end_ms": {end_ms}, "end_identifier": {ends}'
    return f'{{"business_data_number": 4, {times}}}'


HOSTILE = [
    ('{"business_data_number": 0, %s}', 0, "BAD_BUSINESS_DATA_NUMBER"),
    ('{"business_data_number": -1, %s}', -1, "BAD_BUSINESS_DATA_NUMBER"),
    ('{"business_data_number": 9223372036854775808, %s}', LONG_MAX, "BAD_BUSINESS_DATA_NUMBER"),
    ('{"business_data_number": %s, %%s}' % ("9" * 400), LONG_MAX, "BAD_BUSINESS_DATA_NUMBER"),
    ('{"business_data_number": %s, %%s}' % ("9" * 9_000), 0, "BAD_SHAPE"),
    ('{"business_data_number": 1e300, %s}', LONG_MAX, "BAD_BUSINESS_DATA_NUMBER"),
    ('{"business_data_number": 1e999, %s}', 0, "BAD_SHAPE"),
    ('{"business_data_number": 1.5, %s}', 1, "BAD_SHAPE"),
    ('{"business_data_number": "1", %s}', 0, "BAD_SHAPE"),
    ('{"business_data_number": true, %s}', 0, "BAD_SHAPE"),
    ('{"business_data_number": null, %s}', 0, "BAD_SHAPE"),
    (four("9", "8", "false"), 4, "BAD_TIME_SEQUENCE"),
    (four("9", "9", "false"), 4, "BAD_TIME_SEQUENCE"),
    (four("-9", "9", "false"), 4, "BAD_TIME_SEQUENCE"),
    (four("9", "1e30", "false"), 4, "BAD_TIME_SEQUENCE"),
    (four("9", "99", "false"), 4, "TOO_LATE"),
    (four("9", "99", "0"), 4, "BAD_SHAPE"),
    ('{"business_data_number": 4, "start_ms": 9, "end_ms": 99}', 4, "BAD_SHAPE"),
    ('{"business_data_number": 4, "price": 9, %s}', 4, "BAD_SHAPE"),
    ('{"business_data_number": 4, "service_order_number": "SO1", %s}', 4, "BAD_SHAPE"),
    ("[4, 9]", 4, "BAD_SHAPE"),
    ("[4, 9, 99, false, 1]", 4, "BAD_SHAPE"),
    ("[]", 0, "BAD_SHAPE"),
    ("null", 0, "BAD_SHAPE"),
    ("7", 7, "BAD_SHAPE"),
    ('"\\u202e"', 0, "BAD_SHAPE"),
    ("[" * 500 + "]" * 500, 0, "BAD_SHAPE"),
    ('{"a": ' * 200 + "1" + "}" * 200, 0, "BAD_SHAPE"),
]


@pytest.mark.parametrize(("segment", "number", "reason"), HOSTILE)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_segment_is_set_aside_by_itself(
    stand: Stand, segment: str, number: int, reason: str, place: int
) -> None:
    texts = [f'{{"business_data_number": {each}, {TIMES}}}' for each in (1, 2)]
    texts.insert(place, segment.replace("%s", TIMES))
    other = f'{{"service_order_number": "SO2", "segments": [[1, {NOW_MS - 9}, {NOW_MS}, true]]}}'
    body = f"""{{"uploads": [{{"service_order_number": "SO1", "segments": [{", ".join(texts)}]}},
        {other}]}}"""
    answer = stand.post(body.encode())
    bad, good = answer.uploads
    assert found(bad) == [(place, number, reason, True, False)]
    assert len(bad.errors[0].detail) <= 200
    assert (bad.count, bad.stored, good.count, good.stored) == (3, 2, 1, 1)
    assert [decode_segment(each).business_data_number for each in stand.kafka.values] == [1, 2, 1]
    assert good.errors == ()


HEAD = b'{"uploads": [{"service_order_number": "SO1", '


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "BAD_JSON"),
        (b"{", "BAD_JSON"),
        (b'{"uploads": [NaN]}', "BAD_JSON"),
        (HEAD + b'"segments": [[NaN, 1, 2, true]]}]}', "BAD_JSON"),
        (HEAD + b'"segments": [[1, 01, 2, true]]}]}', "BAD_JSON"),
        (b'{"uploads": [{"service_order_number": "\\ud800", "segments": []}]}', "BAD_JSON"),
        (b'{"uploads": [{"service_order_number": "\xff", "segments": []}]}', "BAD_JSON"),
        (b'{"uploads": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "BAD_JSON"),
        (HEAD + b'"segments": [' + b"[" * 100_000, "BAD_JSON"),
        (b"[]", "BAD_SHAPE"),
        (b"{}", "BAD_SHAPE"),
        (b'{"uploads": {}}', "BAD_SHAPE"),
        (b'{"uploads": [{"segments": []}]}', "BAD_SHAPE"),
        (b'{"uploads": [{"service_order_number": 1, "segments": []}]}', "BAD_SHAPE"),
        (b'{"uploads": [{"service_order_number": "SO1"}]}', "BAD_SHAPE"),
        (HEAD + b'"segments": [], "lease": 1}]}', "BAD_SHAPE"),
    ],
)
def test_what_cant_be_told_apart_is_refused_as_a_whole(
    stand: Stand, body: bytes, reason: str
) -> None:
    with pytest.raises(ApiError) as caught:
        stand.post(body)
    assert (caught.value.status, caught.value.reason) == (400, reason)
    assert stand.kafka.values == []


def test_a_request_has_a_thousand_segments_and_uploads_at_most(stand: Stand) -> None:
    row = [1, NOW_MS - 9, NOW_MS, False]
    most = stand.post({"uploads": [upload("SO1", [row] * 999), upload("SO2", [row])]})
    assert [each.stored for each in most.uploads] == [999, 1]
    for uploads in (
        [upload("SO1", [row] * SEGMENTS_MAX), upload("SO2", [row])],
        [upload("SO1", [])] * (SEGMENTS_MAX + 1),
        [upload("SO1", [row] * SEGMENTS_MAX), upload("SO2", [None])],
    ):
        with pytest.raises(ApiError) as caught:
            stand.post({"uploads": uploads})
        assert (caught.value.status, caught.value.reason) == (413, "TOO_MANY_SEGMENTS")
    nothing = stand.post({"uploads": []})
    assert (nothing.uploads, nothing.receipt) == ([], None)
    empty = stand.post_one([])
    assert (empty.count, empty.stored, empty.errors) == (0, 0, ())


def test_both_stamps_are_of_one_scale(stand: Stand) -> None:
    """Also where the server's clock is found to be wrong by the very acknowledgement."""
    before = stand.authority.clock.clock_id
    came = stand.authority.clock.came()
    stand.clock.learn(0, 0, NOW_MS - 10**7)
    answer = asyncio.run(stand.desk.take(NOBODY, b'{"uploads": []}', came))
    assert answer.clock_id != before
    assert (answer.received_ms, answer.sent_ms) == (NOW_MS - 10**7, NOW_MS - 10**7)


def test_the_same_order_twice(stand: Stand) -> None:
    rows = [[1, NOW_MS - 9, NOW_MS, False], [2, NOW_MS - 9, NOW_MS, True]]
    answer = stand.post({"uploads": [upload("SO1", rows[:1]), upload("SO1", rows)]})
    assert [(each.stored, each.first_offset, each.last_offset) for each in answer.uploads] == [
        (1, 100, 100),
        (2, 103, 106),
    ]


def test_a_repeated_key_counts_once_the_last_time(stand: Stand) -> None:
    text = f'[{{"business_data_number": 0, "business_data_number": 3, {TIMES}}}]'
    body = f'{{"uploads": [{{"service_order_number": "SO1", "segments": {text}}}]}}'
    assert stand.post(body.encode()).uploads[0].stored == 1
    assert decode_segment(stand.kafka.values[0]).business_data_number == 3


@pytest.mark.parametrize("number", ["", "x" * 65, "ü" * 33, "a\nb", "a\x85b"])
def test_an_order_number_against_the_contract(stand: Stand, number: str) -> None:
    answer = stand.post({"uploads": [upload(number, [item(1), {}]), upload("SO2", [item(1)])]})
    bad, good = answer.uploads
    assert bad.service_order_number == number
    assert found(bad) == [
        (0, 1, "BAD_ORDER_NUMBER", True, False),
        (1, 0, "BAD_ORDER_NUMBER", True, False),
    ]
    assert (bad.count, bad.stored, good.stored) == (2, 0, 1)


def test_leases_are_looked_at_upload_by_upload(stand: Stand) -> None:
    leases = stand.authority.leases
    own, lease = leases.mint("SO1", "acme", "anna", now_ms=NOW_MS - 50, interval_ms=10)
    others, _ = leases.mint("SO2", "acme", "bert", now_ms=NOW_MS - 50, interval_ms=10)
    old, _ = leases.mint("SO4", "acme", "anna", now_ms=NOW_MS - 10**10, interval_ms=10)
    answer = stand.post(
        {
            "uploads": [
                upload("SO1", [item(1), item(2, NOW_MS - 60)], lease=own),
                upload("SO2", [item(1)], lease=others),
                upload("SO3", [item(1)]),
                upload("SO4", [item(1)], lease=old),
                upload("SO5", [item(1)], lease="x.y.z"),
                upload("SO6", [item(1)], lease=own),
                upload("acme:7", [item(1)]),
            ]
        },
        ANNA,
    )
    assert [found(each) for each in answer.uploads] == [
        [(1, 2, "BEFORE_OPENING", True, False)],
        [(0, 1, "LEASE_OF_ANOTHER", False, False)],
        [(0, 1, "LEASE_MISSING", False, False)],
        [(0, 1, "LEASE_EXPIRED", False, False)],
        [(0, 1, "LEASE_INVALID", False, False)],
        [(0, 1, "LEASE_OF_ANOTHER", False, False)],
        [],
    ]
    assert answer.uploads[0].accept_until_ms == lease.accept_until_ms
    assert [each.stored for each in answer.uploads] == [1, 0, 0, 0, 0, 0, 1]


def test_under_a_lease_a_segment_is_late_by_the_lease(stand: Stand) -> None:
    opened_ms = NOW_MS - 3 * WINDOW_MS
    token, _ = stand.authority.leases.mint("SO1", "acme", "anna", now_ms=opened_ms, interval_ms=1)
    late = item(1, opened_ms + 5, opened_ms + 9)
    with_lease = stand.post({"uploads": [upload("SO1", [late], lease=token)]}, ANNA)
    without = stand.post({"uploads": [upload("acme:2", [late])]}, ANNA)
    assert (with_lease.uploads[0].stored, found(with_lease.uploads[0])) == (1, [])
    assert found(without.uploads[0]) == [(0, 1, "TOO_LATE", True, False)]


def test_where_kafka_is_partly_away_the_rest_is_stored(stand: Stand) -> None:
    stand.kafka.away = {b"SO1"}
    body = {"uploads": [upload("SO1", [item(1), item(0), item(2)]), upload("SO2", [item(1)])]}
    answer = stand.post(body)
    away, good = answer.uploads
    assert found(away) == [
        (0, 1, "KAFKA_UNAVAILABLE", False, False),
        (1, 0, "BAD_BUSINESS_DATA_NUMBER", True, False),
        (2, 2, "KAFKA_UNAVAILABLE", False, False),
    ]
    assert (away.stored, away.first_offset, good.stored) == (0, None, 1)
    assert stand.stored == ["SO2"]
    stand.kafka.away = {b"SO1", b"SO2"}
    with pytest.raises(ApiError) as caught:
        stand.post(body)
    assert (caught.value.status, caught.value.reason) == (503, "KAFKA_UNAVAILABLE")
    assert "retry-after" in caught.value.headers
    with pytest.raises(ApiError, match="503 KAFKA_UNAVAILABLE"):  # nothing at all, in two uploads
        stand.post({"uploads": [upload("SO1", [item(1)]), upload("SO1", [item(2)])]})


@pytest.mark.parametrize("knows_broker", [True, False])
def test_what_is_stored_is_judged_by_its_arrival(knows_broker: bool) -> None:
    stand = Stand(knows_broker=knows_broker)
    ahead_ms = NOW_MS + FUTURE_TOLERANCE_MS
    rows = [item(1), item(2, NOW_MS, ahead_ms), item(3, NOW_MS, ahead_ms + 1)]
    answer = stand.post_one(rows)
    assert (answer.stored, found(answer)) == (3, [(2, 3, "IN_THE_FUTURE", False, True)])
    late_ms = NOW_MS - WINDOW_MS
    answer = stand.post_one([item(1), item(2, 5, late_ms), item(3, late_ms - 9, late_ms - 1)])
    assert found(answer)[-1] == (2, 3, "TOO_LATE", True, True)
    stand.kafka.append_ms = lambda: None  # a topic with the time of clients: nobody knows
    assert found(stand.post_one(rows)) == []


@pytest.mark.parametrize("wrong_ms", [-(10**9), 10**9])
def test_a_gateway_that_does_not_know_the_time_refuses_nothing_by_it(wrong_ms: int) -> None:
    """Else nothing would be produced, and no acknowledgement would ever tell the time."""
    stand = Stand(knows_broker=False)
    right = item(1, NOW_MS + wrong_ms - 9, NOW_MS + wrong_ms)
    stand.kafka.append_ms = lambda: NOW_MS + wrong_ms
    answer = stand.post_one([right, item(2, NOW_MS * 1_000, NOW_MS * 1_000), item(3, 9, 99)])
    assert (answer.stored, found(answer)) == (
        1,
        [(1, 2, "BAD_TIME_SEQUENCE", True, False), (2, 3, "TOO_LATE", True, False)],
    )
    _, values = stand.desk._checked("SO1", [SegmentRequest(**right)], stand.desk._rules())
    assert len(values) == 1


def test_what_is_ahead_is_to_come_again(stand: Stand) -> None:
    never_ms = NOW_MS * 1_000
    answer = stand.post_one(
        [item(1, NOW_MS, NOW_MS + 10**6), item(2, never_ms, never_ms + 5), item(3)]
    )
    assert found(answer) == [
        (0, 1, "IN_THE_FUTURE", False, False),
        (1, 2, "IN_THE_FUTURE", True, False),
    ]


def test_each_segment_is_judged_by_its_own_arrival(stand: Stand) -> None:
    """Records of one upload may arrive seconds apart; where only the ends are known, what isn't
    certain is to be sent again."""
    rows = [item(number, NOW_MS, NOW_MS + FUTURE_TOLERANCE_MS + 5) for number in (1, 2, 3)]
    for forgets, expected in (
        (False, [(0, 1, "IN_THE_FUTURE", False, True)]),
        (True, [(at, at + 1, "IN_THE_FUTURE", False, True) for at in range(3)]),
    ):
        arrivals = iter([NOW_MS, NOW_MS + 5, NOW_MS + 9])
        stand.kafka.append_ms = lambda arrivals=arrivals: next(arrivals)  # type: ignore[misc]
        stand.kafka.forgets_each = forgets
        assert found(stand.post_one(rows)) == expected


def test_what_a_client_says_of_itself_is_kept_and_nonsense_hurts_nobody(stand: Stand) -> None:
    now_ms = stand.authority.clock.now_ms()
    body = {"uploads": [upload("SO1", [item(1)])], "client": {"name": "m-1", "pending": 7}}
    assert stand.post(body).uploads[0].stored == 1
    nonsense: Any
    for nonsense in (3, {"pending": -1}, {"name": 5}, [{}], {"refused": {"x": "y"}}):
        assert stand.post(body | {"client": nonsense}).uploads[0].stored == 1
    (seen,) = stand.authority.client_reports.clients(now_ms)
    assert (seen.name, seen.pending) == ("m-1", 6)  # one of the seven has come


def test_a_client_whose_last_segments_have_come_has_not_fallen_silent(stand: Stand) -> None:
    later_ms = stand.authority.clock.now_ms() + 3_600_000
    future = item(2, NOW_MS, NOW_MS + FUTURE_TOLERANCE_MS * 2)
    for rows, left in (([item(1), future], 1), ([item(1), item(0), item(3)], 0)):
        body = {"uploads": [upload("SO1", rows)], "client": {"pending": len(rows), "oldest_ms": 5}}
        assert len(stand.post(body).uploads[0].errors) == 1
        (seen,) = stand.authority.client_reports.clients(later_ms)
        assert (seen.pending, seen.risk) == (left, Risk.SILENT if left else Risk.OK)


numbers = st.integers(-1, 5) | st.sampled_from((1.0, 2.0, LONG_MAX, LONG_MAX + 1))
times = st.integers(NOW_MS - 5, NOW_MS + 5) | st.sampled_from(
    (0, -1, float(NOW_MS), LONG_MAX, NOW_MS * 1000, NOW_MS + 10**6, NOW_MS - 2 * WINDOW_MS, 10**30)
)


@given(st.lists(st.tuples(numbers, times, times, st.booleans()), max_size=8))
def test_verdicts_are_those_of_the_older_route(rows: list[Any]) -> None:
    """Segment by segment: the older route refuses a request for what is set aside here."""
    stand = Stand()
    answer = stand.post_one([list(row) for row in rows])
    rules = TimeRules(WINDOW_MS, NOW_MS, 11_001, 1_001)
    expected: list[tuple[int, int, str, str]] = []
    values: list[bytes] = []
    for index, row in enumerate(rows):
        try:
            values += map(encode_segment, check_segments("SO1", [SegmentRequest(*row)], rules))
        except ApiError as refused:
            (error,) = refused.errors
            expected.append((index, error.business_data_number, error.reason, error.detail))
    final = [each for each in answer.errors if not each.stored]
    assert [
        (each.index, each.business_data_number, each.reason, each.detail) for each in final
    ] == expected
    assert stand.kafka.values == values
    assert answer.stored == len(values)
