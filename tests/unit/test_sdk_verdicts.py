"""What the SDK makes of a segment's verdict: only what is final is set aside."""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from durabill.producers.sdk.answers import HttpAnswer
from durabill.producers.sdk.http_segments import SegmentSender
from durabill.producers.sdk.uplink import NO_NOTES, SendResult, UplinkRefused, WillNotCount
from durabill.producers.sdk.uploads import grouped, read_uploaded
from durabill.schemas import SegmentEvent

SEGMENT = SegmentEvent("SO1", 7, 1, 2, False)


def read(reason: str, *, final: bool, stored: bool) -> SendResult:
    error = {"index": 0, "business_data_number": 7, "reason": reason, "detail": ""}
    upload = {
        "service_order_number": "SO1",
        "count": 1,
        "stored": int(stored),
        "errors": [{**error, "final": final, "stored": stored}],
    }
    body = {"received_ms": 1.0, "sent_ms": 2.0, "clock_id": "a", "uploads": [upload]}
    answer = HttpAnswer(200, "application/json", json.dumps(body).encode())
    return read_uploaded(answer, [SEGMENT], grouped([SEGMENT], [0]))


@pytest.mark.parametrize(
    ("final", "stored", "kind"),
    [
        (True, True, WillNotCount),
        (True, False, UplinkRefused),
        (False, True, None),
        (False, False, None),
    ],
)
def test_what_is_not_final_is_sent_again(
    final: bool, stored: bool, kind: type[UplinkRefused] | None
) -> None:
    result = read("IN_THE_FUTURE", final=final, stored=stored)
    assert [type(each) for each in result.refused.values()] == ([] if kind is None else [kind])
    assert (set(result.failed), result.accepted) == ({"SO1"} if kind is None else set(), [])


@pytest.mark.parametrize("status", [200, 422])
@pytest.mark.parametrize(("end_ms", "waits"), [(4 * 10**12, True), (5 * 10**12, False)])
def test_what_lies_ahead_waits_also_by_the_older_route(
    status: int, end_ms: int, *, waits: bool
) -> None:
    """It counts once it has come, unless that is after 2100."""
    said = {"business_data_number": 7, "reason": "IN_THE_FUTURE", "detail": ""}
    refusal = {"status": 422, "reason": "BAD_SEGMENTS", "detail": ""}
    bodies = {
        200: {"accepted": 0, "segments": [{**said, "counts": False}]},
        422: {**refusal, "errors": [{**said, "index": 0}]},
    }
    kind = "application/json" if status == 200 else "application/problem+json"

    def post(path: str, _body: bytes, _headers: Mapping[str, str]) -> HttpAnswer:
        if path == "/v1/segments":
            return HttpAnswer(404, "text/html", b"")
        return HttpAnswer(status, kind, json.dumps(bodies[status]).encode())

    ahead = replace(SEGMENT, start_ms=end_ms - 9, end_ms=end_ms)
    result = SegmentSender("http://gateway", post).send([ahead], NO_NOTES)
    assert (set(result.failed), len(result.refused)) == (({"SO1"}, 0) if waits else (set(), 1))
    assert (result.accepted, result.problem) == ([], None)


@pytest.mark.parametrize(
    ("reason", "is_stale"), [("LEASE_INVALID", True), ("LEASE_OF_ANOTHER", False)]
)
@pytest.mark.parametrize("final", [True, False])
def test_no_lease_that_is_refused_costs_a_segment(reason: str, is_stale: bool, final: bool) -> None:
    """An operator's slip with keys is put right later; so is what an older gateway says of it."""
    result = read(reason, final=final, stored=False)
    assert (result.refused, set(result.failed)) == ({}, {"SO1"})
    assert result.stale_leases == ({"SO1"} if is_stale else set())
