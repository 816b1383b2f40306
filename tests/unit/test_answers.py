"""Which answers are a gateway's, and what each says of the segments that were sent."""

import json
from typing import Any

import pytest

from durabill.producers.sdk.answers import (
    HttpAnswer,
    NotOurs,
    read_grant,
    read_refusal,
    read_refused,
    read_stored,
    read_time,
    read_total_is_out,
)
from durabill.producers.sdk.bounded_http import retry_after_s
from durabill.producers.sdk.server_clock import TIMESTAMP_MAX_MS, ServerStamps
from durabill.producers.sdk.uplink import WISH_MAX_S, Backoff, UplinkRefused
from durabill.schemas import SegmentEvent
from durabill.schemas.web import PROBLEM

DAY_MS = 86_400_000
SENT = [SegmentEvent("SO1", number, number, number + 1, False) for number in (4, 5, 7)]
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
GRANT = {"service_order_number": "SO1", "server_timestamp_ms": 5, "report_interval_ms": 10}
NO_VALUES: tuple[object, ...] = (None, [], {}, True, 1.0, float("nan"))


def json_answer(body: object, status: int = 200, content_type: str = "application/json") -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpAnswer(status, content_type, content)


def problem_answer(body: object, status: int = 422, content_type: str = PROBLEM) -> Any:
    return json_answer(body, status, content_type)


def verdict(number: int, counts: object = True, reason: object = None) -> dict[str, object]:
    return {"business_data_number": number, "counts": counts, "reason": reason, "detail": None}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_timestamp_ms", 0),
        ("server_timestamp_ms", TIMESTAMP_MAX_MS),
        ("report_interval_ms", 1),
        ("report_interval_ms", DAY_MS),
        ("service_order_number", "x" * 64),
        ("service_order_number", "{/日本 "),
    ],
)
def test_grant_of_sense(field: str, value: Any) -> None:
    grant = read_grant(json_answer({**GRANT, field: value, "another": [1]}, 201), None)
    assert value == getattr(grant, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, wrong) for name in GRANT for wrong in NO_VALUES),
        ("server_timestamp_ms", -1),
        ("server_timestamp_ms", TIMESTAMP_MAX_MS + 1),
        ("server_timestamp_ms", 10**30),
        ("server_timestamp_ms", "5"),
        ("report_interval_ms", 0),
        ("report_interval_ms", -10),
        ("report_interval_ms", DAY_MS + 1),
        ("report_interval_ms", 365 * DAY_MS),
        ("service_order_number", ""),
        ("service_order_number", "x" * 65),
        ("service_order_number", "a\nb"),
        ("service_order_number", "\ud800"),
    ],
)
def test_grant_without_sense(field: str, value: object) -> None:
    with pytest.raises(NotOurs, match=f"{field}|BAD_ORDER_NUMBER|JSON is malformed"):
        read_grant(json_answer({**GRANT, field: value}, 201), None)


@pytest.mark.parametrize("missing", GRANT)
def test_grant_in_which_something_is_missing(missing: str) -> None:
    rest = {name: value for name, value in GRANT.items() if name != missing}
    with pytest.raises(NotOurs, match=missing):
        read_grant(json_answer(rest, 201), None)


def test_grant_for_another_order_than_wanted() -> None:
    assert read_grant(json_answer(GRANT), "SO1").service_order_number == "SO1"
    with pytest.raises(NotOurs, match="a grant for 'SO1', not for 'SO2'"):
        read_grant(json_answer(GRANT), "SO2")


@pytest.mark.parametrize(
    ("said", "is_out"),
    [
        ({"live": {"phase": "SETTLED", "lag": 0}, "total": None}, True),
        ({"live": {"phase": "SETTLED"}, "live_unknown": "behind", "total": {}}, True),
        ({"live": None, "live_unknown": "no worker", "total": {"status": "COMPLETE"}}, True),
        ({"live": {"phase": "REOPENED"}, "total": {"status": "COMPLETE"}}, False),
        ({"live": {"phase": "ENDED"}}, False),
        ({"live": None, "total": None}, False),
        ({}, False),
    ],
)
def test_whether_a_total_is_out(said: dict[str, object], is_out: bool) -> None:
    answer = json_answer({"service_order_number": "SO1", **said})
    assert read_total_is_out(answer, "SO1") is is_out


@pytest.mark.parametrize(
    "said",
    [{}, {"service_order_number": "SO2"}, {"service_order_number": "SO1", "total": 1}, [1]],
)
def test_what_says_nothing_of_a_total(said: object) -> None:
    with pytest.raises(NotOurs):
        read_total_is_out(json_answer(said), "SO1")


@pytest.mark.parametrize(
    "answer",
    [
        json_answer(b""),
        json_answer(b"[" * 100_000),
        json_answer(b"9" * 100_000),
        json_answer(b"\xff"),
        json_answer(b"<html>Log in</html>"),
        json_answer([GRANT]),
        json_answer(GRANT, content_type="text/html"),
        json_answer(GRANT, content_type="application/jsonx"),
        json_answer(GRANT, content_type=""),
    ],
)
def test_answers_that_are_not_json_of_ours(answer: HttpAnswer) -> None:
    for read in (lambda each: read_grant(each, None), read_time, lambda e: read_stored(e, SENT)):
        with pytest.raises(NotOurs):
            read(answer)
    assert read_refusal(answer) is None
    assert read_refused(answer, SENT) is None


@pytest.mark.parametrize("kind", ["application/json", "application/problem+json"])
def test_content_types_of_json(kind: str) -> None:
    found = read_time(json_answer({"server_timestamp_ms": 7}, content_type=kind))
    assert found == ServerStamps(7, 7)


@pytest.mark.parametrize("wrong", [-1, TIMESTAMP_MAX_MS + 1, None, "7"])
def test_time_without_sense(wrong: object) -> None:
    with pytest.raises(NotOurs, match=r"server_timestamp_ms|stamps are"):
        read_time(json_answer({"server_timestamp_ms": wrong}))


def test_each_segment_has_its_verdict() -> None:
    segments = [verdict(4), verdict(5, False, "TOO_LATE"), verdict(7, False)]
    segments[1]["detail"] = "by an hour"
    in_vain = read_stored(json_answer({"accepted": 1, "segments": segments, "receipts": 1}), SENT)
    found = {at: (why.reason, why.detail) for at, why in in_vain.items()}
    unsaid = ("WILL_NOT_COUNT", "stored, but it will be a dead letter")
    assert {1: ("TOO_LATE", "by an hour"), 2: unsaid} == found


def test_gateway_without_verdicts_means_that_all_count() -> None:
    assert read_stored(json_answer({"accepted": 3, "receipts": []}), SENT) == {}
    assert read_stored(json_answer({"accepted": 3, "segments": None}), SENT) == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"accepted": 2},
        {"accepted": 4},
        {"accepted": True},
        {"accepted": "3"},
        {"accepted": 3.0},
        {"segments": [verdict(4), verdict(5), verdict(7)]},
        {"accepted": 2, "segments": [verdict(4), verdict(5), verdict(7)]},
        {"accepted": 3, "segments": [verdict(4), verdict(5), verdict(7, False)]},
        {"accepted": 3, "segments": []},
        {"accepted": 2, "segments": [verdict(4), verdict(5)]},
        {"accepted": 3, "segments": [verdict(4), verdict(7), verdict(5)]},
        {"accepted": 4, "segments": [verdict(4), verdict(5), verdict(7), verdict(8)]},
        {"accepted": 3, "segments": [verdict(4), verdict(5), verdict(7, 1)]},
        {"accepted": 3, "segments": [verdict(4), verdict(5), {"business_data_number": 7}]},
        {"accepted": 3, "segments": [verdict(4), verdict(5), verdict(7, True, 5)]},
    ],
)
def test_acknowledgement_of_something_else_is_none(body: object) -> None:
    with pytest.raises(NotOurs):
        read_stored(json_answer(body), SENT)


ERROR = {"status": 422, "reason": "BAD_SEGMENTS", "detail": "2 of 3"}


def item(index: object, number: object = 4, reason: object = "TOO_LONG") -> dict[str, object]:
    return {"index": index, "business_data_number": number, "reason": reason, "detail": "d"}


def test_refusal_of_single_segments() -> None:
    answer = problem_answer({**ERROR, "errors": [item(0), item(2, 7, "TOO_LATE")]})
    refused = read_refused(answer, SENT)
    assert refused is not None
    assert {at: why.reason for at, why in refused.items()} == {0: "TOO_LONG", 2: "TOO_LATE"}


@pytest.mark.parametrize("errors", [{}, {"errors": []}])
def test_refusal_without_a_word_about_segments_is_of_all(errors: dict[str, object]) -> None:
    refused = read_refused(problem_answer({**ERROR, **errors}), SENT)
    assert refused is not None
    assert {0, 1, 2} == set(refused)
    assert {("BAD_SEGMENTS", "2 of 3")} == {(why.reason, why.detail) for why in refused.values()}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 415, 429, 500, 503])
def test_nothing_but_422_refuses_for_good(status: int) -> None:
    assert read_refused(problem_answer({**ERROR, "status": status}, status), SENT) is None


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [{"loc": ["body"], "msg": "field required"}]},  # what other frameworks say
        {"error": ERROR},
        {"status": 422, "reason": "R"},
        {"reason": "R", "detail": "d"},
        {**ERROR, "reason": 1},
        {**ERROR, "status": 400},
        {**ERROR, "errors": [item(3)]},
        {**ERROR, "errors": [item(-1)]},
        {**ERROR, "errors": [item(0, 5)]},
        {**ERROR, "errors": [item(True)]},
        {**ERROR, "errors": [item(0), "no"]},
        {**ERROR, "errors": "no"},
    ],
)
def test_422_of_something_else_refuses_nothing(body: object) -> None:
    assert read_refused(problem_answer(body), SENT) is None


def test_only_a_problem_refuses() -> None:
    assert read_refused(problem_answer(ERROR, content_type="application/json"), SENT) is None
    assert read_refusal(problem_answer(ERROR, content_type="application/json")) is None


def test_words_of_a_server_are_cut() -> None:
    refused = UplinkRefused("r" * 101, "d" * 501)
    assert (len(refused.reason), len(refused.detail)) == (100, 500)


@pytest.mark.parametrize(
    ("wish", "date", "expected_s"),
    [
        (None, None, None),
        ("0", None, 0.0),
        ("120", DATE, 120.0),
        (" 7 ", None, 7.0),
        ("Wed, 21 Oct 2015 07:29:30 GMT", DATE, 90.0),
        ("Wed, 21 Oct 2015 07:27:59 GMT", DATE, 0.0),
        ("Wed, 21 Oct 1970 07:28:00 GMT", None, 0.0),
        ("Wed, 21 Oct 2015 07:29:30 GMT", "yesterday", None),
        ("-1", None, None),
        ("1.5", None, None),
        ("soon", None, None),
        ("", None, None),
        ("²", None, None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", DATE, None),
    ],
)
def test_both_forms_of_retry_after(
    wish: str | None, date: str | None, expected_s: float | None
) -> None:
    assert expected_s == retry_after_s(wish, date)


def test_wish_is_never_undercut_and_has_a_jitter_on_top() -> None:
    backoff = Backoff(first_s=0.2, max_s=30.0)
    for failures, wish_s, longest_s in [
        (1, 0.0, 0.2),
        (1, 2.0, 3.0),  # half of the wish
        (5, 2.0, 5.2),  # the pause without it: 3.2 s
        (99, 2.0, 32.0),
        (1, 120.0, 150.0),  # max_s at most
        (1, WISH_MAX_S, WISH_MAX_S + 30.0),
        (1, 10.0**12, WISH_MAX_S + 30.0),
        (1, float("inf"), WISH_MAX_S + 30.0),
    ]:
        assert min(wish_s, WISH_MAX_S) == backoff.pause_s(failures, 0.0, wish_s)
        assert longest_s == pytest.approx(backoff.pause_s(failures, 1.0 - 2**-53, wish_s))
    assert backoff.pause_s(1, 0.0, None) == 0.2
